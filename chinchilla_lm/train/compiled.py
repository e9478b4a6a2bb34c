"""What training compiles on a GPU, where a step of many small kernels would wait for memory most of its time.

A link is compiled once for all links of its kind. On the CPU, where products are most of a step, nothing is compiled:
the compiler would take longer than it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar, cast

import torch

from chinchilla_lm.models.transformer import Transformer

F = TypeVar("F", bound=Callable[..., object])
# Of a link: attention or MLP, with gradients or without, and with a mask, in batches of any shape.
MOST_VARIANTS = 64


@contextmanager
def compiled(*models: Transformer) -> Iterator[None]:
    """Run the links of those models that are on a GPU compiled, until the end of the block."""
    links = [link for model in models if on_gpu(model) for link in model.links.values()]
    if not links:
        yield
        return
    with torch._dynamo.config.patch(recompile_limit=MOST_VARIANTS):
        for link in links:
            link.compile()
        try:
            yield
        finally:
            for link in links:
                link._compiled_call_impl = None


@cache
def compiled_function(function: F) -> F:
    """The function, compiled when it is first called."""
    return cast(F, torch.compile(function))


def on_gpu(model: Transformer) -> bool:
    """Whether its weights are on a GPU."""
    return model.embedding.tokens.weight.is_cuda
