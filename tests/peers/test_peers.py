"""Races with other programs: their workers, environments and files, and the tables of what came out."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.peers import outcome
from chinchilla_lm.peers.leads import alone, leads, leads_table
from chinchilla_lm.peers.process import PeerError, Process
from chinchilla_lm.peers.rows import ratios
from chinchilla_lm.peers.sources import Sources
from chinchilla_lm.peers.table import OURS, PEERS, WORKERS, chosen
from tests.models.tiny import saved

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


def test_the_gguf_file_is_the_model_in_float32(tmp_path: Path):
    checkpoint = load(saved(tmp_path, "llama-gqa")[1])
    again = load(Sources("", checkpoint, tmp_path / "below").of("gguf"))
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    other = Sources("", load(saved(tmp_path / "other", "gpt2")[1]), tmp_path / "below")
    with pytest.raises(InputError, match=r"model_type gpt2 is not one of llama.*; leave llama\.cpp out of --peers$"):
        other.of("gguf")


def test_tables_ratios_and_charts():
    rows: list[dict[str, Any]] = [
        {"engine": OURS, "format": "int8", "decode_tokens_per_s": 300.0, "latency_ms": {"p50": 2.0, "p95": 3.0}},
        {"engine": "a<b", "format": "q8", "decode_tokens_per_s": 100.0, "latency_ms": {"p50": 6.0, "p95": 9.0}},
        {"engine": "c", "format": "-", "error": "it | failed"},
    ]
    for row in rows:
        row["cache"] = ""
    rows[0] |= {"bits_per_weight": 8.25, "cache": "bf16", "threads": {"prefill": 2, "decode": 2}}
    rows[1] |= {"bits_per_weight": 8.5, "cache": "q8_0", "threads": {"prefill": 2, "decode": 1}, "note": "by itself"}
    rows[1]["roofline"] = {"bandwidth_share": 0.5, "gemm_share": None, "gemm_fault": "the roof is too low: 112 %"}
    rows[0]["spread"] = {"decode_tokens_per_s": [290.0, 310.0]}
    rows[0]["seconds"] = {"decode": [1.0, 2.0, 1.0], "batch": [1.0]}
    rows[1]["seconds"] = {"decode": [3.0, 6.0, 4.0]}
    (found,) = ratios(rows)
    assert (found["over_engine"], found["measure"], found["value"]) == ("a<b", "decode", 3.0)
    assert found["spread"] == [3.0, 3.5]
    names, cells = outcome.table(rows)
    assert names[:7] == [
        *("engine", "format", "bits a weight", "keys, values", "threads", "decode tokens/s"),
        "p50 ms",
    ]
    assert names[7:] == ["p95 ms", "of bandwidth", "of products", "note", "failed"]
    assert cells[0] == [OURS, "int8", "8.25", "bf16", "2", "300 [290, 310]", "2.00", "3.00", "", "", "", ""]
    assert cells[1][2:5] == ["8.50", "q8_0", "prefill 2, decode 1"]
    assert cells[1][8:11] == ["50%", "the roof is too low: 112 %", "by itself"]
    document = outcome.document("title", [outcome.markdown_table(names, cells)], ["a note"])
    assert "it \\| failed" in document
    assert document.endswith("\n\n- a note\n")
    drawing = outcome.chart("model", rows)
    assert "a&lt;b q8, 8.5 bits, q8_0 keys" in drawing
    assert f"{OURS} int8, 8.2 bits, bf16 keys" in drawing
    assert drawing.count("<rect") == 3  # the ground and two bars


def test_leads_are_over_the_best_of_as_many_bits_and_over_the_best_of_all():
    def row(
        engine: str, form: str, bits: float, decode: list[float], prefill: float, cache: str = ""
    ) -> dict[str, Any]:
        seconds = {"decode": decode, "prefill": [prefill] * 3}
        return {"engine": engine, "format": form, "cache": cache, "bits_per_weight": bits, "seconds": seconds}

    rows = [
        row(OURS, "int8", 8.25, [2.0, 2.0, 2.0], 1.0, "int8"),
        row(OURS, "int4", 5.0, [1.0, 1.0, 1.0], 2.0, "int8"),
        row(OURS, "int4-g64", 4.2, [1.5, 1.5, 1.5], 2.0, "int8"),
        row("a", "Q8_0", 8.51, [6.0, 8.0, 6.0], 8.0, "f16"),
        row("a", "Q8_0", 8.51, [9.0, 9.0, 9.0], 3.0, "q8_0"),
        row("b", "int8", 8.6, [3.0, 3.0, 3.0], 2.0),  # 0.35 bits more: another bargain
        row("a", "Q4_1", 5.25, [5.0, 5.0, 5.0], 9.0, "f16"),
        row("a", "Q4_0", 4.55, [2.5, 2.5, 2.5], 9.0, "f16"),
        {"engine": "c", "format": "int8", "cache": "", "bits_per_weight": None, "error": "failed"},
    ]
    found = leads(rows, list(ratios(rows)))
    named = {
        (one["format"], one["bits"], one["measure"]): (one["over_engine"], one["over_cache"], one["value"])
        for one in found
    }
    assert named == {
        ("int8", 8.25, "prefill"): ("a", "q8_0", 3.0),
        ("int8", 8.25, "decode"): ("a", "f16", 3.0),
        ("int4", 5.0, "prefill"): ("a", "f16", 4.5),
        ("int4", 5.0, "decode"): ("a", "f16", 5.0),
        ("int8", None, "prefill"): ("b", "", 2.0),
        ("int4", None, "decode"): ("a", "f16", 2.5),
    }
    assert [one["format"] for one in alone(rows)] == ["int4-g64"]
    names, cells = leads_table(found)
    assert names == ["ours", "over the", "prefill", "decode"]
    assert cells[0] == [
        *("int8/int8", "best of 8.2 ± 0.3 bits"),
        *("3.00 [3.00, 3.00] a Q8_0/q8_0", "3.00 [3.00, 3.50] a Q8_0/f16"),
    ]
    assert cells[2][:2] == ["our best", "best of all"]
    assert cells[2][3] == "2.50 [2.50, 2.50] int4/int8 over a Q4_0/f16"
    assert leads(rows[:3], []) == []


def test_single_steps_are_timed(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("protocol", WORKERS / "protocol.py")
    assert spec is not None
    assert spec.loader is not None
    protocol = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(protocol)
    now = iter([0.0, 5.0, 6.0, 8.0])
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: next(now))
    assert protocol.phases(lambda: 1, lambda token: token + 1, 3) == [5.0, 1.0, 2.0]
