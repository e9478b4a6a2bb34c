"""What a vocabulary of 262,144 words costs: time until the first token of a GGUF file, time and memory to evaluate it.

    python benchmarks/vocabulary.py
    python benchmarks/vocabulary.py --only first-token --runs 5

The model has the shape of Gemma 3 270M and random weights in Q8_0; time and memory do not depend on what they are. Its
vocabulary is laid out as Gemma's is: control tokens, user-defined runs of line ends and blanks, bytes, merges learnt
from WikiText-2 and enough concatenations of those to fill it, single characters last. The file is written once, to
out/vocabulary.

A file's first use packs it and keeps the copy (runtime/engine/kept.py), a later one maps that copy. Both are measured,
with the copies in out/vocabulary/cache, which is emptied before each first use; that of a process that keeps nothing
too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WORDS = 262_144
LEARNT = 60_000  # merges: as many as WikiText-2's 300 thousand words teach
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BLOCKS, HIDDEN, HEADS, HEAD_DIM, INTERMEDIATE = 18, 640, 4, 256, 2048  # Gemma 3 270M
UNUSED = 6_242  # of Gemma 3's tokens that stand at the end, user-defined
LONGEST = 16  # characters of a filler
MARK = "\u2581"
PROMPT = "The tower is 324 metres tall"
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "vocabulary"
CACHE = OUT / "cache"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["first-token", "evaluate"], help="measure one of the two")
    parser.add_argument("--format", default="Q8_0", choices=["Q8_0", "Q4_0", "BF16"], help="of the file (default Q8_0)")
    parser.add_argument("--runs", type=int, default=3, help="of each process until the first token (default 3)")
    parser.add_argument("--threads", type=int, help="of the engine (default: one a core)")
    parser.add_argument("--dtype", default="auto", help="as chinchilla evaluate takes it")
    parser.add_argument("--backend", default="auto", help="as chinchilla evaluate takes it")
    parser.add_argument("--phases", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phases:
        print(json.dumps(phases(args.phases, args.threads)))
        return
    from common import describe_machine, write_result  # which import torch, as not every command does

    os.environ["XDG_CACHE_HOME"] = str(CACHE)
    path = OUT / f"gemma-270m-{args.format.lower()}.gguf"
    if not path.is_file():
        write_model(path, args.format)
    found: dict[str, Any] = {"file_mb": path.stat().st_size / 1e6}
    print(describe_machine())
    if args.only != "evaluate":
        found["first_token"] = measure_first_token(path, args)
    if args.only != "first-token":
        found["evaluate"] = measure_evaluation(path, args)
    write_result(OUT, "vocabulary", found)
    print(json.dumps(found))


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process took, from its start to its end; output: its standard output; first_s: until that began."""

    wall_s: float
    first_s: float
    cpu_s: float
    peak_mb: float
    output: str


def run(command: Sequence[str], **variables: str) -> Usage:
    """Run a command with variables in its environment. Exits where it fails."""
    begun, environment = time.perf_counter(), os.environ | variables
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout is not None
        output = process.stdout.read(1)
        first = time.perf_counter() - begun
        output += process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return Usage(time.perf_counter() - begun, first, cpu, usage.ru_maxrss / 1e3, output)


