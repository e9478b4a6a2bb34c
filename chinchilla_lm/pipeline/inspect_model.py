"""What a model is made of that is not packed, and its times in torch."""

from __future__ import annotations

import torch

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import Checkpoint
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.results import BlockParameters, InspectResult, LinkParameters, PassTime, Size
from chinchilla_lm.runtime.device import resolve_device
from chinchilla_lm.runtime.measuring.roofline import size_of
from chinchilla_lm.runtime.measuring.shape import prompt
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.runtime.torch_backend import dtype_of
from chinchilla_lm.score.timing import time_links


def describe(checkpoint: Checkpoint, name: str) -> InspectResult:
    """A model's config in short, its blocks, and the parameters and bytes of its parts. name: what it was called."""
    model, config = checkpoint.model, checkpoint.model.config
    parts = {"embedding": size_of(model.embedding), "head": size_of(model.head), "total": size_of(model)}
    if model.norm is not None:
        parts["norm"] = size_of(model.norm)
    return InspectResult(
        model=name,
        family=config.family,
        head=config.head.kind,
        tied=config.head.tied,
        labels=list(config.head.labels),
        causal=config.causal,
        positions=config.max_positions,
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        intermediate=config.intermediate_size,
        dtype=str(model.embedding.tokens.weight.dtype).removeprefix("torch."),
        fresh=list(checkpoint.fresh),
        dropped=dict(model.dropped),
        blocks=[_block(model, block) for block in range(config.num_blocks)],
        sizes={part: Size(parameters=size.parameters, bytes=size.bytes) for part, size in parts.items()},
        parameters=parts["total"].parameters,
        bytes=parts["total"].bytes,
        certificate=None,
    )


def _block(model: Transformer, block: int) -> BlockParameters:
    return BlockParameters(block=block, attn=_link(model, f"{block}.attn"), mlp=_link(model, f"{block}.mlp"))


def _link(model: Transformer, name: str) -> LinkParameters:
    """A link that is left: its parameters; a dropped one: what became of its norm."""
    if name in model.dropped:
        return LinkParameters(name=name, parameters=0, dropped=model.dropped[name])
    return LinkParameters(name=name, parameters=size_of(model.link(name)).parameters, dropped=None)


def time_model(model: Transformer, rows: int, tokens: int, device: str, dtype: str, seconds: float) -> PassTime:
    """Of passes over random ids, for about so many seconds."""
    place = resolve_device(device)
    ready = prepare(model, place, dtype_of(dtype, place))
    batch = Batch(torch.from_numpy(prompt(0, rows, tokens, model.config.vocab_size)))
    times = time_links(ready, batch.to(place), seconds=seconds)
    return PassTime(batch=rows, tokens=tokens, total_us=times.total_us, fixed_us=times.fixed_us, link_us=times.link_us)
