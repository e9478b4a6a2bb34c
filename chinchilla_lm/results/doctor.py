"""What `chinchilla doctor` finds, and how every verb describes the machine."""

from typing import Literal, TypedDict


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


class FormatProduct(TypedDict):
    """A product of `rows` inputs and a matrix in a format, on one core. bits: a weight. us: microseconds. beside: that
    time over what bf16 and int8 take. pays: it is faster than every format with more bits."""

    format: str
    bits: float
    outputs: int
    inputs: int
    rows: int
    us: float
    beside: dict[str, float]
    pays: bool


class DoctorResult(TypedDict):
    """`chinchilla doctor --json`. bandwidth_gb_s: of the largest of `reads`, None without torch. gemm_gflops: by kind
    of number. formats: products in each, none where there is no engine. models: those that pip brings, with their
    paths, None where they are not installed."""

    machine: DoctorMachine
    bandwidth_gb_s: float | None
    reads: list[Read]
    gemm_gflops: dict[str, float]
    formats: list[FormatProduct]
    models: dict[str, str | None]
    checks: list[CheckResult]
