"""Likelihoods that the engine counts without keeping logits, against its own logits and torch's double precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.native import NativeModel, engine_module
from chinchilla_lm.runtime.engine.served import NativeForward
from tests.models.tiny import DECODERS, VOCAB
from tests.native.examples import load, texts

ENGINE = engine_module()
SETS = [] if ENGINE is None else ENGINE.kernel_names()
pytestmark = pytest.mark.skipif(ENGINE is None, reason="the engine is not built")


def targets_of(sequences: list[np.ndarray]) -> list[np.ndarray]:
    """Some of the next tokens, the last word among them; one text has none at all."""
    random = np.random.default_rng(3)
    made = [random.integers(-40, VOCAB, len(one)).astype(np.int32) for one in sequences]
    made[0][:2] = VOCAB - 1, 0
    made[2][:] = -100
    return made


def from_logits(native: NativeModel, sequences: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
    logits = torch.from_numpy(native.run(sequences, everywhere=True)).double()
    flat = torch.from_numpy(np.concatenate(targets)).long()
    return (-logits.log_softmax(-1)[flat >= 0, flat[flat >= 0]]).numpy()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", DECODERS)
def test_of_every_family(tmp_path: Path, name: str, threads: int):
    """Families differ in what stands between the last product and a logit: scales, caps, biases."""
    native = NativeModel(compile_model(load(tmp_path, name), "f32"), threads)
    sequences = texts((24, 1, 7, 24, 3))
    targets = targets_of(sequences)
    assert native.nats(sequences, targets) == pytest.approx(from_logits(native, sequences, targets), abs=2e-6)
    alone = [native.nats([one], [two]) for one, two in zip(sequences, targets, strict=True)]
    assert np.concatenate(alone) == pytest.approx(native.nats(sequences, targets), abs=1e-5)
    assert len(alone[2]) == 0


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("isa", SETS)
def test_of_every_format_and_kernel(tmp_path: Path, form: str, isa: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHINCHILLA_ISA", isa)
    native = NativeModel(compile_model(load(tmp_path, "llama-gqa"), form), 2)
    sequences = texts((24, 24, 24, 24, 24))
    targets = targets_of(sequences)
    assert native.nats(sequences, targets) == pytest.approx(from_logits(native, sequences, targets), abs=2e-6)


@torch.no_grad()
def test_batches_with_padding(tmp_path: Path):
    model = load(tmp_path, "llama-gqa")
    forward = NativeForward(compile_model(model, "f32"), "language-modeling", 2)
    ids = torch.from_numpy(np.stack(texts((9, 9)))).long()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    targets = torch.full((2, 9), -100)
    targets[0, :8], targets[1, 2:5] = ids[0, 1:], ids[1, 3:6]
    found = forward.nats(Batch(ids, mask), targets)
    expected = torch.zeros(2, 9)
    for row, length in ((0, 9), (1, 6)):
        logits = model(Batch(ids[row : row + 1, :length]))[0].double().log_softmax(-1)
        for place in (targets[row] >= 0).nonzero().flatten().tolist():
            expected[row, place] = -logits[place, targets[row, place]]
    assert torch.allclose(found, expected, atol=1e-5)
    assert found[0, 8] == found[1, 0] == 0


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("isa", SETS)
def test_what_is_not_finite_gives_no_number(tmp_path: Path, isa: str, value: float, monkeypatch: pytest.MonkeyPatch):
    """A bias that is not a number, of a word that is nobody's target."""
    monkeypatch.setenv("CHINCHILLA_ISA", isa)
    program = compile_model(with_bias(load(tmp_path, "llama-gqa")), "f32")
    at = program.header["head"]["output"]["bias"] + 4 * (VOCAB - 2)
    program.data[at : at + 4] = np.frombuffer(np.float32(value).tobytes(), np.uint8)
    assert np.isnan(NativeModel(program, 1).nats(texts((4,)), [np.array([1, 2, 3, -1], np.int32)])).all()


def with_bias(model: Transformer) -> Transformer:
    assert model.head.output is not None
    model.head.output.bias = torch.nn.Parameter(torch.zeros(VOCAB), requires_grad=False)
    return model


def test_large_and_small_logits(tmp_path: Path):
    """Shifts that would overflow, or lose everything, in a sum without its largest term taken out."""
    model = with_bias(load(tmp_path, "llama-gqa"))
    assert model.head.output is not None
    for shift in (-900.0, 900.0):
        with torch.no_grad():
            model.head.output.bias.copy_(torch.linspace(0, 150, VOCAB) + shift)
        native = NativeModel(compile_model(model, "f32"), 2)
        sequences, targets = texts((5, 5, 5)), [np.array([0, VOCAB - 1, 40, 3, 96], np.int32)] * 3
        found = native.nats(sequences, targets)
        assert found == pytest.approx(from_logits(native, sequences, targets), rel=1e-6, abs=1e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path):
    native = NativeModel(compile_model(load(tmp_path, "llama-gqa"), "f32"), 1)
    one = np.array([3, 4], np.int32)
    with pytest.raises(InputError, match=f"target {VOCAB} is not below {VOCAB}"):
        native.nats([one], [np.array([VOCAB, -1], np.int32)])
    with pytest.raises(InputError, match="targets are not as many"):
        native.nats([one], [one[:1]])
    with pytest.raises(InputError, match="no tokens"):
        native.nats([one[:0]], [one[:0]])
    tagger = NativeModel(compile_model(load(tmp_path, "bert", "text-classification"), "f32"), 1)
    with pytest.raises(InputError, match="not one for each token"):
        tagger.nats([one], [one])
