"""The race itself: whole ones on a small model, who fails in them, and builds of llama-bench in turn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.cli import main
from chinchilla_lm.console import Console
from chinchilla_lm.peers import outcome
from chinchilla_lm.peers.contest import race, read_memory, read_quality, spread
from chinchilla_lm.peers.entrant import Entrant, pilot
from chinchilla_lm.peers.llama_bench import LlamaBench
from chinchilla_lm.peers.process import PeerError
from chinchilla_lm.peers.rows import as_row, build_row, ratios
from chinchilla_lm.peers.run import _tell_apart
from chinchilla_lm.peers.table import FLOATS, OURS
from chinchilla_lm.peers.work import Work
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.measuring.roof import Roof
from chinchilla_lm.runtime.packing import write_packed

QUIET = Console(quiet=True)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Roof:
    """The roof of a machine that reads 10 GB/s and multiplies 100 GFLOP/s, whatever the numbers."""
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.roof.measure_bandwidth", lambda size: 10.0)
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.roof.measure_products", lambda kind: 100.0)
    return Roof()


@pytest.fixture
def short_race(measured: Roof, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of a few tokens, on a machine that was measured already."""
    monkeypatch.setattr("chinchilla_lm.peers.contest.LEAST_ROUNDS", 1)
    monkeypatch.setattr("chinchilla_lm.peers.contest.MOST_ROUNDS", 1)
    monkeypatch.setattr("chinchilla_lm.peers.work.STEPS", 4)
    for place in ("entrant", "work"):
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
    rows = {(row["engine"], row["format"], row["cache"]): row for row in result["rows"]}
    assert set(rows) == {
        (OURS, "bf16", "bf16"),
        *((OURS, form, cache) for form in ("int8", "int4") for cache in ("int8", "bf16")),
        ("transformers", FLOATS[-1], FLOATS[-1]),
        ("onnxruntime", "-", ""),
    }
    assert "no way to run a model for language-modeling" in rows["onnxruntime", "-", ""]["error"]
    ours, theirs = rows[OURS, "bf16", "bf16"], rows["transformers", FLOATS[-1], FLOATS[-1]]
    assert theirs["bits_per_weight"] == {"float32": 32.0, "bfloat16": 16.0}[FLOATS[-1]]
    assert rows[OURS, "int4", "int8"]["bits_per_weight"] < rows[OURS, "int8", "int8"]["bits_per_weight"]
    assert ours["metrics"]["perplexity"] == pytest.approx(theirs["metrics"]["perplexity"], rel=0.02)
    for row in (ours, theirs):
        assert min(row[key] for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "peak_mb", "bytes")) > 0
        assert set(row["threads"].values()) == {1}
        assert row["roofline"]["gemm_dtype"] in ("float32", "bfloat16")
        assert row["roofline"]["read_bytes"] == row["decode_bytes"]
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p95"]
        assert row["first_token_ms"]["p50"] == pytest.approx(1e3 * float(np.median(row["seconds"]["prefill"])))
    assert any(one["measure"] == "batch" for one in result["ratios"])
    assert None in {one["bits"] for one in result["leads"]}
    assert {one["bytes"] for one in result["roofline"]["reads"]} == {
        row["decode_bytes"] for row in result["rows"] if "decode_bytes" in row
    }
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
    """A process that answers from a script: seconds of `write`, or an error; the last one again and again."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.open, self.running, self.asked = answers, True, True, [""]

    def call(self, name: str, **words: Any) -> Any:
        assert self.open
        assert self.running, "it was stopped"
        self.asked.append(name)
        if name == "write" and words["new"] == 4:
            return [0.0] * 4  # what only wakes
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return [answer] * words["new"] if name == "write" else answer

    def go(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def close(self) -> None:
        self.open = False


class ByMeasure(Stub):
    """One that takes as long as its measure and its threads say."""

    def __init__(self, seconds: dict[str, float]) -> None:
        super().__init__([0.0])
        self.seconds = seconds

    def call(self, name: str, **words: Any) -> Any:
        rows, new = len(words["prompts"]), words["new"]
        measure = "batch" if rows > 1 else "prefill" if new == 1 else "decode"
        self.answers = [self.seconds[measure]]
        return super().call(name, **words)


WORK = Work("language-modeling", 50, 100, 8, 33)


def entrant(name: str, form: str, process: Any) -> Entrant:
    return Entrant(name, form, processes={1: process}, threads=dict.fromkeys(WORK.measures, 1))


def test_each_measure_has_the_threads_that_are_fastest_for_it():
    made = {
        4: ByMeasure({"prefill": 1.0, "decode": 3.0, "batch": 2.0}),
        2: ByMeasure({"prefill": 2.0, "decode": 1.0, "batch": 2.0}),
        1: Stub([PeerError("out of memory")]),
    }
    processes, threads, load_s = pilot(lambda number: (made[number], number / 10), WORK, [4, 2, 1])  # type: ignore[arg-type, return-value]
    assert threads == {"prefill": 4, "decode": 2, "batch": 4}, "a tie goes to more threads"
    assert dict[int, object](processes) == {4: made[4], 2: made[2]}
    assert load_s == 0.4
    assert [made[number].open for number in (4, 2, 1)] == [True, True, False]
    assert not made[4].running


def test_a_number_of_threads_that_no_measure_wants_is_let_go():
    slow, fast = (ByMeasure(dict.fromkeys(WORK.measures, seconds)) for seconds in (2.0, 1.0))
    processes, threads, _ = pilot(lambda number: ({2: slow, 1: fast}[number], 0.0), WORK, [2, 1])  # type: ignore[arg-type, return-value]
    assert (set(threads.values()), set(processes)) == ({1}, {1})
    assert (slow.open, fast.open) == (False, True)


def test_long_contexts_run_on_the_threads_of_decoding():
    work = Work("language-modeling", 50, 2000, 8, 33)
    made = {
        2: ByMeasure({"prefill": 1.0, "decode": 2.0, "batch": 1.0}),
        1: ByMeasure(dict.fromkeys(WORK.measures, 1.5)),
    }
    _, threads, _ = pilot(lambda number: (made[number], 0.0), work, [2, 1])  # type: ignore[arg-type, return-value]
    assert threads == {"prefill": 2, "decode": 1, "batch": 2, "long": 1}


def test_who_cannot_be_tried_is_passed_over():
    with pytest.raises(PeerError, match="out of memory"):
        pilot(lambda _: (Stub([PeerError("out of memory")]), 0.1), WORK, [2, 1])  # type: ignore[arg-type, return-value]
    dies_later = Stub([1.0] * 9 + [PeerError("crashed")])
    good = Stub([5.0])
    processes, threads, _ = pilot(lambda number: ({2: dies_later, 1: good}[number], 0.0), WORK, [2, 1])  # type: ignore[arg-type, return-value]
    assert (set(processes), set(threads.values()), dies_later.open) == ({1}, {1}, False)
    stopped = Stub([1.0])
    others = iter([stopped, Stub([KeyboardInterrupt()])])
    with pytest.raises(KeyboardInterrupt):
        pilot(lambda _: (next(others), 0.1), WORK, [2, 1])  # type: ignore[arg-type, return-value]
    assert not stopped.open


def test_who_fails_late_keeps_its_speeds_and_nobody_left_ends_the_race(measured: Roof):
    rounds = [1.0] * (1 + 10) * 3
    good = entrant("a", "x", Stub([*rounds, 12.0, PeerError("died")]))
    bad = entrant("b", "y", Stub([1.0, PeerError("crashed")]))
    assert race([good, bad], [], WORK, 0.0, QUIET) == 10
    read_memory([good, bad])
    read_quality([good, bad], replace(WORK, windows=[[1, 2, 3]]), QUIET)
    row = as_row(good, WORK, measured, 1.0)
    assert (row["decode_tokens_per_s"], row["peak_mb"], row["error"]) == (1.0, 12.0, "quality: died")
    assert (row["latency_ms"]["p50"], row["first_token_ms"]["p95"]) == (1000.0, 1000.0)
    assert row["rounds"] == dict.fromkeys(WORK.measures, 10)
    assert as_row(bad, WORK, measured, 1.0)["error"] == "crashed"
    assert "seconds" not in as_row(bad, WORK, measured, 1.0)
    gone = entrant("c", "z", Stub([PeerError("gone")]))
    assert race([gone], [], WORK, 60.0, QUIET) == 0


@pytest.mark.parametrize(("length", "alone", "raced"), [(16, 200, 1000), (384, 10, 42), (20_000, 1, 1)])
def test_a_tagger_s_work_is_bounded_in_tokens(length: int, alone: int, raced: int):
    """A round of 4,096 tokens alone, 200 texts at most, and a pass of 16,384, from all over the data."""
    texts = [[number] * length for number in range(1000)]
    work = Work("token-classification", 1000, 512, texts=texts)
    assert [one[0] for one in work.alone(0)] == list(range(alone))
    assert [one[0] for one in work.alone(3)] == [(3 * alone + i) % 1000 for i in range(alone)]
    assert len(work.raced) == raced
    assert work.raced[-1][0] >= (900 if raced > 1 else 0)


class Noisy(ByMeasure):
    """Decodes at 1 s and 2 s in turn for so many times, then at 1 s."""

    def __init__(self, times: int) -> None:
        super().__init__(dict.fromkeys(WORK.measures, 1.0))
        self.left = times

    def call(self, name: str, **words: Any) -> Any:
        if len(words["prompts"]) == 1 and words["new"] == 33:
            self.left -= 1
            self.seconds["decode"] = 1.0 + (self.left > 0 and self.left % 2)
        return super().call(name, **words)


def test_wide_quartiles_get_more_rounds_up_to_a_limit(measured: Roof):
    """Only of what is wide, and of ours beside it."""
    steady = ByMeasure(dict.fromkeys(WORK.measures, 1.0))
    ours, calm = entrant(OURS, "int8", ByMeasure(dict.fromkeys(WORK.measures, 0.5))), entrant("a", "x", steady)
    settles, never = entrant("b", "y", Noisy(8)), entrant("c", "z", Noisy(1000))
    everybody = [ours, calm, settles, never]
    assert race(everybody, [], WORK, 0.0, QUIET) == 10
    rounds = [len(one.seconds["decode"]) for one in everybody]
    assert (rounds[0], rounds[1], rounds[3]) == (30, 10, 30)
    assert 10 < rounds[2] < 30
    assert all(len(one.seconds["prefill"]) == 10 for one in everybody)
    rows = [as_row(one, WORK, measured, 1.0) for one in everybody]
    assert [list(row["wide"]) for row in rows] == [[], [], [], ["decode"]]
    names, cells = outcome.table(rows)
    assert [line[names.index("rounds")] for line in cells] == ["10 to 30", "10", f"10 to {rounds[2]}", "10 to 30"]
    assert cells[3][names.index("note")].endswith("of the median apart after 30 rounds")
    assert {one["over_engine"]: one["value"] for one in ratios(rows) if one["measure"] == "prefill"} == {
        "a": 2.0,
        "b": 2.0,
        "c": 2.0,
    }


def test_how_wide_is_by_the_quartiles_of_rates():
    assert spread([1.0] * 10) == 0.0
    rates = np.array([80.0, 90.0, 100.0, 110.0, 120.0])
    assert spread(list(1 / rates)) == pytest.approx(0.2)


# What the two kinds of builds print, cut down to what is read: one thread decodes twice as fast, two read faster.
SHORT_RUNS = """
case "$*" in
*"-p 8 -n 0"*) echo '[{"n_prompt": 8, "n_gen": 0, "avg_ts": '$((threads * 50))', "type_k": "q8_0"}]'; exit ;;
*"-p 0 -n 4"*) echo '[{"n_prompt": 0, "n_gen": 4, "avg_ts": '$((10 / threads))', "type_k": "q8_0"}]'; exit ;;
esac
"""
BEGINNING = """#!/bin/sh
case "$*" in *"-t 1 "*) threads=1 ;; *) threads=2 ;; esac
"""
LLAMA_BENCHES = {
    "ik_llama.cpp": f"""{BEGINNING}{SHORT_RUNS}
