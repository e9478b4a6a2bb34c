"""Real processes that train together over gloo, for tests: a function of a module, run in each."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import importlib, pickle, sys, torch
torch.set_num_threads(1)
from chinchilla_lm.runtime.processes import joined
module, name, given, out = sys.argv[1:]
function = getattr(importlib.import_module(module), name)
with open(given, "rb") as file:
    arguments = pickle.load(file)
with joined() as here:
    found = function(here, **arguments)
with open(f"{out}.{here.rank}", "wb") as file:
    pickle.dump(found, file)
"""


def free_port() -> int:
    """One that nobody listens on at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def together(count: int, module: str, name: str, folder: Path, **arguments: Any) -> list[Any]:
    """What `name(processes, **arguments)` returns in each of `count` processes. Fails with their last lines."""
    folder.mkdir(parents=True, exist_ok=True)
    given = folder / "given"
    given.write_bytes(pickle.dumps(arguments))
    port = str(free_port())
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, module, name, str(given), str(folder / "found")],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    said = [one.communicate(timeout=240)[0] for one in running]
    for rank, one in enumerate(running):
        assert one.returncode == 0, f"process {rank}: {said[rank][-3000:]}"
    return [pickle.loads((folder / f"found.{rank}").read_bytes()) for rank in range(count)]
