"""The command `chinchilla`: finds the verb, runs it, and turns whatever goes wrong into one clear line.

A verb's module is imported only when that verb is asked for, so `chinchilla --help` loads no torch and answers at once.

    exit status  0    done
                 1    failed: what was asked cannot be had, memory ran out, or a bug of ours
                 2    wrong usage or bad input
                 3    done, but the certificate failed (the verb returns it)
                 130  stopped by Ctrl-C or SIGTERM; 141 when the reader of a pipe has gone
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any, NoReturn

from chinchilla_lm import __version__
from chinchilla_lm.console import Console
from chinchilla_lm.errors import ContractError, InputError, LostError
from chinchilla_lm.installed import lacks, part_of
from chinchilla_lm.openmp import share_cores

DONE, FAILED, BAD_INPUT, STOPPED, PIPE_CLOSED = 0, 1, 2, 130, 141

# Verb → (module with add_arguments(parser) and run(args, console) -> int, help line).
VERBS: dict[str, tuple[str, str]] = {
    "doctor": (
        "chinchilla_lm.commands.doctor",
        "measure this machine: cores, instruction sets, bandwidth, GEMM peak",
    ),
    "demo": ("chinchilla_lm.commands.demo", "the main job on the models that pip installed, start to end, in minutes"),
    "inspect": ("chinchilla_lm.commands.inspect", "show a model's chain of links: parameters and share of time"),
    "finetune": ("chinchilla_lm.commands.finetune", "train a pretrained model for a task"),
    "compress": ("chinchilla_lm.commands.compress", "shorten a model to a target speed and certify its quality"),
    "score": ("chinchilla_lm.commands.score", "one stage: measure what each removal costs and saves"),
    "search": ("chinchilla_lm.commands.search", "one stage: choose what to remove from the measured costs"),
    "shorten": ("chinchilla_lm.commands.shorten", "one stage: carry out a plan on the model"),
    "recover": ("chinchilla_lm.commands.recover", "one stage: train the short model on the original's outputs"),
    "launch": ("chinchilla_lm.commands.launch", "run finetune, recover or compress by several processes"),
    "evaluate": ("chinchilla_lm.commands.evaluate", "measure a model's quality, alone or paired against another"),
    "bench": ("chinchilla_lm.commands.bench", "measure speed, models side by side in one interleaved run"),
    "pack": ("chinchilla_lm.commands.pack", "round a model's weights to a format and make a program of it"),
    "generate": ("chinchilla_lm.commands.generate", "continue a text"),
    "export": ("chinchilla_lm.commands.export", "write a model in a format that other programs read"),
}

# Verbs that keep what is done in OUT and go on from there.
RESUMING = frozenset({"demo", "finetune", "compress", "score", "search", "shorten", "recover", "launch"})

_REFUSED_BY_THE_SYSTEM = {
    errno.ENOSPC: "free room or pass another -o",
    errno.EDQUOT: "free room or pass another -o",
    errno.EFBIG: "free room or pass another -o",
    errno.EACCES: "pass a path you may use",
    errno.EPERM: "pass a path you may use",
    errno.EROFS: "pass another -o",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.ENAMETOOLONG: "pass a shorter path",
}
_OUT_OF_MEMORY = (
    "out of memory; pass a smaller --batch, fewer tokens or a smaller model, whichever the verb takes, "
    "or use a machine with more"
)


class _Parser(argparse.ArgumentParser):
    """argparse, with no abbreviated options and with errors of one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"allow_abbrev": False} | settings))

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, "" if _is_follower() else f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb with the given arguments (the process's own by default) and return the exit status.

    Raises nothing: not SystemExit, and of the verb's errors only the line on standard error is left.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in arguments if not word.startswith("-")), None)
    share_cores()
    with _sigterm_as_interrupt():
        try:
            status = _run(arguments, verb)
            sys.stdout.flush()
            return _told(status)
        except BrokenPipeError:
            _close_standard_output()
            return PIPE_CLOSED
        except BaseException as error:
            status, line = explain(error, verb)
            if not _is_a_crash(error, status):
                status = _told(status)
            if _is_follower() and isinstance(error, KeyboardInterrupt | InputError | ContractError):
                return status
            if _wants_traceback(arguments):
                traceback.print_exc()
            # A bug's own message may run over many lines; the first use of --traceback shows all of it.
            print(" ".join(f"{_name(verb)}{line}".split()), file=sys.stderr)
            return status


def _run(arguments: list[str], verb: str | None) -> int:
    parser, module = _build_parser(verb)
    try:
        args = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse's way to end after --help, --version, or an error that it has printed
        return int(stop.code or DONE)
    if module is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    console = Console(json_mode=args.json, quiet=args.quiet)
    if _is_one_of_several() and verb != "launch":
        together = import_module("chinchilla_lm.pipeline.together")
        work = lambda: int(module.run(args, console))  # noqa: E731 (narrowed above)
        return int(together.run_together(str(verb), arguments, vars(args).get("parallel"), work))
    return int(module.run(args, console))


def _build_parser(verb: str | None) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """The parser, with the arguments of the one verb that is asked for; and that verb's module."""
    parser = _Parser(
        prog="chinchilla",
        description="Shorten a pretrained transformer and prove on paired data that it is still as good.",
        epilog="chinchilla VERB --help shows a verb's options.",
    )
    parser.add_argument("--version", action="version", version=f"chinchilla {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    module = None
    for name, (path, line) in VERBS.items():
        child = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        if name == verb:
            module = import_module(path)
            module.add_arguments(child)
            _add_common(child)
    return parser, module


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="one JSON object on standard output; the rest on standard error"
    )
    group.add_argument("--quiet", action="store_true", help="results and warnings only")
    group.add_argument("--traceback", action="store_true", help="show where an error arose (or CHINCHILLA_TRACEBACK=1)")


def explain(error: BaseException, verb: str | None) -> tuple[int, str]:
    """Exit status and text (after the command's name) for an error that ended a verb."""
    if isinstance(error, KeyboardInterrupt):
        resume = "; run the same command again to resume from what is done" if verb in RESUMING else ""
        return STOPPED, f" stopped{resume}"
    if isinstance(error, InputError):
        return BAD_INPUT, f": {error}"
    if (module := part_of(error)) is not None:
        return BAD_INPUT, f": {lacks('this', module)}"
    if isinstance(error, ContractError):
        return FAILED, f" failed: {error}"
    if _is_out_of_memory(error):
        return FAILED, f" failed: {_OUT_OF_MEMORY}"
    if isinstance(error, OSError) and error.errno in _REFUSED_BY_THE_SYSTEM:
        where = f"cannot use {error.filename}: " if error.filename is not None else ""
        return BAD_INPUT, f": {where}{error.strerror}; {_REFUSED_BY_THE_SYSTEM[error.errno]}"
    return FAILED, f" failed: {type(error).__name__}: {error}; pass --traceback to see where"


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's, CUDA's, or torch's on the CPU, which is a bare RuntimeError told by its text alone."""
    torch = sys.modules.get("torch")  # without torch loaded, the error cannot be torch's
    of_torch = getattr(torch, "OutOfMemoryError", MemoryError)
    if isinstance(error, MemoryError | of_torch):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _name(verb: str | None) -> str:
    return f"chinchilla {verb}" if verb in VERBS else "chinchilla"


def _is_one_of_several() -> bool:
    """Whether torchrun has started this process with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def _is_follower() -> bool:
    """Whether another process says for this one what is wrong with the command."""
    return _is_one_of_several() and os.environ.get("RANK", "0") != "0"


def _is_a_crash(error: BaseException, status: int) -> bool:
    """Whether the same command, started again, may go well."""
    return isinstance(error, LostError) or (status == FAILED and not isinstance(error, ContractError))


def _told(status: int) -> int:
    """The status, or 0 after it was told to `chinchilla launch`: torchrun takes any other for a crash, and would start
    the processes again."""
    folder = os.environ.get("CHINCHILLA_STATUS")
    if folder is None or "TORCHELASTIC_RUN_ID" not in os.environ:
        return status
    try:
        with open(os.path.join(folder, os.environ.get("RANK", "0")), "w", encoding="utf-8") as file:
            file.write(str(status))
    except OSError:
        return status
    return DONE


def _wants_traceback(arguments: list[str]) -> bool:
    return "--traceback" in arguments or os.environ.get("CHINCHILLA_TRACEBACK") == "1"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that half-written files are removed. Only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _close_standard_output() -> None:
    """The reader of the pipe has gone: send what is still buffered nowhere, so that Python's exit stays silent."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