case "$*" in
*--help) echo "  -gp <pp,tg>      (default: )" ;;
*"-gp 1024,32"*) echo '[{{"n_prompt": 1024, "n_gen": 32, "avg_ts": 5}}]' ;;
esac
""",
    "llama.cpp": f"""{BEGINNING}{SHORT_RUNS}
case "$*" in
*--help) echo "  -d, --n-depth <n>   (default: 0)" ;;
*"-d 1024"*) echo '[{{"n_prompt": 0, "n_gen": 32, "n_depth": 1024, "avg_ts": 5}}]' ;;
esac
""",
    "older": f"{BEGINNING}{SHORT_RUNS}",
}


@pytest.mark.parametrize("kind", LLAMA_BENCHES)
def test_a_build_of_llama_bench_runs_in_turn(
    tmp_path: Path, kind: str, measured: Roof, monkeypatch: pytest.MonkeyPatch
):
    program, model = tmp_path / "llama-bench", tmp_path / "model.gguf"
    program.write_text(LLAMA_BENCHES[kind])
    program.chmod(0o755)
    model.write_bytes(b"0" * 1000)
    work = Work("language-modeling", 50, 2000, 8, 4)
    build = LlamaBench(f"{program} -rtr 1", "Q8_0", work)
    build.prepare(model, [2, 1])
    build.bits, build.read = 8.5, 750
    for _ in range(2):
        for measure in build.measures:
            build.turn(measure)
    row = build_row(build, [], work, measured)
    assert (row["engine"], row["command"]) == ("llama-bench -rtr 1", f"{program} -rtr 1")
    assert (row["bits_per_weight"], row["cache"]) == (8.5, "q8_0")
    assert row["threads"] == {"prefill": 2, "decode": 1} | ({} if kind == "older" else {"long": 1})
    assert (row["prefill_tokens_per_s"], row["decode_tokens_per_s"]) == (100.0, 10.0)
    long = {} if kind == "older" else {"long": [0.2, 0.2]}
    assert row["seconds"] == {"prefill": [0.08, 0.08], "decode": [0.1, 0.1]} | long
    assert row.get("decode_long_tokens_per_s") == (5.0 if long else None)
    assert (row["bytes"], row["decode_bytes"]) == (1000, 750)
    assert row["roofline"]["bandwidth_share"] == pytest.approx(0.75e-6)
    program.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    build.turn("decode")
    assert build.error == "ended with status 3: broken"
    program.write_text("#!/bin/sh\necho '[1]'\n")
    build.turn("decode")
    assert "its JSON" in build.error
    assert not build.alive


def test_what_llama_bench_does_not_tell_is_llama_cpps(measured: Roof):
    build, other = (LlamaBench(f"/{place}/llama-bench -rtr 1", "Q8_0", WORK) for place in "ab")
    _tell_apart([build, other])
    assert (build.name, other.name) == tuple(f"llama-bench (/{place}/llama-bench -rtr 1)" for place in "ab")
    rows = [
        {"engine": "llama.cpp", "format": form, "cache": cache, "metrics": {"perplexity": one}}
        for form, cache, one in (("Q8_0", "q8_0", 8.0), ("Q8_0", "f16", 9.0), ("Q4_0", "f16", 10.0))
    ]
    build.cache = "f16"
    assert "metrics" not in build_row(build, rows, WORK, measured), "it was not in the race"
    build.seconds = {"prefill": [1.0], "decode": [1.0]}
    row = build_row(build, rows, WORK, measured)
    assert (row["metrics"], row["metrics_of"]) == ({"perplexity": 9.0}, "llama.cpp")
    assert "9.000*" in outcome.table([row])[1][0]
    assert "metrics" not in build_row(build, rows[2:], WORK, measured)
