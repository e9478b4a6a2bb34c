"""What the verbs find, as types: the one JSON object of `--json`, and what the functions of `chinchilla_lm.api` return.

They are dictionaries at run time. A figure that was not measured, or that there is none of, is None.
"""

from typing import Any, Literal, NotRequired, TypedDict

# What certificate.json holds; `runtime.certified.IssuedCertificate` says what each key means.
IssuedCertificate = dict[str, Any]


class Size(TypedDict):
    """Of a part of a model. A packed model has `bytes` as a whole alone."""

    parameters: int
    bytes: NotRequired[int]


class LinkParameters(TypedDict):
    """A link: `parameters` is 0 where it was dropped, and `dropped` then says what became of its norm."""

    name: str
    parameters: int
    dropped: Literal["keep", "lose"] | None


class BlockParameters(TypedDict):
    """A block's two links."""

    block: int
    attn: LinkParameters
    mlp: LinkParameters


class PassTime(TypedDict):
    """A pass over `batch` sequences of `tokens` tokens, in microseconds: all of it, what is no link, and each link."""

    batch: int
    tokens: int
    total_us: float
    fixed_us: float
    link_us: dict[str, float]


class InspectResult(TypedDict):
    """A model and what it is made of: `chinchilla inspect --json`.

    head: the task. tied: the head's matrix is the embedding's. positions: most tokens of a text. dtype: of the weights;
    of a packed model, its format. fresh: parts of the head with new, random weights. dropped: links that were, and what
    became of their norms. sizes: of embedding, head, the norm behind the last link, and the total, in which a shared
    matrix counts once. certificate: None where there is no valid one. time: missing where nothing was timed.
    """

    model: str
    family: str
    head: str
    tied: bool
    labels: list[str]
    causal: bool
    positions: int
    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    dtype: str
    fresh: list[str]
    dropped: dict[str, Literal["keep", "lose"]]
    blocks: list[BlockParameters]
    sizes: dict[str, Size]
    parameters: int
    bytes: int
    certificate: IssuedCertificate | None
    time: NotRequired[PassTime]


class Interval(TypedDict):
    """A value with its 95 % interval; no bounds where there was one document or one round only. F1 and accuracy are
    fractions."""

    value: float | None
    low: float | None
    high: float | None


class MetricInterval(Interval):
    """The same with what a difference of it is counted in: `points` or `percent`."""

    unit: str


class ClassRow(TypedDict):
    """A row of a table; precision and recall are None in the `accuracy` row, where they would say the same again."""

    label: str
    precision: float | None
    recall: float | None
    f1: float
    support: int


class Decision(TypedDict):
    """Changed model minus original, in points or percent (`unit`), with its 95 % interval, against the margin.

    n: examples. Bounds are None where there was one document only.
    """

    metric: str
    difference: float | None
    low: float | None
    high: float | None
    margin: float
    n: int
    unit: str


class Verdict(Decision):
    """more_examples: how many beyond `n` would decide; None where the data do."""

    passed: bool
    more_examples: int | None


class AgreementFound(TypedDict):
    """How many answers changed: the shares that are the same and that flipped from right to wrong or back, and the mean
    KL in nats; `evaluate.agreement` says more."""

    answers: int
    same: Interval
    flipped: Interval
    kl: Interval


class EvaluateResult(TypedDict):
    """A model's quality: `chinchilla evaluate --json`.

    n: sentences, texts or windows of the split. certificate, agreement and issued: where there was a model to compare
    with; agreement is None where the two do not read the same tokens, or a number is no answer to agree on; issued is
    the path of the certificate that was written, None where none was.
    """

    task: str
    split: str
    n: int
    metrics: dict[str, Interval]
    tables: dict[str, list[ClassRow]]
    certificate: NotRequired[Verdict]
    agreement: NotRequired[AgreementFound | None]
    issued: NotRequired[str | None]


class FinetuneResult(TypedDict):
    """A training: `chinchilla finetune --json`.

    model: its folder. splits: metrics on dev and, where there is one, test.
    """

    model: str
    task: str
    splits: dict[str, dict[str, Interval]]
    seconds: float


class Latency(TypedDict):
    """Median and 95th percentile, in milliseconds."""

    p50: float
    p95: float


