"""Every family through the verbs: inspected, packed, read by both backends, shortened, exported to transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chinchilla_lm import cli
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.models.transformer import NormFate
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.shorten.surgery import without
from tests.models.tiny import CASES, DECODERS

# The first case of each family.
FIRST = {CASES[name][0].model_type: name for name in reversed(CASES)}
DROPPED: dict[str, NormFate] = {"0.mlp": "lose", "1.attn": "lose", "1.mlp": "lose"}


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The object that a command prints for --json."""
    capsys.readouterr()
    status = cli.main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def written(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> str:
    """What greedy decoding writes."""
    found = said(capsys, "generate", folder, "--prompt", "Once upon", "--max-new-tokens", 12, "--ignore-eos", *options)
    return str(found["text"])


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
@pytest.mark.parametrize("name", sorted(FIRST.values()))
def test_inspected_packed_shortened_and_exported(
    name: str, model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = model_folder(name)
    assert len(said(capsys, "inspect", whole, "--no-time")["blocks"]) == 3
    checkpoint = load(whole)
    checkpoint.model = without(checkpoint.model, DROPPED, share=True)
    short, stock = tmp_path / "short", tmp_path / "stock"
    save(checkpoint, short, {})
    assert len(said(capsys, "inspect", short, "--no-time")["dropped"]) == 3
    said(capsys, "export", short, "--to", "hf", "-o", stock)
    ids = torch.arange(8, 28)[None]
    auto = transformers.AutoModelForCausalLM if name in DECODERS else transformers.AutoModelForMaskedLM
    with torch.inference_mode():
        expected = auto.from_pretrained(stock).eval()(ids).logits
        torch.testing.assert_close(load(short).model(Batch(ids)), expected, rtol=0, atol=1e-4)
    for form in ("f32", "bf16", "int8", "int4"):
        said(capsys, "pack", short, "--format", form, "-o", tmp_path / form)
        said(capsys, "inspect", tmp_path / form, "--no-time")
    if name in DECODERS:
        exact, plain = tmp_path / "f32", ("--backend", "torch", "--dtype", "float32")
        texts = [written(capsys, exact), written(capsys, exact, *plain)]
        texts.append(written(capsys, stock, *plain))
        assert texts[0] == texts[1] == texts[2]
