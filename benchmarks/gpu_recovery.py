"""Recovery of SmolLM2-135M on a GPU: perplexity on WikiText-2 before and after, at the lengths that a search found.

    python benchmarks/gpu_recovery.py MODEL.gguf DATA COSTS.json --speedups 1.3 1.5 --tokens 50000000
    python benchmarks/gpu_recovery.py --prepare DATA        # writes DATA from the data sets, where they are

Plans are the cheapest paths through COSTS.json (`chinchilla score`), at speeds over the whole model by the times that
stand there. Recovery is `chinchilla recover`'s: the outputs' divergence from the original's, bfloat16, the embedding as
it is. Training text: news, speeches, government pages and the calibration text of several languages, none of it
WikiText-2's; it is read several times over. SmolLM2 comes rounded to 4 bits; both models are held against that.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
import zipfile
from pathlib import Path

import torch
from common import data_folder, markdown, write_result

from chinchilla_lm.console import Console
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.pipeline.recovery import Recovery
from chinchilla_lm.plan import CostTable
from chinchilla_lm.recipe import Recipe
from chinchilla_lm.search.dp import solve
from chinchilla_lm.shorten.surgery import shorten

CALIBRATION = ("wiki", "c4", "c4_v2", "tiny", "technical", "code", "multilingual")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("costs", nargs="?", type=Path)
    parser.add_argument("--prepare", type=Path, metavar="DATA")
    parser.add_argument("--speedups", nargs="+", type=float, default=[1.3, 1.5])
    parser.add_argument("--tokens", type=int, default=50_000_000, help="that each short model learns from")
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--hidden", type=float, default=0.0, help="weight of the hidden states at shared boundaries")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    if args.prepare is not None:
        write_texts(args.prepare)
        return
    recipe = Recipe.model_validate(
        {
            "model": args.model, "task": "language-modeling", "data": str(args.data), "device": args.device,
            "train": "train.txt", "dev": "dev.txt", "test": "test.txt", "max_tokens": args.window, "output": "unused",
            "recover": {
                "tokens": args.tokens, "epochs": 1000, "batch_tokens": args.batch_tokens, "learning_rate": args.rate,
                "weights": {"kl": 1.0, "hidden": args.hidden},
            },
        }
    )  # fmt: skip
    console = Console()
    job = Job(recipe, console)
    original = job.ready(job.checkpoint.model)
    table = CostTable.load(args.costs)
    whole = perplexity(job, original)
    print(f"whole: {whole:.2f}", flush=True)
    rows = []
    for speedup in args.speedups:
        plan = solve(table, table.total_us / speedup)
        short = shorten(job.checkpoint.model, plan).to(job.device)
        recovery = Recovery(job, original)
        before = perplexity(job, job.ready(short))
        print(f"{speedup}x: {len(plan.kept)} of {2 * table.num_blocks} links, before {before:.2f}", flush=True)
        begun = time.perf_counter()
        recovery.train(short, f"recovery at {speedup}x")
        seconds = time.perf_counter() - begun
        after = perplexity(job, job.ready(short))
        learnt = recovery.tokens()
        rows.append([f"{speedup}×", f"{len(plan.kept)} links", f"{before:.1f}", f"{after:.2f}", f"{learnt / 1e6:.0f} M",
                     f"{seconds:.0f} s", f"{learnt / seconds:,.0f}"])  # fmt: skip
        print(" | ".join(rows[-1]), flush=True)
    where = torch.cuda.get_device_name() if job.device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}; the whole model has {whole:.2f}")
    columns = ["speed-up", "kept", "before", "after", "tokens", "time", "tokens/s, judging included"]
    print(markdown(columns, rows))
    write_result(args.out, "gpu-recovery", {"whole": whole, "rows": rows, "device": where})


def perplexity(job: Job, model: torch.nn.Module) -> float:
    """On the whole test text."""
    return float(job.test(model).primary.value)


def write_texts(folder: Path) -> None:
    """train.txt, dev.txt and test.txt."""
    parts = [Path(data_folder("exllama_cal"), f"{name}.utf8").read_text("utf-8") for name in CALIBRATION]
    for archive in sorted(Path(data_folder("nltk")).glob("*.zip")):
        with zipfile.ZipFile(archive) as opened:
            texts = [one for one in sorted(opened.namelist()) if one.endswith(".txt")]
            parts += [opened.read(one).decode("utf-8", "replace") for one in texts]
    with lzma.open(Path(data_folder("digitalgov"), "digitalgov.jsonl.xz"), "rt", encoding="utf-8") as lines:
        parts += [json.loads(line)["text"] for line in lines]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("\n\n".join(parts), encoding="utf-8")
    wikitext = Path(data_folder("wikitext2"))
    (folder / "dev.txt").write_text((wikitext / "wiki.valid.tokens").read_text("utf-8")[:200_000], encoding="utf-8")
    (folder / "test.txt").write_text((wikitext / "wiki.test.raw").read_text("utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main()
