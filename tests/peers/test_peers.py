"""Races with other programs: the protocol, environments, the table, and one small race from start to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from chinchilla_lm.cli import main
from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.peers import outcome
from chinchilla_lm.peers.contest import Entrant, as_row, pilot, race, read_memory, read_quality
from chinchilla_lm.peers.environment import interpreter
from chinchilla_lm.peers.llama_bench import LlamaBench
from chinchilla_lm.peers.process import PeerError, Process
from chinchilla_lm.peers.run import ratios
from chinchilla_lm.peers.sources import write_gguf
from chinchilla_lm.peers.table import FLOATS, OURS, PEERS, WORKERS, Peer, chosen
from chinchilla_lm.peers.work import Work
from chinchilla_lm.runtime.native import engine_module
from tests.models.tiny import saved

QUIET = Console(quiet=True)
BROKEN = """
import os, sys
from protocol import serve
class Worker:
    def load(self, **_):
        print("a library's chatter")
        return 0.5
    def write(self, prompts, new):
        raise ValueError("no such luck\\nsecond line")
    def nats(self, windows):
        os._exit(7)
serve(Worker())
"""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "protocol.py").write_text((WORKERS / "protocol.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    monkeypatch.setattr("chinchilla_lm.peers.process.WORKERS", tmp_path)
    with Process(sys.executable, "broken.py") as process:
        yield process


def test_a_worker_that_fails_says_why_and_goes_on(broken: Process):
    assert broken.call("load", path="", form="", threads=1, task="") == 0.5
    with pytest.raises(PeerError, match=r"^ValueError: no such luck$"):
        broken.call("write", prompts=[[1]], new=1)
    with pytest.raises(PeerError, match="call 'quit' is not one of"):
        broken.call("quit")
    assert broken.call("memory") is None or broken.call("memory") > 1
    broken.stop()
    broken.go()
    assert broken.call("load", path="", form="", threads=1, task="") == 0.5
    with pytest.raises(PeerError, match="ended with status 7"):
        broken.call("nats", windows=[])


def test_a_stopped_worker_uses_no_time(broken: Process):
    broken.call("load", path="", form="", threads=1, task="")
    broken.stop()
    os.waitid(os.P_PID, broken._child.pid, os.WSTOPPED | os.WNOWAIT)
    broken.go()
    assert broken.call("load", path="", form="", threads=1, task="") == 0.5


def test_workers_end_with_their_parent(tmp_path: Path):
    script = (
        "import sys; from chinchilla_lm.peers.process import Process; "
        "p = Process(sys.executable, 'chinchilla.py'); print(p._child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists():
            return
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail("the worker lives on")


def test_what_can_be_asked_for():
    assert chosen("openvino, llama.cpp,openvino,llama-bench=/bin/sh -rtr 1") == (
        ["openvino", "llama.cpp"],
        ["/bin/sh -rtr 1"],
    )
    for wrong, said in (
        (" ,", "names nobody"),
        ("llama-bench='x", "mend the quotes"),
        ("llama-bench=/a/b", "no program"),
    ):
        with pytest.raises(InputError, match=said):
            chosen(wrong)
    for wrong in ("vllm", "chinchilla", "llama-bench", "llama-bench="):
        with pytest.raises(InputError, match=r"is not one of llama\.cpp, openvino"):
            chosen(wrong)
    for name, peer in PEERS.items():
        assert (WORKERS / peer.worker).is_file(), name
        assert all("==" in one for one in peer.requirements), "a figure of some version is nobody's"


def test_an_environment_is_made_once_and_a_failed_one_is_not_kept(tmp_path: Path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n[project]\nname = "p"\n'
    )
    (package / "own.py").write_text("raise RuntimeError('cannot be built')\n")
    peer = Peer("x.py", {}, (str(package),))
    with pytest.raises(InputError, match="probe cannot be installed"):
        interpreter("probe", peer, tmp_path / "home", QUIET)
    assert not list((tmp_path / "home").glob("*/complete"))
    (made,) = (tmp_path / "home").iterdir()
    (made / "complete").write_text("")
    assert interpreter("probe", peer, tmp_path / "home", QUIET) == str(made / "bin" / "python")
    assert interpreter("ours", Peer("x.py", {}), tmp_path / "home", QUIET) == sys.executable


def test_gguf_rows_are_in_llama_cpps_order(tmp_path: Path):
    _, folder = saved(tmp_path, "llama-gqa")
    write_gguf(folder, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {one.name: one.data for one in reader.tensors}
    config = load(folder).model.config
    from safetensors.numpy import load_file

    rows = load_file(folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    size = config.head_dim
    for head in range(config.num_heads):
        ours = rows[head * size : (head + 1) * size]
        theirs = tensors["blk.0.attn_q.weight"][head * size : (head + 1) * size]
        np.testing.assert_array_equal(theirs[0::2], ours[: size // 2])
        np.testing.assert_array_equal(theirs[1::2], ours[size // 2 :])
    assert set(tensors) >= {"token_embd.weight", "output_norm.weight", "blk.0.ffn_down.weight"}
    _, other = saved(tmp_path / "other", "gpt2")
    with pytest.raises(InputError, match="model_type gpt2 is not one of llama"):
        write_gguf(other, tmp_path / "other.gguf")


def test_tables_ratios_and_charts():
    rows: list[dict[str, Any]] = [
        {"engine": OURS, "format": "int8", "decode_tokens_per_s": 300.0, "latency_ms": {"p50": 2.0, "p95": 3.0}},
        {"engine": "a<b", "format": "q8", "decode_tokens_per_s": 100.0, "latency_ms": {"p50": 6.0, "p95": 9.0}},
        {"engine": "c", "format": "-", "error": "it | failed"},
    ]
    rows[0]["spread"] = {"decode_tokens_per_s": [290.0, 310.0]}
    rows[0]["seconds"] = {"decode": [1.0, 2.0, 1.0], "batch": [1.0]}
    rows[1]["seconds"] = {"decode": [3.0, 6.0, 4.0]}
    (found,) = ratios(rows)
    assert (found["over_engine"], found["measure"], found["value"]) == ("a<b", "decode", 3.0)
    assert found["spread"] == [3.0, 3.5]
    names, cells = outcome.table(rows)
    assert names == ["engine", "format", "decode tokens/s", "p50 ms", "p95 ms", "failed"]
    assert cells[0] == [OURS, "int8", "300 [290, 310]", "2.00", "3.00", ""]
    assert "it \\| failed" in outcome.markdown("title", rows, ["a note"])
    drawing = outcome.chart("model", rows)
    assert "a&lt;b" in drawing
    assert drawing.count("<rect") == 3  # the ground and two bars


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_a_race_from_start_to_end(model_folder, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("chinchilla_lm.runtime.machine.measure_bandwidth", lambda: 10.0)
    monkeypatch.setattr("chinchilla_lm.runtime.machine.measure_gemm", lambda dtype: 100.0)
    monkeypatch.setattr("chinchilla_lm.peers.contest.MIN_ROUNDS", 1)
    for place in ("contest", "work"):
        monkeypatch.setattr(f"chinchilla_lm.peers.{place}.STEPS", 4)
        monkeypatch.setattr(f"chinchilla_lm.peers.{place}.SHORT", 4)
    out = tmp_path / "out"
    text = tmp_path / "text.jsonl"
    lines = [
        json.dumps({"text": f"{i} " + "the quick brown fox met the lazy dog " * 9, "id": str(i)}) for i in range(40)
    ]
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["bench", str(model_folder()), "--peers", "transformers,onnxruntime", "--tokens", "8", "--new-tokens", "4"]
    words += ["--threads", "1", "--seconds", "0.01", "--data", str(text), "-o", str(out), "--json"]
    assert main(words) == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out)
    rows = {(row["engine"], row["format"]): row for row in result["rows"]}
    assert set(rows) == {
        (OURS, "bf16"),
        (OURS, "int8"),
        (OURS, "int4"),
        ("transformers", FLOATS[-1]),
        ("onnxruntime", "-"),
    }
    assert "no way to run a model for language-modeling" in rows["onnxruntime", "-"]["error"]
    ours, theirs = rows[OURS, "bf16"], rows["transformers", FLOATS[-1]]
    assert ours["metrics"]["perplexity"] == pytest.approx(theirs["metrics"]["perplexity"], rel=0.02)
    for row in (ours, theirs):
        assert min(row[key] for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "peak_mb", "bytes")) > 0
        assert row["threads"] == 1
    assert any(one["measure"] == "batch" for one in result["ratios"])
    assert all(len(taken) == result["rounds"] for taken in ours["seconds"].values())
    assert json.loads((out / "bench.json").read_text(encoding="utf-8"))["rows"] == result["rows"]
    assert (out / "bench.md").read_text(encoding="utf-8").startswith("# ")
    assert (out / "bench.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--peers", "vllm"], "vllm"),
        (["--peers", "transformers", "--batch", "2"], "--batch has no meaning"),
        (["--peers", "transformers", "--threads", "0"], "threads"),
        (["--peers", "transformers", "--seconds", "inf"], "seconds inf"),
        (["--peers", "transformers", "--tokens", "0"], "0 + 64 tokens"),
        (["--peers", "transformers", "-o", "/proc/no"], "cannot be written"),
        (["--peers", "transformers", "--device", "cuda"], "peers race on the CPU"),
        (["--peers", "transformers", "--tokens", "9999"], "positions"),
        (["--peers", "transformers", "--task", "embedding"], "causal language models and taggers"),
    ],
)
def test_bad_input(words: list[str], named: str, model_folder, capsys):
    assert main(["bench", str(model_folder()), *words]) == 2
    assert named in capsys.readouterr().err


def test_a_tagger_needs_texts(model_folder, capsys):
    assert main(["bench", str(model_folder("bert", "token-classification")), "--peers", "transformers"]) == 2
    assert "data is missing" in capsys.readouterr().err


class Stub:
    """A process that answers from a script: seconds of `write`, or an error."""

    def __init__(self, answers: list[float | BaseException]) -> None:
        self.answers, self.open = answers, True

    def call(self, name: str, **_: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return [answer, answer] if name == "write" else answer

    def go(self) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None:
        self.open = False


def test_the_pilot_keeps_the_fastest_and_closes_the_others():
    work = Work("language-modeling", 50, 100, 8, 4)
    made = {4: Stub([2.0, 3.0]), 2: Stub([1.0, 1.0]), 1: Stub([PeerError("out of memory")])}
    best: tuple[Any, int, float] = pilot(lambda threads: (made[threads], 0.1), work, [4, 2, 1])  # type: ignore[arg-type, return-value]
    assert best == (made[2], 2, 0.1)
    assert [made[threads].open for threads in (4, 2, 1)] == [False, True, False]
    with pytest.raises(PeerError, match="out of memory"):
        pilot(lambda _: (Stub([PeerError("out of memory")]), 0.1), work, [2, 1])  # type: ignore[arg-type, return-value]
    stopped = Stub([1.0, 1.0])
    others = iter([stopped, Stub([KeyboardInterrupt()])])
    with pytest.raises(KeyboardInterrupt):
        pilot(lambda _: (next(others), 0.1), work, [2, 1])  # type: ignore[arg-type, return-value]
    assert not stopped.open


def test_who_fails_late_keeps_its_speeds_and_nobody_left_ends_the_race(monkeypatch: pytest.MonkeyPatch):
    work = Work("language-modeling", 50, 100, 8, 4, windows=[[1, 2, 3]])
    rounds = [1.0] * 2 * 3 * 4
    good = Entrant("a", "x", Stub([*rounds, 12.0, PeerError("died")]))  # type: ignore[arg-type]
    bad = Entrant("b", "y", Stub([1.0, PeerError("crashed")]))  # type: ignore[arg-type]
    assert race([good, bad], [], work, 0.0, QUIET) == 3
    read_memory([good, bad])
    read_quality([good, bad], work.windows, QUIET)
    row = as_row(good, work, {}, 1.0)
    assert (row["decode_tokens_per_s"], row["peak_mb"], row["error"]) == (31.0, 12.0, "quality: died")
    assert as_row(bad, work, {}, 1.0)["error"] == "crashed"
    assert "seconds" not in as_row(bad, work, {}, 1.0)
    gone = Entrant("c", "z", Stub([PeerError("gone")]))  # type: ignore[arg-type]
    assert race([gone], [], work, 60.0, QUIET) == 0


LLAMA_BENCH = """#!/bin/sh
case "$*" in *"-t 1 "*) speed=50 ;; *) speed=100 ;; esac
echo '[{"n_prompt": 8, "n_gen": 0, "avg_ts": '$speed'}, {"n_prompt": 0, "n_gen": 4, "avg_ts": 10}]'
"""


def test_a_build_of_llama_bench_runs_in_turn(tmp_path: Path):
    program, model = tmp_path / "llama-bench", tmp_path / "model.gguf"
    program.write_text(LLAMA_BENCH)
    program.chmod(0o755)
    model.write_bytes(b"0" * 1000)
    build = LlamaBench(f"{program} -rtr 1", "Q8_0", Work("language-modeling", 50, 100, 8, 4))
    build.prepare(model, [2, 1])
    build.turn()
    build.turn()
    row = build.row({"bandwidth_gb_s": 1.0})
    assert (row["threads"], row["prefill_tokens_per_s"], row["decode_tokens_per_s"]) == (2, 100.0, 10.0)
    assert row["seconds"] == {"prefill": [0.08, 0.08], "decode": [0.1, 0.1]}
    assert row["roofline"]["bandwidth_share"] == pytest.approx(1e-5)
    program.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    with pytest.raises(PeerError, match="status 3: broken"):
        build.turn()
