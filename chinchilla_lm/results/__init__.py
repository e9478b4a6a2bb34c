"""What the verbs find, as types: the one JSON object of `--json`, and what the functions of `chinchilla_lm.api` return.

They are dictionaries at run time. A figure that was not measured, or that there is none of, is None.
"""

from chinchilla_lm.results.bench import (
    BenchRatio,
    BenchResult,
    BenchRoof,
    BenchRow,
    BenchShares,
    Race,
)
from chinchilla_lm.results.compress import (
    ComparisonResult,
    CompressResult,
    CompressRow,
    FinetuneResult,
    RecoverResult,
    ScoreResult,
    SearchResult,
    ShortenResult,
)
from chinchilla_lm.results.doctor import (
    CheckResult,
    Cpu,
    CudaDevice,
    DoctorMachine,
    DoctorResult,
    FormatProduct,
    Machine,
    NativeEngine,
    Read,
)
from chinchilla_lm.results.evaluate import (
    ClassRow,
    EvaluateResult,
)
from chinchilla_lm.results.export import (
    Distillation,
    ExportResult,
    MixFound,
    MixTried,
    PackResult,
)
from chinchilla_lm.results.figures import (
    AgreementFound,
    Decision,
    Interval,
    IssuedCertificate,
    Latency,
    MetricInterval,
    Verdict,
)
from chinchilla_lm.results.inspect import (
    BlockParameters,
    InspectResult,
    LinkParameters,
    PassTime,
    Size,
)

__all__ = [
    "AgreementFound",
    "BenchRatio",
    "BenchResult",
    "BenchRoof",
    "BenchRow",
    "BenchShares",
    "BlockParameters",
    "CheckResult",
    "ClassRow",
    "ComparisonResult",
    "CompressResult",
    "CompressRow",
    "Cpu",
    "CudaDevice",
    "Decision",
    "Distillation",
    "DoctorMachine",
    "DoctorResult",
    "EvaluateResult",
    "ExportResult",
    "FinetuneResult",
    "FormatProduct",
    "InspectResult",
    "Interval",
    "IssuedCertificate",
    "Latency",
    "LinkParameters",
    "Machine",
    "MetricInterval",
    "MixFound",
    "MixTried",
    "NativeEngine",
    "PackResult",
    "PassTime",
    "Race",
    "Read",
    "RecoverResult",
    "ScoreResult",
    "SearchResult",
    "ShortenResult",
    "Size",
    "Verdict",
]
