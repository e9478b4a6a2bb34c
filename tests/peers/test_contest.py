"""The race itself: whole ones on a small model, who fails in them, and builds of llama-bench in turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.cli import main
from chinchilla_lm.console import Console
from chinchilla_lm.peers import outcome
from chinchilla_lm.peers.contest import Entrant, as_row, pilot, race, read_memory, read_quality
from chinchilla_lm.peers.llama_bench import LlamaBench
from chinchilla_lm.peers.process import PeerError
from chinchilla_lm.peers.run import _build_row, _tell_apart
from chinchilla_lm.peers.table import FLOATS, OURS
from chinchilla_lm.peers.work import Work
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.packing import write_packed

QUIET = Console(quiet=True)


@pytest.fixture
def short_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of a few tokens, on a machine that was measured already."""
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.machine.measure_bandwidth", lambda: 10.0)
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.machine.measure_gemm", lambda dtype: 100.0)
    monkeypatch.setattr("chinchilla_lm.peers.contest.MIN_ROUNDS", 1)
    for place in ("contest", "work"):
        monkeypatch.setattr(f"chinchilla_lm.peers.{place}.STEPS", 4)
        monkeypatch.setattr(f"chinchilla_lm.peers.{place}.SHORT", 4)


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_a_race_from_start_to_end(model_folder, short_race, tmp_path: Path, capsys):
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
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p95"]
        assert row["first_token_ms"]["p50"] == pytest.approx(1e3 * float(np.median(row["seconds"]["prefill"])))
    assert any(one["measure"] == "batch" for one in result["ratios"])
    assert {one["bits"] for one in result["leads"]} == {16, None}
    assert result["quality"] == f"perplexity on 896 tokens of {text}"
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


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_a_packed_model_is_raced_as_it_is_against_its_original(
    model_folder, short_race, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("chinchilla_lm.commands.bench_peers.QUALITY_TOKENS", 256)
    packed = str(tmp_path / "packed")
    write_packed(model_folder(), "int8", tmp_path / "packed")
    words = ["--peers", "transformers", "--tokens", "8", "--new-tokens", "4", "--threads", "1", "--seconds", "0.01"]
    assert main(["bench", packed, "--against", str(model_folder()), *words]) == 0
    out = capsys.readouterr().out
    assert "quality: perplexity on 256 tokens of the language reference of Python" in out
    assert "our best" in out
    assert main(["bench", packed, *words]) == 2
    assert "other programs cannot run" in capsys.readouterr().err
    assert main(["bench", str(model_folder()), "--against", packed, *words]) == 2
    assert "pass the original to --against" in capsys.readouterr().err


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
    assert (row["decode_tokens_per_s"], row["peak_mb"], row["error"]) == (1.0, 12.0, "quality: died")
    assert (row["latency_ms"]["p50"], row["first_token_ms"]["p95"]) == (1000.0, 1000.0)
    assert as_row(bad, work, {}, 1.0)["error"] == "crashed"
    assert "seconds" not in as_row(bad, work, {}, 1.0)
    gone = Entrant("c", "z", Stub([PeerError("gone")]))  # type: ignore[arg-type]
    assert race([gone], [], work, 60.0, QUIET) == 0


# What the two kinds of builds print, cut down to what is read.
SHORT_RUNS = '{"n_prompt": 8, "n_gen": 0, "avg_ts": \'$speed\'}, {"n_prompt": 0, "n_gen": 4, "avg_ts": 10}'
LLAMA_BENCHES = {
    "ik_llama.cpp": f"""#!/bin/sh
case "$*" in *--help) echo "  -gp <pp,tg>      (default: )"; exit ;; esac
case "$*" in *"-t 1 "*) speed=50 ;; *) speed=100 ;; esac
case "$*" in *"-gp 1024,32"*) more=', {{"n_prompt": 1024, "n_gen": 32, "avg_ts": 5}}' ;; esac
echo '[{SHORT_RUNS}'"$more"']'
""",
    "llama.cpp": f"""#!/bin/sh
case "$*" in *--help) echo "  -d, --n-depth <n>   (default: 0)"; exit ;; esac
case "$*" in *"-t 1 "*) speed=50 ;; *) speed=100 ;; esac
case "$*" in
*"-d 1024"*) echo '[{{"n_prompt": 0, "n_gen": 32, "n_depth": 1024, "avg_ts": 5}}]' ;;
*) echo '[{SHORT_RUNS}]' ;;
esac
""",
    "older": f"""#!/bin/sh
case "$*" in *"-t 1 "*) speed=50 ;; *) speed=100 ;; esac
echo '[{SHORT_RUNS}]'
""",
}


@pytest.mark.parametrize("kind", LLAMA_BENCHES)
def test_a_build_of_llama_bench_runs_in_turn(tmp_path: Path, kind: str):
    program, model = tmp_path / "llama-bench", tmp_path / "model.gguf"
    program.write_text(LLAMA_BENCHES[kind])
    program.chmod(0o755)
    model.write_bytes(b"0" * 1000)
    build = LlamaBench(f"{program} -rtr 1", "Q8_0", Work("language-modeling", 50, 2000, 8, 4))
    build.prepare(model, [2, 1])
    build.turn()
    build.turn()
    row = build.row({"bandwidth_gb_s": 1.0}, 0.25)
    assert (row["engine"], row["command"]) == ("llama-bench -rtr 1", f"{program} -rtr 1")
    assert (row["threads"], row["prefill_tokens_per_s"], row["decode_tokens_per_s"]) == (2, 100.0, 10.0)
    long = {} if kind == "older" else {"long": [0.2, 0.2]}
    assert row["seconds"] == {"prefill": [0.08, 0.08], "decode": [0.1, 0.1]} | long
    assert row.get("decode_long_tokens_per_s") == (5.0 if long else None)
    assert (row["bytes"], row["decode_bytes"]) == (1000, 750)
    assert row["roofline"]["bandwidth_share"] == pytest.approx(0.75e-5)
    program.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    with pytest.raises(PeerError, match="status 3: broken"):
        build.turn()
    program.write_text("#!/bin/sh\necho '[1]'\n")
    with pytest.raises(PeerError, match="its JSON"):
        build.turn()


def test_what_llama_bench_does_not_tell_is_llama_cpps(tmp_path: Path):
    work = Work("language-modeling", 50, 100, 8, 4)
    build, other = (LlamaBench(f"/{place}/llama-bench -rtr 1", "Q8_0", work) for place in "ab")
    _tell_apart([build, other])
    assert (build.name, other.name) == tuple(f"llama-bench (/{place}/llama-bench -rtr 1)" for place in "ab")
    rows = [
        {"engine": "llama.cpp", "format": form, "metrics": {"perplexity": one}}
        for form, one in (("Q8_0", 9.0), ("Q4_0", 10.0))
    ]
    assert "metrics" not in _build_row(build, rows, 0.0, {}), "it was not in the race"
    build.seconds = {"prefill": [1.0], "decode": [1.0]}
    row = _build_row(build, rows, 0.0, {})
    assert (row["metrics"], row["metrics_of"]) == ({"perplexity": 9.0}, "llama.cpp")
    assert "9.000*" in outcome.table([row])[1][0]
    assert "metrics" not in _build_row(build, rows[1:], 0.0, {})