def measure_first_token(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of whole processes, and of the phases within others."""
    from common import markdown

    threads = [] if args.threads is None else ["--threads", str(args.threads)]
    whole = [sys.executable, "-m", "chinchilla_lm", "generate", str(path), "--prompt", PROMPT, *threads]
    parts = [sys.executable, __file__, "--phases", str(path), *threads]
    uses: dict[str, list[Usage]] = {"keeps nothing": [], "first use": [], "second use": [], "later use": []}
    for _ in range(args.runs):
        shutil.rmtree(CACHE, ignore_errors=True)
        for name, runs in uses.items():
            keep = "0" if name == "keeps nothing" else "1"
            runs.append(run([*whole, "--max-new-tokens", "8"], CHINCHILLA_KEEP=keep))
    found: dict[str, Any] = {}
    keys = ("first_s", "wall_s", "cpu_s", "peak_mb")
    for name, runs in uses.items():
        found[name] = {key: _median(getattr(one, key) for one in runs) for key in keys}
    rows = [[name, *(f"{one[key]:,.{0 if key == 'peak_mb' else 2}f}" for key in keys)] for name, one in found.items()]
    print(f"\nwhole processes that write 8 tokens, {args.runs} runs, medians\n")
    print(markdown(["process", "first token s", "end s", "CPU s", "peak MB"], rows))
    for name, keep in (("phases without a copy", "0"), ("phases with a copy", "1")):
        inside = [json.loads(run(parts, CHINCHILLA_KEEP=keep).output) for _ in range(args.runs)]
        found[name] = {
            part: {kind: _median(one[part][kind] for one in inside) for kind in ("wall_s", "cpu_s")}
            for part in inside[0]
        }
        rows = [[part, f"{one['wall_s']:.2f}", f"{one['cpu_s']:.2f}"] for part, one in found[name].items()]
        print(f"\n{name}, {args.runs} runs, medians\n")
        print(markdown(["phase", "wall s", "CPU s"], rows))
    return found


def measure_evaluation(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One process: perplexity over WikiText-2's test split."""
    from common import data_folder, markdown

    command = [sys.executable, "-m", "chinchilla_lm", "evaluate", str(path), "--task", "language-modeling"]
    command += ["--data", data_folder("wikitext2"), "--dtype", args.dtype, "--backend", args.backend, "--json"]
    used = run([*command, *([] if args.threads is None else ["--threads", str(args.threads)])])
    result = json.loads(used.output)
    perplexity = result["metrics"]["perplexity"]["value"]
    row = [f"{used.wall_s:.1f}", f"{used.cpu_s:.1f}", f"{used.peak_mb:,.0f}", result["n"], f"{perplexity:.6g}"]
    print("\nevaluate on WikiText-2\n")
    print(markdown(["wall s", "CPU s", "peak MB", "windows", "perplexity"], [row]))
    found = {"wall_s": used.wall_s, "cpu_s": used.cpu_s, "peak_mb": used.peak_mb}
    return found | {"windows": result["n"], "perplexity": perplexity}


def phases(path: str, threads: int | None) -> dict[str, dict[str, float]]:
    """Seconds of each step to the first token in this process, which has just begun."""
    found: dict[str, dict[str, float]] = {}
    last = {"wall_s": _started(), "cpu_s": 0.0}

    def lap(name: str) -> None:
        now = {"wall_s": time.time(), "cpu_s": time.process_time()}
        found[name] = {kind: now[kind] - last[kind] for kind in now}
        last.update(now)

    lap("Python, numpy")
    from chinchilla_lm.runtime.loading import load

    lap("import")
    if os.environ.get("CHINCHILLA_KEEP") == "0":
        from chinchilla_lm.models.gguf_file import open_file

        lap("import torch")
        with open_file(Path(path)):
            lap("read the header once")
    session = load(path, threads=threads)
    assert session.tokenizer is not None
    lap("load, with the tokenizer")
    for _ in session.generate(PROMPT, 1, stream=True):
        pass
    lap("prefill, first token")
    return found


def _started() -> float:
    """When this process began, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def _median(values: Any) -> float:
    return float(np.median(list(values)))


def learn_merges() -> list[str]:
    """Tokens that byte-pair encoding learns from WikiText-2, in the order of their merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(MARK, behavior="merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=LEARNT, show_progress=False, max_token_length=LONGEST)
    tokenizer.train_from_iterator(_texts(), trainer)
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)


def _texts() -> Iterator[str]:
    from common import data_folder

    for path in sorted(Path(data_folder("wikitext2")).glob("wiki.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield line.replace(" ", MARK)


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types, WORDS of each."""
    named = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN), ("<mask>", USER_DEFINED)]
    named += [(f"<unused{i}>", USER_DEFINED) for i in range(100)]
    named += [("<start_of_turn>", CONTROL), ("<end_of_turn>", CONTROL)]
    named += [("\n" * count, USER_DEFINED) for count in range(1, 32)]
    named += [(" " * count, USER_DEFINED) for count in range(2, 32)]
    named += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    learnt = learn_merges()
    letters = [token for token in learnt if len(token) == 1 and token != "\n"]
    merges = [token for token in learnt if len(token) > 1]
    room = WORDS - len(named) - len(letters) - UNUSED
    merges = _filled(merges, {*learnt, *(token for token, _ in named)}, room)
    named += [(token, NORMAL) for token in [*merges, *letters]]
    named += [(f"<unused{i}>", USER_DEFINED) for i in range(100, 100 + UNUSED)]
    first = len(named) - UNUSED - len(merges) - len(letters)
    scores = [-1000.0 if kind != NORMAL else float(first - index) for index, (_, kind) in enumerate(named)]
    return [token for token, _ in named], scores, [kind for _, kind in named]


def _filled(merges: list[str], known: set[str], room: int) -> list[str]:
    """Merges, and pairs of them chosen at random, which would be merges of a longer text."""
    random = np.random.default_rng(0)
    made, behind = list(merges), [token for token in merges if not token.startswith(MARK)]
    while len(made) < room:
        for left, right in zip(
            random.integers(len(merges), size=room), random.integers(len(behind), size=room), strict=True
        ):
            token = merges[left] + behind[right]
            if len(token) <= LONGEST and token not in known and len(made) < room:
                known.add(token)
                made.append(token)
    return made


def write_model(path: Path, form: str) -> None:
    """The file, wholly or not at all."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    writer, random = GGUFWriter(temporary, "gemma3"), np.random.default_rng(0)
    add_metadata(writer)
    kind = GGMLQuantizationType[form]
    for name, shape in tensors():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        values = random.standard_normal(shape, np.float32)
        values *= np.float32(0.04 if name == "token_embd.weight" else shape[1] ** -0.5)
        parts = [quantize(part, kind) for part in np.array_split(values, max(1, values.size // 2**22))]
        writer.add_tensor(name, np.concatenate(parts), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)


def add_metadata(writer: Any) -> None:
    """What llama.cpp's converter writes of Gemma 3."""
    writer.add_context_length(32_768)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(512)
    tokens, scores, types = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, rows first."""
    yield "token_embd.weight", (WORDS, HIDDEN)
    yield "output_norm.weight", (HIDDEN,)
    for block in range(BLOCKS):
        for name, shape in {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * HEAD_DIM, HIDDEN),
            "attn_k": (HEAD_DIM, HIDDEN),
            "attn_v": (HEAD_DIM, HIDDEN),
            "attn_q_norm": (HEAD_DIM,),
            "attn_k_norm": (HEAD_DIM,),
            "attn_output": (HIDDEN, HEADS * HEAD_DIM),
            "post_attention_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (INTERMEDIATE, HIDDEN),
            "ffn_up": (INTERMEDIATE, HIDDEN),
            "ffn_down": (HIDDEN, INTERMEDIATE),
            "post_ffw_norm": (HIDDEN,),
        }.items():
            yield f"blk.{block}.{name}.weight", shape


if __name__ == "__main__":
    main()
