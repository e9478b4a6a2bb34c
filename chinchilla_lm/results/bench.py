"""What `chinchilla bench` measures."""

from typing import Any, NotRequired, TypedDict

from chinchilla_lm.results.doctor import Machine, Read
from chinchilla_lm.results.figures import Interval, IssuedCertificate, Latency


class BenchShares(TypedDict):
    """What a pass must compute and a step must read, and the shares of the machine's roof that were reached.

    A share is None where it was more than a roof allows, and the fault says so; there is none where there is no roof.
    Those of reading are there for a model that writes more than one token.
    """

    pass_gflop: float
    gemm_dtype: NotRequired[str]
    gemm_gflops: NotRequired[float]
    gemm_share: NotRequired[float | None]
    gemm_fault: NotRequired[str]
    decode_mb_per_step: NotRequired[float]
    read_bytes: NotRequired[int]
    bandwidth_gb_s: NotRequired[float]
    bandwidth_share: NotRequired[float | None]
    bandwidth_fault: NotRequired[str]


class BenchRow(TypedDict):
    """One engine. format: of its weights; cache: of keys and values. new_tokens: 0 for a model that only reads, whose
    speeds of tokens are None. latency_ms: of a request, or of one text alone. peak_mb, load_s: in a process of its own,
    None where not measured. metrics: none here."""

    model: str
    engine: str
    format: str
    cache: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    sequences_per_s: float
    latency_ms: Latency
    peak_mb: float | None
    load_s: float | None
    metrics: dict[str, Any]
    parameters: int
    bytes: int
    roofline: BenchShares


class BenchRatio(Interval):
    """How many times as fast `model` is as `over` in a measure, the median of rounds."""

    model: str
    engine: str
    over: str
    over_engine: str
    measure: str


class BenchRoof(TypedDict):
    """What was measured of the machine: reads, and GFLOP/s of products by kind of number."""

    reads: list[Read]
    products: dict[str, float]


class Race(TypedDict):
    """What was timed: rounds, in which all engines took turns; their rows; ratios of one to each other."""

    rounds: int
    rows: list[BenchRow]
    ratios: list[BenchRatio]


class BenchResult(Race):
    """`chinchilla bench --json` without peers. certificates: of each model, None where there is none."""

    machine: Machine
    roofline: BenchRoof | None
    certificates: dict[str, IssuedCertificate | None]
