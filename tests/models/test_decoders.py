"""What single families of decoders do differently: positions that switch, caps, blocks without positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.hf import export_hf
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.models.delta import gated_delta
from chinchilla_lm.models.families import family_of
from chinchilla_lm.runtime.torch_backend import TorchBackend
from tests.models.test_checkpoint import shortened
from tests.models.tiny import DECODERS, LONGROPE, assert_same, batch, build, saved, theirs

SWITCH: dict[str, Any] = {"original_max_position_embeddings": 12, "rope_parameters": LONGROPE}


@torch.no_grad()
def test_each_row_turns_by_its_own_length(tmp_path: Path) -> None:
    """What transformers gives for a text alone, whatever stands beside it in the batch; 12 is read as short."""
    reference, folder = saved(tmp_path, "phi3-longrope", **SWITCH)
    model, data = load(folder).model, batch(True)
    assert data.mask is not None
    assert data.mask.sum(1).tolist() == [24, 12, 3]
    rows = model(data)
    for row, length in enumerate((24, 12, 3)):
        alone = Batch(data.ids[row : row + 1, :length])
        assert_same(rows[row : row + 1, :length], theirs(reference, alone), alone)
        assert_same(model(alone), theirs(reference, alone), alone)
    whole = theirs(reference, Batch(data.ids[1:2, :13]))
    assert not torch.allclose(whole[:, :12], theirs(reference, Batch(data.ids[1:2, :12])), atol=1e-2)


@torch.no_grad()
def test_a_cache_is_not_read_on_past_the_switch(tmp_path: Path) -> None:
    model = load(saved(tmp_path, "phi3-longrope", **SWITCH)[1]).model
    ids, cache = batch(False).ids[:1], KVCache(model, 1, 24)
    model(Batch(ids[:, :10]), cache)
    model(Batch(ids[:, 10:12]), cache)
    with pytest.raises(InputError, match=r"13 tokens are more than the 12 up to which .*; read it again"):
        model(Batch(ids[:, 12:13]), cache)
    cache.rewind(0)
    pieces = [model(Batch(piece), cache) for piece in ids.split([13, 1, 10], dim=1)]
    assert_same(torch.cat(pieces, 1), model(Batch(ids)), Batch(ids), 1e-5)
    with pytest.raises(InputError, match="cannot go to 25"):
        cache.rewind(25)


@pytest.mark.parametrize(
    "given",
    [
        {
            "rope_scaling": {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
            | {"original_max_position_embeddings": 16}
        },
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 9.0}},
        {"rope_theta": 777.0, "partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
    ],
)
def test_older_phi3_configs_mean_what_they_mean_to_transformers(given: dict[str, Any]) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    old = given | sizes | {"original_max_position_embeddings": 16, "model_type": "phi3", "architectures": None}
    new = transformers.Phi3Config(**given, **sizes, original_max_position_embeddings=16).to_dict()
    new["architectures"] = None
    family = family_of(old)
    assert family.read(old).ropes == family.read(new).ropes


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma2", "smollm3-window-biased", "olmo3", "phi3-window", "llama-yarn"])
def test_texts_far_longer_than_a_window(name: str, tmp_path: Path) -> None:
    """Longer than the stretches of queries that are multiplied at once, and than the scores that are kept whole."""
    reference, folder = saved(tmp_path, name, max_position_embeddings=1024)
    ids = torch.randint(7, 97, (1, 600), generator=torch.Generator().manual_seed(3))
    model = load(folder).model
    assert_same(model(Batch(ids)), theirs(reference, Batch(ids)), Batch(ids))
    cache = KVCache(model, 1, 600)
    pieces = [model(Batch(piece), cache) for piece in ids.split([301, 298, 1], dim=1)]
    assert_same(torch.cat(pieces, 1), theirs(reference, Batch(ids)), Batch(ids))


@pytest.mark.parametrize("name", DECODERS)
def test_training_has_the_gradients_of_transformers(name: str, tmp_path: Path) -> None:
    """Of a matrix in front of everything else, by the loss of next tokens."""
    reference, folder = saved(tmp_path, name)
    data = batch(False)
    ours = load(folder).model
    logits = ours.train()(data)
    found = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), data.ids[:, 1:].flatten())
    found.backward()
    expected = reference.eval()(input_ids=data.ids, labels=data.ids).loss
    expected.backward()
    wanted = reference.get_input_embeddings().weight.grad
    assert ours.embedding.tokens.weight.grad is not None
    assert abs(found.item() - expected.item()) < 1e-4
    torch.testing.assert_close(ours.embedding.tokens.weight.grad, wanted, rtol=1e-3, atol=1e-5)


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}
PUBLISHED: dict[str, dict[str, Any]] = {
    # As in config.json of OLMo 3, Phi-4-mini, Gemma 2, SmolLM3 and Qwen3 with YaRN, in small.
    "olmo3": {"rope_theta": 500_000, "rope_scaling": YARN | {"beta_fast": 32.0, "beta_slow": 1.0}},
    "phi3": {
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [1.0, 3.0, 9.0]},
        "sliding_window": 262_144,
        "rope_theta": 10_000.0,
    },
    "gemma2": {"head_dim": 8, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    "smollm3": {"no_rope_layers": [1, 1, 0], "rope_theta": 5e6, "rope_scaling": None, "max_window_layers": 28},
    "qwen3": {"head_dim": 8, "rope_theta": 1e6, "rope_scaling": YARN},
}


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_as_they_were_published(name: str, tmp_path: Path) -> None:
    """In the older form, which transformers reads too; 20 tokens are more than the first training's 16."""
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "pad_token_id": 0}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 2}
    written = sizes | PUBLISHED[name] | {"model_type": name, "bos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(written))
    torch.manual_seed(1)
    reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path)).eval()
    for parameter in reference.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    reference.save_pretrained(tmp_path)
    written["architectures"] = json.loads((tmp_path / "config.json").read_text())["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    model = load(tmp_path).model
    for length in (20, 16, 3):
        data = Batch(batch(False).ids[:, :length])
        assert_same(model(data), theirs(reference, data), data)


def test_an_attention_factor_of_its_own_survives(tmp_path: Path) -> None:
    """Older keys have no room for it, and are believed where they are there; so they are not."""
    own: dict[str, Any] = {"rope_parameters": LONGROPE | {"attention_factor": 1.7}}
    reference, folder = saved(tmp_path, "phi3-longrope", **own)
    save(load(folder), tmp_path / "again")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    data = batch(False)
    assert_same(theirs(stock, data), theirs(reference, data), data, 1e-6)
    assert not torch.allclose(theirs(reference, data), theirs(build("phi3-longrope"), data), atol=1e-3)


def test_blocks_without_positions_stay_so_where_others_go(tmp_path: Path) -> None:
    """`no_rope_layers` is by pattern in the original; of a cut model it is said block by block."""
    _, folder = saved(tmp_path, "smollm3", num_hidden_layers=4)
    short = shortened(load(folder), {"0.attn": "lose", "0.mlp": "lose"})
    export_hf(short, tmp_path / "portable")
    config = json.loads((tmp_path / "portable" / "config.json").read_text())
    assert config["no_rope_layers"] == [0, 1, 0]
    assert [rope is not None for rope in load(tmp_path / "portable").model.config.ropes] == [False, True, False]


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5-biased-tied"])
def test_a_memory_read_in_pieces(name: str, tmp_path: Path) -> None:
    """Pieces that end within and between those that are solved for at once, single tokens, and back to the start."""
    reference, folder = saved(tmp_path, name, max_position_embeddings=1024)
    ids = torch.randint(7, 97, (2, 200), generator=torch.Generator().manual_seed(3))
    model = load(folder).model
    whole, cache = theirs(reference, Batch(ids)), KVCache(model, 2, 200)
    for _ in range(2):
        pieces = [model(Batch(piece), cache) for piece in ids.split([1, 1, 63, 64, 5, 66], dim=1)]
        assert_same(torch.cat(pieces, 1), whole, Batch(ids))
        with pytest.raises(InputError, match="201 positions do not fit"):
            model(Batch(ids[:, :1]), cache)
        with pytest.raises(InputError, match="cannot go to 7; read again from the start"):
            cache.rewind(7)
        assert cache.bytes > KVCache(model, 2, 200).bytes
        cache.rewind(0)


@torch.no_grad()
def test_a_pass_that_fails_leaves_the_memory_as_it_was(tmp_path: Path) -> None:
    model = load(saved(tmp_path, "qwen3_5")[1]).model
    backend, ids = TorchBackend(model), batch(False).ids[0].tolist()
    caches = [backend.cache(24), backend.cache(4)]
    backend.read([ids[:3], ids[:4]], caches)
    with pytest.raises(InputError, match="5 positions"):
        backend.read([ids[3:9], ids[4:5]], caches)
    found = backend.read([ids[3:9]], caches[:1])
    expected = model(Batch(torch.tensor([ids[:9]])))[:, -1]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


def test_the_delta_rule_is_its_recurrence() -> None:
    torch.manual_seed(0)
    query, key = (torch.randn(2, 70, 3, 5) for _ in range(2))
    value, decay, write = torch.randn(2, 70, 3, 7), -torch.rand(2, 70, 3), torch.rand(2, 70, 3)
    memory = torch.randn(2, 3, 5, 7)
    found, after = gated_delta(query, key, value, decay, write, memory)
    unit = [part.double() / (part.double().square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (query, key)]
    state, rows = memory.double(), []
    for t in range(70):
        state = state * decay[:, t].double().exp()[..., None, None]
        read, told = unit[0][:, t] * 5**-0.5, unit[1][:, t]
        new = write[:, t, :, None].double() * (value[:, t].double() - torch.einsum("bhkv,bhk->bhv", state, told))
        state = state + torch.einsum("bhk,bhv->bhkv", told, new)
        rows.append(torch.einsum("bhkv,bhk->bhv", state, read))
    torch.testing.assert_close(found.double(), torch.stack(rows, 1), rtol=0, atol=2e-5)
    torch.testing.assert_close(after.double(), state, rtol=0, atol=2e-5)


def test_a_cap_changes_what_is_computed() -> None:
    """The caps of the tiny model are low enough for a test to notice when they are left out."""
    data = batch(False)
    capped = theirs(build("gemma2"), data)
    assert capped.abs().max() < 2.0
    loose = theirs(build("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None), data)
    assert loose.abs().max() > 3.0
    inner = theirs(build("gemma2", attn_logit_softcapping=None), data)
    assert not torch.allclose(capped, inner, atol=1e-2)
