"""`chinchilla launch`: run a verb that trains by several processes, on one host or several, by torchrun."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.recipe import TRAINING
from chinchilla_lm.runtime.cpu import usable_cores

DONE, FAILED, STOPPED = 0, 1, 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many processes, where they meet, and the verb with its arguments."""
    parser.add_argument(
        "--nproc", type=int, required=True, metavar="N", help="processes on this host; one for each GPU"
    )
    parser.add_argument("--nnodes", type=int, default=1, metavar="M", help="hosts (default 1)")
    parser.add_argument(
        "--meet", metavar="HOST:PORT", help="where the processes of several hosts meet: the same on all, a host of them"
    )
    parser.add_argument(
        "--max-restarts", type=int, default=0, metavar="K",
        help="how often all processes are started again from what was saved when one has died (default 0)",
    )  # fmt: skip
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="VERB …", help="what is run, as without launch")


def torchrun_arguments(args: argparse.Namespace) -> list[str]:
    """What torchrun is run with. Raises InputError for numbers and places that are none."""
    for name, least in (("nproc", 1), ("nnodes", 1), ("max_restarts", 0)):
        if not least <= (value := getattr(args, name)) <= 65_536:
            raise InputError(f"--{name.replace('_', '-')} {value} is not in {least} … 65536; pass a number that is")
    verb = args.command[0] if args.command else "nothing"
    if verb not in TRAINING:
        raise InputError(f"launch runs {', '.join(TRAINING)}, not {verb}; pass one of them with its arguments")
    host, _, port = (args.meet or "").rpartition(":")
    if args.nnodes > 1 and not (host and port.isdecimal() and 0 < int(port) < 65_536):
        raise InputError(
            f"--meet {args.meet!r} is not HOST:PORT, which several hosts need; pass one of them and a port"
        )
    meeting = (
        ["--rdzv-backend", "c10d", "--rdzv-endpoint", args.meet, "--rdzv-id", "chinchilla"]
        if args.nnodes > 1
        else ["--standalone"]
    )
    numbers = [f"--nnodes={args.nnodes}", f"--nproc-per-node={args.nproc}", f"--max-restarts={args.max_restarts}"]
    said = [f"--{name}" for name in ("json", "quiet", "traceback") if getattr(args, name, False)]
    return [*meeting, *numbers, "-m", "chinchilla_lm", *args.command, *said]


def run(args: argparse.Namespace, console: Console) -> int:
    """Returns the exit status of the verb; where a process has crashed, that of the first."""
    arguments = torchrun_arguments(args)
    # torchrun gives each process one thread where this is not set; they share the cores where they work together.
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    if args.nnodes > 1:
        # A store of their own each time that they are started: torchrun's keeps the addresses of those that are gone.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CHINCHILLA_STATUS"] = folder
        try:
            return _torchrun(arguments, Path(folder), args.quiet)
        finally:
            del os.environ["CHINCHILLA_STATUS"]


def _torchrun(arguments: list[str], folder: Path, quiet: bool) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    if not quiet:
        print(f"torchrun {' '.join(arguments)}", file=sys.stderr)
    # What failed has said so itself.
    for name in [one for one in logging.root.manager.loggerDict if one.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        main(arguments)
    except SignalException:
        return STOPPED
    except ChildFailedError as error:
        if (told := _told(folder)) != DONE:
            return told
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        print(f"chinchilla launch failed: process {rank} was killed (signal {-failure.exitcode}); "
              "run the same command again to go on from what was saved", file=sys.stderr)  # fmt: skip
        return FAILED
    return _told(folder)


def _told(folder: Path) -> int:
    """What the first process said of the verb, or where that is on another host, the worst of those of this one."""
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    told = {name: int(text) for name, text in found.items() if text}  # of one that was killed meanwhile: nothing
    return told.get("0", max(told.values(), default=DONE))