class CompressRow(TypedDict):
    """A model of the main job: `original`, `shortened`, or `recovered`, which is the result.

    throughput: in `throughput_unit`, at the median of the latency. bytes: of its weights as they ran. links: left.
    """

    name: str
    metrics: dict[str, MetricInterval]
    latency_ms: Latency
    throughput: float
    throughput_unit: str
    parameters: int
    bytes: int
    links: int


class ComparisonResult(Verdict):
    """The result against one model (`against`) on one set of data (`data`)."""

    data: str
    against: str
    higher_is_better: bool
    verdict: str
    agreement: AgreementFound | None


class CompressResult(TypedDict):
    """The main job: `chinchilla compress --json`.

    verdict: `passed` or `failed`. speedup: times as fast as the original, by the last timing. plan: as in plan.json,
    which `Plan.from_dict` reads.
    """

    verdict: str
    certificate: Decision
    comparisons: list[ComparisonResult]
    speedup: float
    rows: list[CompressRow]
    plan: dict[str, Any]
    seconds: float


class ScoreResult(TypedDict):
    """`chinchilla score --json`. costs: what is in `file`, costs.json, which `plan.CostTable.from_dict` reads."""

    costs: dict[str, Any]
    file: str


class SearchResult(TypedDict):
    """`chinchilla search --json`. plan: what is in `file`, plan.json, which `Plan.from_dict` reads."""

    plan: dict[str, Any]
    file: str


class ShortenResult(TypedDict):
    """`chinchilla shorten --json`. model: its folder. links: the names of those left."""

    model: str
    links: list[str]
    parameters: int


class RecoverResult(TypedDict):
    """`chinchilla recover --json`. model: its folder."""

    model: str


class PackResult(TypedDict):
    """A packed model: `chinchilla pack --json`. output: its folder, and bytes of all files there. It has no certificate
    yet, whatever the model had that it was made of."""

    format: str
    output: str
    bytes: int
    seconds: float
    certificate: None


class ExportResult(TypedDict):
    """An export: `chinchilla export --json`.

    files: name → bytes. absent_blocks: left out, those behind them moved up. zeroed_links: dropped links that are there
    with zero weights. load: the Python that loads it.
    """

    format: str
    output: str
    files: dict[str, int]
    bytes: int
    absent_blocks: list[int]
    zeroed_links: list[str]
    load: str


class Cpu(TypedDict):
    """threads: of torch, None where there is none. quota_cores: what a container grants."""

    model: str
    architecture: str
    logical_cores: int | None
    usable_cores: int
    threads: int | None
    quota_cores: float | None
    last_level_cache_bytes: int | None
    instruction_sets: list[str]


class CudaDevice(TypedDict):
    """capability: such as `9.0`."""

    name: str
    memory_bytes: int
    capability: str


class Machine(TypedDict):
    """The machine as the system describes it. versions: None for what is not installed."""

    cpu: Cpu
    memory_bytes: int | None
    memory_available_bytes: int | None
    load_average: float | None
    cuda: list[CudaDevice]
    system: str
    versions: dict[str, str | None]


class NativeEngine(TypedDict):
    """kernels: the sets that could run here, best first, none where the engine is not installed. runs: the one that
    would. error: why none would."""

    kernels: list[str]
    runs: str | None
    error: str | None


class DoctorMachine(Machine):
    """missing: modules of the extra `full` that are not installed."""

    native: NativeEngine
    missing: list[str]


class CheckResult(TypedDict):
    """status: `pass` or `warn`. text: what was found, with the remedy."""

    name: str
    status: Literal["pass", "warn"]
    text: str


class Read(TypedDict):
    """How fast so many bytes are read again and again, in GB/s."""

    bytes: int
    gb_s: float


class DoctorResult(TypedDict):
    """`chinchilla doctor --json`. bandwidth_gb_s: of the largest of `reads`, None without torch. gemm_gflops: by kind
    of number. models: those that pip brings, with their paths, None where they are not installed."""

    machine: DoctorMachine
    bandwidth_gb_s: float | None
    reads: list[Read]
    gemm_gflops: dict[str, float]
    models: dict[str, str | None]
    checks: list[CheckResult]


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
