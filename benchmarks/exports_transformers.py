"""What transformers makes of a folder of compressed-tensors; run by exports.py, in an environment that has both.

A JSON object on standard input: folder, floats (the same model, dequantised), window. One as the last line of standard
output: `same` of `of` linear layers are equal to the last bit, and the `logits` behind the window.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM


def main():
    asked = json.load(sys.stdin)
    both = [AutoModelForCausalLM.from_pretrained(asked[name], dtype=torch.float32) for name in ("folder", "floats")]
    with torch.no_grad():
        logits = both[0](torch.tensor(asked["window"])[None]).logits[0, -1]  # which also unpacks all layers
    layers = [
        {
            name: one.weight
            for name, one in model.named_modules()
            if isinstance(one, torch.nn.Linear) and name != "lm_head"
        }
        for model in both
    ]
    same = sum(torch.equal(weight, layers[1][name]) for name, weight in layers[0].items())
    print(json.dumps({"same": same, "of": len(layers[1]), "logits": logits.tolist()}))


if __name__ == "__main__":
    main()
