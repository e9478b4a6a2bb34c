"""What a format costs, rounded and solved: SmolLM2-135M-Instruct on WikiText-2, or a tagger on CoNLL-2003.

    python benchmarks/packing.py lm
    python benchmarks/packing.py lm --formats int4-sym-g128 --max-tokens 2048
    python benchmarks/packing.py lm --formats codebook-2x64 codebook-4x256 int4-sym-g64 --distil 65536
    python benchmarks/packing.py ner FOLDER     # a tagger that benchmarks/ner.py left: out/bench/minilm-ner/model

Every format is packed twice, each weight rounded by itself (`round`) and by GPTQ on 65,536 tokens, with `--distil` a
third time, and judged on the whole test split by the engine, against the model in bfloat16. Calibrated on text that
shares no article with WikiText-2 (`exllama_cal/wiki.utf8`), or on the tagger's training split. Bits a weight count
scales, minima, the head and embeddings. SmolLM2 comes as Q4_1: its values are multiples of 4-bit steps in groups of 32,
which `int4` gives back as they were, so that there is nothing to solve; in other groups they are numbers like any
others.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import data_folder, describe_machine, markdown, packaged_model, write_result

from chinchilla_lm import api

FORMATS = ("int8", "int8-row", "int4", "int4-sym", "int4-g64", "int4-sym-g64", "int4-g128", "int4-sym-g128")
METRICS = {
    "lm": ("language-modeling", "wikitext2", "perplexity"),
    "ner": ("token-classification", "conll2003", "entity_f1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=tuple(METRICS))
    parser.add_argument("model", nargs="?")
    parser.add_argument("--formats", nargs="+", default=FORMATS, help="also mixed: int4,head=int8")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest window, of language models (default 512)")
    parser.add_argument("--distil", type=int, default=0, help="tokens to learn from after GPTQ (default 0: not at all)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    task, data, metric = METRICS[args.case]
    if args.case == "ner" and args.model is None:
        raise SystemExit("ner needs the folder of a tagger; run python benchmarks/ner.py minilm --speedups 2.0 first")
    model = args.model or packaged_model("SmolLM2-135M-Instruct")
    fields: dict[str, Any] = {"task": task, "data": data_folder(data)}
    if args.case == "lm":
        fields["max_tokens"] = args.max_tokens
    calibration = data_folder("exllama_cal/wiki.utf8") if args.case == "lm" else fields["data"]
    original = api.evaluate(model, **fields, dtype="bfloat16")["metrics"][metric]["value"]
    rows: list[list[Any]] = [["bfloat16", "", "16", f"{original:.4f}", "", ""]]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for form in args.formats:
            ways = [("round", 0), ("gptq", 0), ("gptq", args.distil)][: 3 if args.distil else 2]
            for solver, tokens in ways:
                out = str(Path(folder) / f"{form}-{solver}-{tokens}")
                text = None if solver == "round" else calibration
                packed = api.pack(model, format=form, out=out, solver=solver, calibration=text, distil=tokens)
                value = api.evaluate(out, **fields)["metrics"][metric]["value"]
                change = 100 * (value / original - 1) if args.case == "lm" else 100 * (value - original)
                found.append({"packed": packed, "value": value})
                seconds = f"{packed['seconds']:.0f}"
                how = f"{solver} + distil {tokens:,}" if tokens else solver
                rows.append([form, how, f"{packed['bits']:.2f}", f"{value:.4f}", f"{change:+.2f}", seconds])
                print(" | ".join(map(str, rows[-1])), flush=True)
    print(describe_machine())
    columns = ["format", "solver", "bits a weight", metric, "change" + (", %" if args.case == "lm" else ", points")]
    print(markdown([*columns, "packed in s"], rows))
    write_result(args.out, f"packing-{args.case}", {"original": original, "rows": found})


if __name__ == "__main__":
    main()
