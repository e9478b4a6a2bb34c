"""Tokens a second of recovery: a short SmolLM2-135M learns from the whole one, random weights and random text.

    python benchmarks/recovery_speed.py                     # on a GPU where there is one
    python benchmarks/recovery_speed.py --device cpu --batch-tokens 1024 --window 256

MFU is the arithmetic that the losses ask for (products and attention; nothing for what is computed twice) over the
dense bfloat16 rate of the GPU, as its data sheet has it, and over that of a large product in the same run. Per token,
with P weights in the links of a model, V words, D features and windows of W tokens:

    teacher 2 P + 2 V D + 2 W A;   student 6 P' + 4 V D + 6 W A'     A: features of all attentions' heads together

for the decoder is the embedding, which recovery leaves as it is, and a causal attention looks at half of a window.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from common import describe_machine, write_result

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch, batches
from chinchilla_lm.data.encoded import IGNORED, Encoded
from chinchilla_lm.models.config import HeadConfig, ModelConfig, RopeConfig
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.device import fast_dtype, resolve_device
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.train.compiled import compiled
from chinchilla_lm.train.loop import FitSettings, fit
from chinchilla_lm.train.recover import Teacher, Weights, recovery_loss

# Dense bfloat16 FLOP/s by data sheet.
DATA_SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
SMOLLM2 = ModelConfig(
    family="llama", vocab_size=49_152, hidden_size=576, num_blocks=30, num_heads=9, num_kv_heads=3, head_dim=64,
    intermediate_size=1536, max_positions=8192, causal=True, norm="rmsnorm", norm_eps=1e-5, placement="pre",
    activation="silu", gated=True, head=HeadConfig("language-modeling", bias=False, tied=True), qkv_bias=False,
    out_bias=False, mlp_bias=False, positions="rope", ropes=(RopeConfig(theta=100_000.0),) * 30,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dropped", type=int, default=15, help="links that are dropped, every fourth")
    parser.add_argument("--hidden", type=float, default=0.0, help="weight of the hidden states")
    parser.add_argument("--eager", action="store_true", help="without compiled links")
    parser.add_argument("--profile", action="store_true", help="print where a step's time goes")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    device = resolve_device(args.device)
    dtype = fast_dtype(device)
    torch.manual_seed(0)
    whole = Transformer(SMOLLM2)
    short = Transformer(SMOLLM2, dict.fromkeys(whole.names[6::4][: args.dropped], "lose"))
    short.load_state_dict(whole.state_dict(), strict=False)
    short.embedding.requires_grad_(False)
    teacher = prepare(whole, device, dtype)
    short.to(device)
    rows = args.batch_tokens // args.window * args.steps
    ids = torch.randint(0, SMOLLM2.vocab_size, (rows, args.window)).tolist()
    windows = [Encoded(one, None, [*one[1:], IGNORED], []) for one in ids]
    loss = recovery_loss(Teacher(teacher), Weights(kl=1.0, hidden=args.hidden))
    settings = FitSettings(epochs=1.0, learning_rate=1e-4, head_learning_rate=1e-4, dtype=dtype)
    todo = batches(windows, max_tokens=args.batch_tokens, shuffle_seed=0)
    moved = [batch.to(device) for batch in todo]
    warm = moved[:3]
    quiet = Console(quiet=True)

    def train(todo: list[EncodedBatch], label: str) -> None:
        with nullcontext() if args.eager else compiled(short, teacher):
            fit(short, lambda _: todo, loss, settings, quiet, label=label)
        synchronize(device)

    begun = time.perf_counter()
    train(warm, "warm-up")
    print(f"warm-up: {time.perf_counter() - begun:.1f} s")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    train(moved, "recovery")
    seconds = time.perf_counter() - begun
    tokens = len(moved) * args.batch_tokens
    rate = tokens / seconds
    flops = rate * flops_a_token(whole, short, args.window)
    print(describe_machine())
    line = f"{rate:,.0f} tokens/s, {flops / 1e12:.1f} TFLOP/s"
    result = {"tokens_per_second": rate, "flops": flops, "batch_tokens": args.batch_tokens, "window": args.window}
    if device.type == "cuda":
        peak, product = sheet(), large_product()
        memory = torch.cuda.max_memory_allocated()
        line += f" on {torch.cuda.get_device_name()}: {flops / peak:.1%} of its data sheet, {flops / product:.1%} of a "
        line += f"large product's {product / 1e12:.0f}; {memory / 1e9:.1f} GB"
        result |= {"mfu": flops / peak, "product": product, "memory": memory}
    print(line)
    write_result(args.out, "recovery-speed", result)
    if args.profile:
        with torch.profiler.profile() as profile:
            train(warm, "profile")
        print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=60))


def flops_a_token(whole: Transformer, short: Transformer, window: int) -> float:
    """See above."""

    def of(model: Transformer) -> tuple[float, float]:
        links = [one for name, one in model.named_parameters() if name.startswith("links.")]
        weights = sum(one.numel() for one in links if one.ndim > 1)
        attentions = sum(name.endswith("attn") for name in model.link_names)
        return weights, attentions * SMOLLM2.num_heads * SMOLLM2.head_dim

    (p, a), (short_p, short_a) = of(whole), of(short)
    decoder = SMOLLM2.vocab_size * SMOLLM2.hidden_size
    return 2 * p + 2 * decoder + 2 * window * a + 6 * short_p + 4 * decoder + 6 * window * short_a


def sheet() -> float:
    """Raises SystemExit for a GPU that is not in the table."""
    name = torch.cuda.get_device_name()
    found = next((rate for part, rate in DATA_SHEET.items() if part in name), None)
    if found is None:
        raise SystemExit(f"no data sheet of {name} here; add its dense bfloat16 rate to DATA_SHEET")
    return found


def large_product() -> float:
    """FLOP/s of 8192³ in bfloat16, the best of ten."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b
        end.record()
        end.synchronize()
        best = max(best, 2 * 8192**3 / (begin.elapsed_time(end) / 1e3))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
