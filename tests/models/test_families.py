"""Every family against transformers with the same weights: all heads, with and without padding."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.models.families import FAMILIES, family_of
from tests.models.tiny import (
    CASES,
    DECODERS,
    ENCODERS,
    HIDDEN,
    assert_same,
    batch,
    build,
    has_class,
    saved,
    theirs,
)

# One of each family of decoders, or two where they differ in what a head sees.
ONE_EACH = ["llama-gqa", "mistral-window", "qwen2", "qwen3", "gemma3", "gpt2"]
ONE_EACH += [
    "smollm3-window-biased",
    "phi3-partial-tied",
    "olmo2",
    "olmo3",
    "granite",
    "gemma2",
    "exaone4",
    "ministral",
]
KINDS = ("language-modeling", "token-classification", "text-classification", "ranking")


@pytest.mark.parametrize("name", CASES)
def test_language_model_is_transformers(name: str, tmp_path: Path) -> None:
    reference, folder = saved(tmp_path, name)
    model = load(folder).model
    for padded in (False, True):
        data = batch(padded)
        with torch.no_grad():
            assert_same(model(data), theirs(reference, data), data)


@pytest.mark.parametrize("kind", ["token-classification", "text-classification", "ranking"])
@pytest.mark.parametrize("name", [*ONE_EACH, *ENCODERS])
def test_classifier_is_transformers(name: str, kind: str, tmp_path: Path) -> None:
    if not has_class(name, kind):
        pytest.skip("transformers has no such class")
    reference, folder = saved(tmp_path, name, kind)
    checkpoint = load(folder)
    assert checkpoint.model.config.head.kind == kind
    assert checkpoint.fresh == ()
    for padded in (False, True):
        data = batch(padded)
        if name == "roberta-pad-5" and data.mask is not None:
            data = Batch(data.ids.masked_fill(~data.mask, 5), data.mask)
        with torch.no_grad():
            assert_same(checkpoint.model(data), theirs(reference, data), data)


@pytest.mark.parametrize(
    "name",
    [
        "llama-gqa",
        "gemma3",
        "gpt2",
        "granite",
        "olmo2",
        "bert",
        "roberta",
        "distilbert",
        "electra",
        "mpnet",
        "modernbert",
    ],
)
def test_embedding_is_the_normalised_mean(name: str, tmp_path: Path) -> None:
    reference, folder = saved(tmp_path, name, "embedding")
    data = batch(True)
    hidden, mask = theirs(reference, data), data.mask[..., None]  # type: ignore[index]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    with torch.no_grad():
        assert_same(load(folder).model(data), expected, data)


def test_segments_are_added(tmp_path: Path) -> None:
    reference, folder = saved(tmp_path, "bert-untied-relu")
    plain = batch(False)
    data = Batch(plain.ids, None, torch.arange(plain.ids.numel()).reshape(plain.ids.shape) % 3)
    with torch.no_grad():
        ours = load(folder).model(data)
    assert_same(ours, theirs(reference, data), data)
    assert not torch.allclose(ours, theirs(reference, plain), atol=1e-3)


@pytest.mark.parametrize("name", DECODERS)
def test_bidirectional_decoder_is_transformers(name: str, tmp_path: Path) -> None:
    """`is_causal: false` in the config, and the argument that says the same."""
    reference, folder = saved(tmp_path, name, is_causal=False)
    assert json.loads((folder / "config.json").read_text())["is_causal"] is False
    causal = load(folder, bidirectional=False).model
    model = load(folder).model
    for padded in (False, True):
        data = batch(padded)
        with torch.no_grad():
            assert_same(model(data), theirs(reference, data), data)
            assert not torch.allclose(causal(data)[:, 0], model(data)[:, 0], atol=1e-3)


def test_bidirectional_argument_equals_the_config(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "mistral-window")
    _, other = saved(tmp_path / "b", "mistral-window", is_causal=False)
    data = batch(True)
    with torch.no_grad():
        assert torch.equal(load(folder, bidirectional=True).model(data), load(other).model(data))
    with pytest.raises(InputError, match="encoder"):
        load(saved(tmp_path, "bert")[1], bidirectional=False)


def test_gemma_embedding_models_look_both_ways(tmp_path: Path) -> None:
    """`use_bidirectional_attention` halves the window, and its far edge is out."""
    reference, folder = saved(tmp_path, "gemma3", "embedding", use_bidirectional_attention=True, sliding_window=8)
    data = batch(False)
    expected = torch.nn.functional.normalize(theirs(reference, data).mean(1), dim=-1)
    with torch.no_grad():
        assert_same(load(folder).model(data), expected, data)


@pytest.mark.parametrize("name", ["mistral-window", "gemma3", "qwen2-window"])
def test_short_rows_in_a_long_batch_stay_finite(name: str, tmp_path: Path) -> None:
    """A padding position whose whole window is padding sees nothing; that must not spread."""
    _, folder = saved(tmp_path, name)
    data = batch(True)
    for both_ways in (False, True):
        model = load(folder, bidirectional=both_ways).model
        with torch.no_grad():
            assert torch.isfinite(model(data)[data.mask]).all()
            alone = model(Batch(data.ids[2:, :3]))
            assert torch.allclose(model(data)[2, :3], alone[0], atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_defaults_are_those_of_transformers(name: str) -> None:
    """A config.json that says nothing means the same to us and to transformers."""
    make = CASES[name][0]
    full = make().to_dict() | {"architectures": None}
    head = {"vocab_size": full["vocab_size"], "model_type": make.model_type}
    family = family_of(full)
    kind = family.default_head(full, "language-modeling", ())
    assert family.read(head, kind) == family.read(full, kind)


def test_an_older_modernbert_means_the_same() -> None:
    """As the models on the hub are: a step for the full blocks, one key for each base."""
    new = build("modernbert").config.to_dict()
    older = {key: value for key, value in new.items() if key not in ("layer_types", "rope_parameters")}
    older |= {"global_attn_every_n_layers": 2, "global_rope_theta": 900.0, "local_rope_theta": 30.0}
    new["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    new["rope_parameters"]["full_attention"]["rope_theta"] = 900.0
    new["rope_parameters"]["sliding_attention"]["rope_theta"] = 30.0
    family = FAMILIES["modernbert"]
    head = family.default_head(new, "embedding", ())
    assert family.read(older, head) == family.read(new, head)
    theirs_of_it = transformers.ModernBertConfig(**older)
    assert theirs_of_it.layer_types == new["layer_types"]
    assert theirs_of_it.rope_parameters == new["rope_parameters"]


def test_older_configs_mean_the_same(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "llama-biased-llama3-tied")
    new = json.loads((folder / "config.json").read_text())
    family = FAMILIES["llama"]
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    scaling = dict(new["rope_parameters"])
    old |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    assert family.read(old) == family.read(new)
    gemma = build("gemma3-scaled-untied").config.to_dict()
    older = {key: value for key, value in gemma.items() if key not in ("rope_parameters", "layer_types")}
    older |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"type": "linear", "factor": 8.0}}
    older["sliding_window_pattern"] = 2
    family, head = FAMILIES["gemma3_text"], FAMILIES["gemma3_text"].default_head(gemma, "embedding", ())
    read = family.read(older, head)
    gemma["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read == family.read(gemma, head)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("llama-gqa", {"model_type": "mamba"}, "mamba"),
        ("llama-gqa", {"model_type": None}, "None"),
        ("llama-gqa", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama-gqa", {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ("llama-gqa", {"rope_parameters": {"rope_type": "yarn", "truncate": False}}, "truncate"),
        ("phi3-longrope", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "short_factor"),
        ("phi3-partial-tied", {"rope_parameters": {"partial_rotary_factor": 1.5}}, "partial_rotary_factor"),
        ("phi3-window", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "linear"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 0, "x"]}, "no_rope_layers"),
        ("olmo3", {"rope_parameters": {"rope_type": "default"}}, "keyed by full_attention and sliding_attention"),
        ("qwen3_5", {"layer_types": ["sliding_attention"] * 3}, "linear_attention"),
        ("qwen3_5", {"linear_num_key_heads": 3}, "linear_num_key_heads"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("llama-gqa", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ("llama-gqa", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama-gqa", {"hidden_act": "quick_gelu"}, "quick_gelu"),
        ("llama-gqa", {"hidden_act": ["silu"]}, r"hidden_act \['silu'\] is not one of"),
        ("llama-gqa", {"rope_parameters": {"rope_type": ["linear"]}}, r"rope_type \['linear'\] is not one of"),
        ("llama-gqa", {"rms_norm_eps": 10**400}, "rms_norm_eps 10+ is not a finite number"),
        ("gemma3", {"rope_parameters": ["default"]}, r"rope_parameters \['default'\] is not a dictionary"),
        ("gemma3", {"rope_parameters": {"full_attention": 3}}, "full_attention 3 is not a dictionary"),
        ("llama-gqa", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("llama-gqa", {"num_hidden_layers": "3"}, "num_hidden_layers"),
        ("llama-gqa", {"hidden_size": -1}, "hidden_size"),
        ("llama-gqa", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("llama-gqa", {"num_local_experts": 8}, "num_local_experts"),
        ("llama-gqa", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama-gqa", {"architectures": ["LlamaForQuestionAnswering"]}, "LlamaForQuestionAnswering"),
        ("llama-gqa", {"id2label": {"0": "A", "2": "B"}, "architectures": ["LlamaForTokenClassification"]}, "id2label"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["linear_attention"] * 3}, "linear_attention"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "sliding_window"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"num_attention_heads": 5}, "num_attention_heads"),
    ],
)
def test_what_cannot_be_represented_is_refused(name: str, change: dict, named: str, tmp_path: Path) -> None:
    _, folder = saved(tmp_path, name)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=named) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


ODD: list[Any] = [
    None,
    True,
    -1,
    1.5,
    10**400,
    math.nan,
    "x",
    [],
    ["x"],
    [{}],
    {},
    {"x": 1},
    {"full_attention": {}, "x": 1},
]


def with_one_odd_value(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config once for each of its entries, those inside its dictionaries too, and each odd value."""
    for key, value in values.items():
        yield from (values | {key: odd} for odd in ODD)
        if isinstance(value, dict):
            yield from (values | {key: inner} for inner in with_one_odd_value(value))


@pytest.mark.parametrize("name", CASES)
def test_odd_values_are_read_or_refused(name: str) -> None:
    make, values = CASES[name]
    full = make(**values).to_dict() | {"rope_scaling": None, "num_labels": 2}
    family = family_of(full)
    head = family.default_head(full, "language-modeling", ())
    said = []
    for changed in with_one_odd_value(full):
        try:
            family_of(changed).read(changed, head)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 100
    assert not any("\n" in one for one in said)


def test_hidden_width_is_used() -> None:
    """The reference models are not degenerate: changing one token changes what follows it, and only that."""
    model = build("llama-gqa")
    data = batch(False)
    changed = data.ids.clone()
    changed[:, 5] = 9
    first, second = theirs(model, data), theirs(model, Batch(changed))
    assert torch.equal(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 6], second[:, 6], atol=1e-3)
    assert HIDDEN % 4 == 0
