"""The command line: what it imports, how each failure ends, and that every verb is there."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import chinchilla_lm
from chinchilla_lm import cli
from chinchilla_lm.errors import ContractError, InputError

HEAVY = {"torch", "transformers", "numpy", "pydantic", "tokenizers", "safetensors", "yaml"}
PROBE = """
from chinchilla_lm.files import write_atomic

def add_arguments(parser):
    parser.add_argument("action")
    parser.add_argument("path", nargs="?")

def run(args, console):
    import time
    if args.action == "sleep":
        from chinchilla_lm.files import building
        with building(args.path):
            print("ready", flush=True)
            time.sleep(20)
    if args.action in ("print much", "print little"):
        print("ready", flush=True)
        input()  # until the reader has gone
        for line in range(200_000 if args.action == "print much" else 1):
            print(line)
    return 3
"""


@pytest.fixture
def verb(monkeypatch):
    """A verb `probe` whose run() is handed in; returns what main() made of it."""

    def call(run, *arguments: str) -> int:
        module = types.ModuleType("probe")
        module.add_arguments = lambda parser: parser.add_argument("--speedup", type=float)  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe", module)
        monkeypatch.setitem(cli.VERBS, "probe", ("probe", "for the test"))
        return cli.main(["probe", *arguments])

    return call


def raiser(error: BaseException):
    def run(args, console):
        raise error

    return run


def process(tmp_path: Path, *arguments: str, **options) -> subprocess.Popen:
    """The real program in a process of its own, with the verb `probe` added."""
    (tmp_path / "probe_verb.py").write_text(PROBE)
    script = "import sys; from chinchilla_lm import cli; cli.VERBS['probe'] = ('probe_verb', 'p'); sys.exit(cli.main())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    environment.pop("PYTHONUNBUFFERED", None)  # buffers must be there to be lost
    command = [sys.executable, "-c", script, "probe", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options)


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_exists(name: str):
    """Red until the last verb of the table is written."""
    path, line = cli.VERBS[name]
    assert importlib.util.find_spec(path) is not None
    module = importlib.import_module(path)
    assert callable(module.add_arguments)
    assert callable(module.run)
    assert line[0].islower()
    assert not line.endswith(".")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"]])
def test_starting_loads_nothing_heavy(arguments: list[str]):
    command = [sys.executable, "-X", "importtime", "-m", "chinchilla_lm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "chinchilla_lm" in loaded
    assert not loaded & HEAVY


def test_the_quick_modules_load_no_torch():
    code = "import sys, chinchilla_lm.cli, chinchilla_lm.recipe, chinchilla_lm.files; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_help_lists_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in cli.VERBS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"chinchilla {chinchilla_lm.__version__}\n"


def test_no_verb_is_wrong_usage_and_shows_the_help(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "compress" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["comprss"], "chinchilla: argument VERB: invalid choice: 'comprss'"),
        (["probe", "--speedup", "x"], "chinchilla probe: argument --speedup: invalid float value: 'x'"),
        (["probe", "--speedu", "2"], "chinchilla: unrecognized arguments: --speedu 2"),
        (["--fast"], "chinchilla: unrecognized arguments: --fast"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(capsys, verb, arguments: list[str], line: str):
    assert verb(lambda args, console: 0) == 0
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert err.rstrip().endswith("--help")


def test_a_verb_gets_its_console_and_returns_its_status(verb, capsys):
    def run(args, console) -> int:
        console.say("remark")
        console.result({"speedup": args.speedup})
        return 3

    assert verb(run, "--json", "--speedup", "2", "--quiet") == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {"speedup": 2.0}
    assert err == ""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("margin 70 is bad;\n  pass --margin 1"), 2, "chinchilla probe: margin 70 is bad; pass --margin 1"),
        (ContractError("1.3x is the most"), 1, "chinchilla probe failed: 1.3x is the most"),
        (ValueError("a\nb"), 1, "chinchilla probe failed: ValueError: a b; pass --traceback to see where"),
        (SystemExit("x"), 1, "chinchilla probe failed: SystemExit: x; pass --traceback to see where"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/log"),
            2,
            "chinchilla probe: cannot use out/log: No space left on device; free room or pass another -o",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "data"),
            2,
            "chinchilla probe: cannot use data: No such file or directory; check the path",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "data"),
            2,
            "chinchilla probe: cannot use data: Permission denied; pass a path you may use",
        ),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 1, "chinchilla probe failed: ConnectionResetError: "),
        (MemoryError(), 1, "chinchilla probe failed: out of memory; pass a smaller --batch"),
        (KeyboardInterrupt(), 130, "chinchilla probe stopped\n"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_each_error_is_one_line_with_its_status(verb, capsys, monkeypatch, error, status, line, flags):
    monkeypatch.delenv("CHINCHILLA_TRACEBACK", raising=False)
    assert verb(raiser(error), *flags) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", cli.VERBS)
def test_a_stopped_verb_promises_to_resume_only_where_it_does(capsys, monkeypatch, name):
    module = types.ModuleType("stopped")
    module.add_arguments = lambda parser: None  # type: ignore[attr-defined]
    module.run = raiser(KeyboardInterrupt())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stopped", module)
    monkeypatch.setitem(cli.VERBS, name, ("stopped", "for the test"))
    assert cli.main([name]) == 130
    resumes = name not in ("doctor", "inspect", "generate", "bench", "evaluate", "export", "pack")
    rest = "; run the same command again to resume from what is done" if resumes else ""
    assert capsys.readouterr().err == f"chinchilla {name} stopped{rest}\n"


def test_memory_that_torch_could_not_have_is_out_of_memory(verb, capsys):
    import torch

    def run(args, console) -> int:
        return len(torch.empty(1 << 60, dtype=torch.uint8))

    assert verb(run) == 1
    assert "out of memory; pass a smaller --batch" in capsys.readouterr().err
    assert verb(raiser(torch.OutOfMemoryError("CUDA out of memory"))) == 1
    assert "out of memory; pass a smaller --batch" in capsys.readouterr().err


def test_a_traceback_is_shown_only_when_asked_for(verb, capsys, monkeypatch):
    monkeypatch.delenv("CHINCHILLA_TRACEBACK", raising=False)
    verb(raiser(ValueError("x")))
    assert "Traceback" not in capsys.readouterr().err
    verb(raiser(ValueError("x")), "--traceback")
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("CHINCHILLA_TRACEBACK", "1")
    verb(raiser(ValueError("x")))
    assert "Traceback" in capsys.readouterr().err


def test_sigterm_is_handled_only_while_a_verb_runs(verb):
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run(args, console) -> int:
        seen.append(signal.getsignal(signal.SIGTERM))
        return 0

    assert verb(run) == 0
    assert seen[0] is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_130_one_line_and_nothing_half_written(tmp_path: Path, number: signal.Signals):
    with process(tmp_path, "sleep", str(tmp_path / "out" / "model")) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(number)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert err.decode() == "chinchilla probe stopped\n"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
@pytest.mark.parametrize("amount", ["print much", "print little"])
def test_a_reader_that_leaves_early_ends_it_silently(tmp_path: Path, amount: str):
    """Much fails while it is written; little only when the last buffer is flushed, and again at Python's exit."""
    with process(tmp_path, amount, stdin=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"ready\n"
        running.stdout.close()
        running.stdin.write(b"gone\n")
        running.stdin.close()
        assert running.stderr.read() == b""
        assert running.wait(timeout=30) == 141


def test_the_package_exports_lazily():
    assert chinchilla_lm.InputError is InputError
    assert set(chinchilla_lm._EXPORTS) <= set(dir(chinchilla_lm))
    assert len(chinchilla_lm._EXPORTS) <= 10
    with pytest.raises(AttributeError, match="has no attribute 'squash'"):
        _ = chinchilla_lm.squash


@pytest.mark.parametrize("name", list(chinchilla_lm._EXPORTS))
def test_every_export_exists(name: str):
    """Red until the modules that hold them are written."""
    assert getattr(chinchilla_lm, name) is not None
