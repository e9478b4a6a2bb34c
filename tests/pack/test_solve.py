"""A whole model, rounded link after link."""

import copy

import numpy as np
import pytest
import torch
from safetensors import numpy as safetensors

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.pack.mixed import mixed
from chinchilla_lm.pack.solve import Solver
from chinchilla_lm.pack.unfinished import Unfinished
from chinchilla_lm.pack.uniform import Uniform
from chinchilla_lm.runtime.engine.compile import draft
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.runtime.engine.unpacking import _State
from tests.models.tiny import DECODERS, VOCAB
from tests.native.examples import load

FORM = mixed("int4-sym")
HOW = Uniform(4, 32)


def batches(count: int = 6, padded: bool = True) -> list[Batch]:
    random = torch.Generator().manual_seed(3)
    made = []
    for index in range(count):
        ids = torch.randint(1, 97, (4, 24), generator=random)
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[1, 10 + index :] = False
        made.append(Batch(ids, mask if padded else None))
    return made


def divergence(model, original, batch: Batch) -> float:
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(one(batch), -1) for one in (model, original))
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    return float(kl[batch.mask].mean())


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_diverges_less_than_one_that_is_rounded(tiny_model, tiny_config, tied):
    """Embeddings of few directions, so that there is something to know of the inputs; judged on other text."""
    config = tiny_config(head=HeadConfig("language-modeling", bias=False, tied=tied))
    original, solved, rounded = (tiny_model(config, dtype=torch.float32) for _ in range(3))
    directions = torch.randn(5, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for model in (original, solved, rounded):
            embedding = model.embedding.tokens.weight
            embedding.copy_(embedding[:, :5] @ directions + 0.05 * embedding)
    found = Solver(solved, batches(), FORM).run()
    assert len(found) == 13
    with torch.no_grad():
        weights = dict(rounded.named_parameters(remove_duplicate=False))
        for name in found:
            weights[name].copy_(torch.from_numpy(HOW.round(weights[name].numpy()).values()))
    ids = torch.randint(1, 97, (8, 24), generator=torch.Generator().manual_seed(9))
    held_out = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    assert divergence(solved, original, held_out) < 0.9 * divergence(rounded, original, held_out)


def test_padding_counts_for_nothing(tiny_model, tiny_config):
    found = []
    for filler in (0, 50):
        some = batches()
        for batch in some:
            assert batch.mask is not None
            batch.ids[~batch.mask] = filler
        found.append(Solver(tiny_model(tiny_config(causal=False), dtype=torch.float32), some, FORM).run())
    for name, first in found[0].items():
        assert (first.values() == found[1][name].values()).all()


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
@pytest.mark.parametrize(
    "formats", ["int4-sym", "int8-row,*.second=int8,head=int4", "int4-g128,1.*=bf16,2.mlp.second=f32"]
)
@pytest.mark.parametrize("gated", [True, False])
def test_the_engine_runs_the_codes_that_were_solved(tiny_model, tiny_config, gated, formats):
    """Gate and up alternate in panels, which 24 of each do not fill; all the same the model is the one in torch."""
    model = tiny_model(tiny_config(gated=gated, intermediate_size=24), dtype=torch.float32)
    found = Solver(model, batches(), mixed(formats)).run()
    program = draft(model, formats, rounded=found).program()
    batch = Batch(torch.tensor([[5, 9, 23, 41, 2]]))
    meant = _State(program, model).tensors()
    assert found
    for name in found:
        assert torch.equal(meant[name], model.state_dict()[name])
    ours = NativeForward(program, "language-modeling", 1)(batch)
    with torch.no_grad():
        theirs = model(batch)
    assert float((ours - theirs).norm()) < 0.05 * float(theirs.norm())  # inputs are rounded to 8 bits


def test_a_run_that_was_stopped_goes_on_to_the_same_codes(tiny_model, tiny_config, tmp_path):
    def solver(**options):
        return Solver(tiny_model(tiny_config(), dtype=torch.float32), batches(), FORM, **options)

    whole = solver().run()
    seen: list[str] = []

    def stop(name: str) -> None:
        seen.append(name)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solver(unfinished=Unfinished(tmp_path / "out.unfinished", "one"), on_matrix=stop).run()
    files = sorted((tmp_path / "out.unfinished").iterdir())
    assert len(files) == 4
    files[0].write_bytes(b"damaged")
    parts = safetensors.load(files[1].read_bytes())
    parts["scales"][0, 0] = np.nan
    files[1].write_bytes(safetensors.save(parts))
    written = {path: path.stat().st_mtime_ns for path in files[2:]}
    kept = Unfinished(tmp_path / "out.unfinished", "one")
    again = solver(unfinished=kept).run()
    assert {path: path.stat().st_mtime_ns for path in files[2:]} == written, "two of them are not solved again"
    for name, rounded in whole.items():
        assert (again[name].values() == rounded.values()).all()
    name, (outputs, inputs) = "0.attn.first", whole["links.0_attn.qkv.weight"].shape
    assert kept.get(name, outputs, inputs, HOW) is not None
    assert Unfinished(kept.folder, "another").get(name, outputs, inputs, HOW) is None
    assert kept.get(name, 3, 3, HOW) is None, "of another shape"
    kept.clear()
    assert not kept.folder.exists()


@pytest.mark.parametrize(
    "name", ["gpt2", "qwen3_5-biased-tied", "gemma2", "bert", "mpnet", "deberta-v2", "electra", "phi3-partial-tied"]
)
def test_families(tmp_path, name):
    """Post-norm and pre-norm, gates, memories, a bias of positions, distances, transposed weights: what the engine gets
    is what the solver left in the model, and the model answers much as it did."""
    model = load(tmp_path, name, "language-modeling" if name in DECODERS else "token-classification").eval()
    before = copy.deepcopy(model)
    ids = torch.randint(5, VOCAB, (6, 20), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[2, 12:] = False
    text = [Batch(ids[:4], mask[:4]), Batch(ids[4:])]
    found = Solver(model, text, mixed("int8,1.mlp=int4")).run()
    assert len(found) == len(model.matrices()) == (13 if name in DECODERS else 12)
    meant = _State(draft(model, "int8,1.mlp=int4", rounded=found).program(), model).tensors()
    for parameter in found:
        assert torch.equal(meant[parameter], model.state_dict()[parameter])
    with torch.no_grad():
        ours, theirs = (one(text[1]) for one in (model, before))
    assert 0 < float((ours - theirs).norm()) < 0.2 * float(theirs.norm())
