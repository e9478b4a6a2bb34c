"""A token classifier of transformers as an ONNX file in float32, and what ONNX Runtime's optimiser makes of it."""

import json
import os
import shutil

import numpy as np
from protocol import padded

MOST_CHANGE = 1e-2  # of the largest logit; fused sums have another order, no more


def export(source, path):
    """source: a Hugging Face folder. Attention is written out in single products, which is what the optimiser knows."""
    import torch
    import transformers

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = transformers.AutoModelForTokenClassification.from_pretrained(
                source, local_files_only=True, attn_implementation="eager"
            ).eval()

        def forward(self, input_ids, attention_mask, token_type_ids=None):
            kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kinds).logits

    model = Plain()
    ones = torch.ones(2, 8, dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    inputs = (ones, ones)
    if getattr(model.model.config, "type_vocab_size", 0):
        names, inputs = [*names, "token_type_ids"], (*inputs, ones * 0)
    axes = {name: {0: "rows", 1: "tokens"} for name in [*names, "logits"]}
    torch.onnx.export(
        model,
        inputs,
        path,
        input_names=names,
        output_names=["logits"],
        dynamic_axes=axes,
        dynamo=False,
        opset_version=17,
    )


def optimise(source, plain, path, sample):
    """Write what the optimiser for transformers makes of a file; or that file, where it makes nothing or something
    else of it. Returns which of the two, and why."""
    from onnxruntime.transformers import optimizer

    with open(os.path.join(source, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    heads = config.get("num_attention_heads") or config.get("n_heads") or 0  # 0: it looks for itself
    try:
        model = optimizer.optimize_model(
            plain, "bert", num_heads=heads, hidden_size=config.get("hidden_size") or config.get("dim") or 0
        )
        fused = {name: count for name, count in model.get_fused_operator_statistics().items() if count}
        model.save_model_to_file(path)
        change = _change(plain, path, sample)
    except Exception as error:
        shutil.copy(plain, path)
        return f"without the transformer optimiser, which failed: {type(error).__name__}: {error}".splitlines()[0][:200]
    if not fused or not change <= MOST_CHANGE:
        shutil.copy(plain, path)
        why = f"changed the logits by {change:.1%}" if fused else "fused nothing here"
        return f"without the transformer optimiser, which {why}"
    attention = any("Attention" in name for name in fused)
    return (
        "with the transformer optimiser: "
        + ", ".join(f"{count} {name}" for name, count in fused.items())
        + ("" if attention else "; it does not apply to this model's attention")
    )


def _change(plain, path, sample):
    """The largest difference of a logit, as a share of the largest logit."""
    import onnxruntime as ort

    ids, mask = padded(np, sample[:8])
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    found = []
    for file in (plain, path):
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {one.name: values[one.name] for one in session.get_inputs()})
        found.append(logits[mask == 1])
    before, after = found
    return float(np.abs(before - after).max() / np.abs(before).max())
