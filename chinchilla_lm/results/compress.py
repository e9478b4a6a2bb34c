"""What training and shortening a model come to: `finetune`, `compress` and its stages."""

from typing import Any, TypedDict

from chinchilla_lm.results.figures import AgreementFound, Decision, Interval, Latency, MetricInterval, Verdict


class FinetuneResult(TypedDict):
    """A training: `chinchilla finetune --json`.

    model: its folder. splits: metrics on dev and, where there is one, test.
    """

    model: str
    task: str
    splits: dict[str, dict[str, Interval]]
    seconds: float


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
    which `Plan.from_dict` reads. packed: the folder of the program that is the result, None without formats.
    """

    verdict: str
    certificate: Decision
    comparisons: list[ComparisonResult]
    speedup: float
    rows: list[CompressRow]
    plan: dict[str, Any]
    packed: str | None
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
