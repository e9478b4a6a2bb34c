"""Memory and load time of an engine, measured in a process of its own.

Within one process, what one engine frees another takes over, and no figure belongs to anybody. So a fresh Python loads
the model as `load` does, does the work once, and tells the highest resident memory that it ever had: libraries, the
float32 copy that a cast or packing starts from, activations and cache included. A packed model in the engine needs no
torch, and so its process has none. Load time is from the path to a model that is ready, imports apart.

    python -m chinchilla_lm.runtime.measuring.footprint '{"engine": …}'
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from chinchilla_lm.errors import ContractError
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.packed import is_packed
from chinchilla_lm.runtime.measuring.engines import NATIVE, EngineSpec, open_engine
from chinchilla_lm.runtime.measuring.shape import Shape, prompt

_TIMEOUT_S = 1800.0  # a model that loads for longer than this is not one to race


@dataclass(frozen=True, slots=True)
class Footprint:
    """Highest resident memory in MB (1e6 bytes), None where the system does not tell; seconds to load."""

    peak_mb: float | None
    load_s: float


def measure_footprint(spec: EngineSpec, shape: Shape, threads: int) -> Footprint:
    """Load and work once in a new process. threads: of torch, there. Raises ContractError where that process fails."""
    work = {"spec": asdict(spec), "shape": asdict(shape), "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", "chinchilla_lm.runtime.measuring.footprint", json.dumps(work)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ContractError(f"{spec.engine} cannot load {spec.path} in a process of its own: {last}; pass --no-memory")
    return Footprint(**json.loads(done.stdout.strip().splitlines()[-1]))


def main(argument: str) -> None:
    """The new process: one JSON object on standard output."""
    work = json.loads(argument)
    spec, shape = EngineSpec(**work["spec"]), Shape(**work["shape"])
    _import_first(spec, work["threads"])
    begun = time.perf_counter()
    engine = open_engine(spec)
    load_s = time.perf_counter() - begun
    ids = prompt(0, shape.batch, shape.tokens, engine.demand.vocabulary)
    if shape.new_tokens:
        engine.generate(ids, shape.new_tokens)
    else:
        engine.forward(ids)
    print(json.dumps(asdict(Footprint(peak_mb(), load_s))))


def _import_first(spec: EngineSpec, threads: int) -> None:
    """What opening a model would import, before its time is taken."""
    if spec.engine == NATIVE and is_packed(spec.path):
        engine_module()
        return
    import torch

    import chinchilla_lm.runtime.engine.compile
    import chinchilla_lm.runtime.measuring.torch_engine  # noqa: F401

    torch.set_num_threads(threads)


def peak_mb() -> float | None:
    """Highest resident memory of this process so far.

    Not getrusage's: on Linux that counts the memory of the process that started this one, from before the exec.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found.group(1)) * 1024 / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return None


if __name__ == "__main__":
    main(sys.argv[1])
