import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.checkpoint import Checkpoint
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.demand import ProgramDemand, looked_up_bytes
from chinchilla_lm.runtime.measuring.roofline import ModelDemand, decode_bytes, looked_up_share, pass_flops, size_of
from chinchilla_lm.runtime.torch_backend import read

TAGS = HeadConfig("token-classification", labels=("O", "B-X"))


@pytest.mark.parametrize("dropped", [{}, {"0.attn": "lose", "1.mlp": "lose"}])
@pytest.mark.parametrize("gated", [True, False])
def test_flops_are_those_that_torch_counts(tiny_config, tiny_model, gated, dropped):
    """torch counts all pairs of positions, and those of the plain kernel only."""
    model = tiny_model(tiny_config(causal=False, gated=gated, head=TAGS, num_kv_heads=4), dropped, torch.float32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(Batch(torch.ones(3, 11, dtype=torch.int64)))
    assert pass_flops(model, 3, 11) == counter.get_total_flops()


@pytest.mark.parametrize("windows", [(), (4, None, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_counts_the_pairs_that_see_each_other(tiny_config, tiny_model, causal, windows):
    model = tiny_model(tiny_config(causal=causal, windows=windows))
    tokens, pairs = 11, 0
    for window in windows or (None,) * 3:
        for query in range(tokens):
            seen = [key for key in range(tokens) if key <= query or not causal]
            pairs += sum(window is None or abs(query - key) < window for key in seen)
    matrices = sum(w.numel() for name, w in model.named_parameters() if name.startswith("links.") and w.ndim == 2)
    head = 97 * 32 * (1 if causal else tokens)
    assert pass_flops(model, 2, tokens) == 2 * (2 * matrices * tokens + 4 * 4 * 8 * pairs + 2 * head)


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_every_live_weight_once_and_the_cache(tiny_config, tiny_model, tied):
    head = HeadConfig("language-modeling", bias=False, tied=tied)
    model = tiny_model(tiny_config(head=head), {"0.attn": "lose", "1.mlp": "lose"}, torch.float32)
    names = [name for name, _ in model.named_parameters() if tied or not name.startswith("embedding.")]
    weights = sum(4 * model.get_parameter(name).numel() for name in names)
    with torch.inference_mode():
        cache = KVCache(model, rows=3, capacity=7)
        read(model, torch.ones(3, 7, dtype=torch.int64), cache)
    assert decode_bytes(model, 3, 7) == weights + cache.bytes + 3 * 32 * 4


def test_a_window_bounds_what_is_read_of_the_cache(tiny_config, tiny_model):
    model = tiny_model(tiny_config(windows=(4, None, 4)))
    grown = decode_bytes(model, 1, 20) - decode_bytes(model, 1, 10)
    assert grown == 10 * 2 * 2 * 8 * 8  # one full link: key and value of two heads of eight features in float64


def test_a_shared_weight_counts_once(tiny_config, tiny_model):
    model = tiny_model(tiny_config(), dtype=torch.bfloat16)
    size = size_of(model)
    assert size.parameters == sum({id(w): w.numel() for w in model.parameters()}.values())
    assert size.bytes == 2 * size.parameters


def demand_of(model, form: str) -> ProgramDemand:
    return ProgramDemand(compile_model(model, form), Card.of(Checkpoint(model, hf_config={})))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": HeadConfig("language-modeling", bias=True, tied=False), "windows": (4, None, 1), "qkv_bias": True},
        {"causal": False, "head": TAGS, "norm": "layernorm", "mlp_bias": True, "intermediate_size": 40},
        {"gated": False, "positions": "learned"},
        {"qk_norm": True, "intermediate_size": 40},
    ],
)
def test_a_program_needs_what_its_model_does(tiny_config, tiny_model, changes):
    """Two counts of the same work, one of modules in torch, one of a header. The program pads its vectors to 16."""
    model = tiny_model(tiny_config(**changes), {"0.attn": "lose", "1.mlp": "keep"}, torch.float32)
    of_model, of_program = ModelDemand(model), demand_of(model, "f32")
    for what in ("kind", "causal", "positions", "vocabulary", "parameters"):
        assert getattr(of_program, what) == getattr(of_model, what), what
    assert of_program.pass_flops(3, 11) == of_model.pass_flops(3, 11)
    assert of_program.bytes == pytest.approx(of_model.bytes, rel=0.2)
    assert of_program.decode_bytes(2, 9) == pytest.approx(of_model.decode_bytes(2, 9), rel=0.2)
    grown = [one.decode_bytes(2, 9) - one.decode_bytes(2, 3) for one in (of_program, of_model)]
    assert grown[0] == pytest.approx(grown[1])


def test_a_table_that_is_only_looked_up_is_not_read(tiny_config, tiny_model):
    tied = tiny_model(tiny_config(), dtype=torch.float32)
    assert looked_up_share(tied) == 0
    assert looked_up_bytes(compile_model(tied, "int8").header) == 0
    apart = tiny_model(tiny_config(head=HeadConfig("language-modeling", bias=False, tied=False)), dtype=torch.float32)
    assert looked_up_share(apart) == pytest.approx(97 * 32 / size_of(apart).parameters)
    assert looked_up_bytes(compile_model(apart, "int8").header) == 2 * 97 * 32
    of_program = demand_of(apart, "int8")
    assert of_program.decode_bytes(1, 0) == of_program.bytes - 2 * 96 * 32
