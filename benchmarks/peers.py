"""The engine beside other programs: SmolLM2-135M-Instruct on WikiText-2, and a MiniLM tagger on CoNLL-2003.

    python benchmarks/peers.py lm
    python benchmarks/peers.py ner FOLDER      # a tagger that benchmarks/ner.py minilm left: out/bench/minilm-ner/model
    python benchmarks/peers.py ner SHORT --against FOLDER      # we run what is left of it, the others the original

Environments are made once, in the user's cache; llama.cpp is compiled. Figures go to out/bench/peers-lm, -ner and
-ner-short.
"""

from __future__ import annotations

import argparse

from common import ROOT, data_folder, packaged_model

from chinchilla_lm.cli import main

PEERS = {
    "lm": "llama.cpp,openvino,ctranslate2,transformers,onnxruntime",
    "ner": "openvino,onnxruntime,transformers,torch-compile,ctranslate2,llama.cpp",
}


def words(case: str, model: str | None, against: str | None, peers: str | None, seconds: float) -> list[str]:
    """The command line of one case."""
    if case == "lm":
        what = [model or packaged_model("SmolLM2-135M-Instruct"), "--task", "language-modeling"]
        what += ["--data", data_folder("wikitext2")]
    else:
        if model is None:
            raise SystemExit(
                "ner needs the folder of a tagger; run python benchmarks/ner.py minilm --speedups 2.0 first"
            )
        what = [model, "--data", data_folder("conll2003"), "--test", "eng.testb"]
    if against is not None:
        what += ["--against", against]
    out = str(ROOT / "out" / "bench" / f"peers-{case}{'' if against is None else '-short'}")
    return ["bench", *what, "--peers", peers or PEERS[case], "--seconds", str(seconds), "-o", out]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=tuple(PEERS))
    parser.add_argument("model", nargs="?")
    parser.add_argument("--against", metavar="MODEL", help="the original, for the others")
    parser.add_argument("--peers", help="other peers than those above")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    raise SystemExit(main(words(args.case, args.model, args.against, args.peers, args.seconds)))
