"""A searched mix of dropped links and formats beside every single format, all as fast: SmolLM2 or a tagger.

    python benchmarks/mixed.py lm
    python benchmarks/mixed.py ner FOLDER      # a tagger that benchmarks/ner.py left: out/bench/minilm-ner/model
    python benchmarks/mixed.py lm --speedup 2.5 --formats int8,int4 --singles int8 int4

`mix` is `chinchilla compress --formats`, which may drop links and gives each that is left a format; `int8` and so on is
the same command with that format alone, which drops links as far as it must to be as fast. All are held to the same
speed-up over the original in bfloat16, end to end in the engine, recovered on as many tokens, packed by the same solver
and judged on the whole test split, with a certificate each. KL is that of the packed program to the original on the
test split. What a run measured it keeps: the benchmark goes on where it was stopped, and what drops cost is measured
once. SmolLM2 comes as Q4_1, whose values `int4` gives back as they were: on this model that format is flattered.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from common import data_folder, describe_machine, markdown, packaged_model, write_result

from chinchilla_lm import api
from chinchilla_lm.errors import ContractError

CASES: dict[str, dict[str, Any]] = {
    "ner": {
        "fields": {"task": "token-classification", "data": "conll2003", "margin": 1.0},
        "recover": {"tokens": 150_000},
        "speedup": 3.0,
        "metric": "entity_f1",
    },
    "lm": {
        "fields": {"task": "language-modeling", "data": "wikitext2", "margin": 20.0, "max_measures": 60},
        "calibration": "exllama_cal/wiki.utf8",
        "recover": {"tokens": 60_000},
        "speedup": 2.5,
        "metric": "perplexity",
    },
}
SINGLES = ("int8", "int8-row", "int4", "int4-g128")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=tuple(CASES))
    parser.add_argument("model", nargs="?")
    parser.add_argument("--speedup", type=float, help="over the original in bfloat16 (default 3 for ner, 2.5 for lm)")
    parser.add_argument("--formats", default="bf16," + ",".join(SINGLES), help="of the mix, by comma, or auto")
    parser.add_argument("--singles", nargs="+", default=SINGLES, help="formats that are tried alone")
    parser.add_argument("--recover-tokens", type=int, help="that each plan learns from; 0: none")
    parser.add_argument("--threads", type=int, help="of the CPU (default: one for each core)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    if args.case == "ner" and args.model is None:
        raise SystemExit("ner needs the folder of a tagger; run python benchmarks/ner.py minilm --speedups 2.0 first")
    model = args.model or packaged_model("SmolLM2-135M-Instruct")
    folder = args.out / f"mixed-{args.case}"
    runs = {"mix": args.formats} | {name: name for name in args.singles}
    found = []
    for name, formats in runs.items():
        begun = time.perf_counter()
        found.append(run(model, formats, args, folder / name, folder / "mix") | {"plan": name})
        print(f"{' | '.join(line(found[-1]))} | {time.perf_counter() - begun:.0f} s", flush=True)
    print(describe_machine())
    metric = CASES[args.case]["metric"]
    columns = ["plan", "links", "MB", "bits a weight", "speed-up", f"change of {metric}", "KL, nats", "certificate"]
    print(markdown(columns, [line(one) for one in found]))
    write_result(args.out, f"mixed-{args.case}", {"model": model, "rows": found})


def run(model: str, formats: str, args: argparse.Namespace, folder: Path, first: Path) -> dict[str, Any]:
    """One run, or what it left: its figures, or why there are none. first: the run whose costs of drops are used."""
    case = CASES[args.case]
    fields = dict(case["fields"])
    fields["data"] = data_folder(fields["data"])
    if "calibration" in case:
        fields["calibration"] = data_folder(case["calibration"])
    tokens = case["recover"]["tokens"] if args.recover_tokens is None else args.recover_tokens
    fields["recover"] = {"tokens": tokens} if tokens else {"epochs": 0}
    if args.threads is not None:
        fields["threads"] = args.threads
    if folder != first and not folder.exists():
        share_costs(first, folder)
    done = folder / "figures.json"
    if not done.exists():
        speedup = args.speedup or case["speedup"]
        try:
            api.compress(model, out=str(folder), formats=formats, speedup=speedup, dtype="bfloat16", **fields)
        except ContractError as error:
            return {"refused": str(error)}
        done.write_text(json.dumps(figures(json.loads((folder / "report.json").read_text()))) + "\n")
    figures_of: dict[str, Any] = json.loads(done.read_text())
    return figures_of


def share_costs(first: Path, folder: Path) -> None:
    """Give a run folder what drops cost, as another one measured it."""
    folder.mkdir(parents=True)
    shutil.copytree(first / "measurements", folder / "measurements")
    for name in ("costs.json", "recipe.yaml"):
        shutil.copy(first / name, folder / name)
    scored = json.loads((first / "stages.json").read_text())["score"]
    (folder / "stages.json").write_text(json.dumps({"score": scored}))


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """What a report says of its result."""
    certificate, speedup, packed = report["certificate"], report["speedup"], report["packed"]
    agreement = report["comparisons"][0]["agreement"]
    return {
        "links": report["rows"][-1]["links"],
        "bytes": packed["bytes"],
        "bits": packed["bits"],
        "format": packed["format"],
        "speedup": {key: speedup[key] for key in ("value", "low", "high")},
        "change": {key: certificate[key] for key in ("difference", "low", "high")},
        "kl": None if agreement is None else agreement["kl"]["value"],
        "passed": certificate["passed"],
        "seconds": report["seconds"],
    }


def line(found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if "refused" in found:
        return [found["plan"], *["–"] * 6, found["refused"]]
    speedup, change = found["speedup"], found["change"]
    return [
        found["plan"],
        str(found["links"]),
        f"{found['bytes'] / 1e6:.1f}",
        f"{found['bits']:.2f}",
        f"{speedup['value']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]",
        f"{change['difference']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]",
        "–" if found["kl"] is None else f"{found['kl']:.4f}",
        "passed" if found["passed"] else "failed",
    ]


if __name__ == "__main__":
    main()
