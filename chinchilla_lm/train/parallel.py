"""How a model is trained by several processes, in a fixed order of wrapping.

    dp          data parallel: each process has all weights and some of the rows; gradients are averaged (DDP)
    dp, shard   the same, but of weights, gradients and Adam's moments each process keeps a part, and has a link's
                weights whole only while it runs it (FSDP2's `fully_shard`, Zhao et al. 2023, arXiv 2304.11277)

A loss is the mean over the targets of the batch of all processes (train/parts.py). Both kinds average over processes
what should be summed, so that losses are multiplied by their number first.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.processes import ALONE, processes
from chinchilla_lm.train.parts import parts_of


@dataclass(frozen=True, slots=True)
class Layout:
    """dp: processes that share the rows of a batch; shard: whether they share the weights too."""

    dp: int = 1
    shard: bool = False

    @classmethod
    def parse(cls, text: str | None, count: int) -> Layout:
        """Of `dp=2,shard`, for so many processes; None: data parallel over all. Raises InputError for what does not fit
        them, and for what is none."""
        if text is None:
            return cls(count)
        parts = text.replace(" ", "").split(",")
        axes = [re.fullmatch(r"dp=(\d{1,5})", part) for part in parts if part != "shard"]
        if len(axes) != 1 or axes[0] is None or parts.count("shard") > 1:
            raise InputError(f"parallel {text!r} is not of the form dp=2 or dp=2,shard; pass one of them")
        dp = int(axes[0].group(1))
        if dp != count:
            raise InputError(
                f"parallel {text!r} is for {dp} processes, and {count} are started; pass dp={count} or start {dp}"
            )
        return cls(dp, dp > 1 and "shard" in parts)


ONE = Layout()


class Parallel:
    """A model in training by all processes of a layout, or by one.

    Makes the model the same everywhere first, as the first process has it. `module` is what is called in its place,
    `trained` holds the weights that are trained. While the weights are parted, the model itself has none, but within
    `shown`.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.here, self.layout = (processes(), layout) if layout.dp > 1 else (ALONE, layout)
        self.module = self.trained = self._model = model
        if layout.dp == 1:
            return
        device = next(model.parameters()).device
        self.here.copied([*(one.detach() for one in model.parameters()), *model.buffers()])
        if layout.shard:
            self.module = self.trained = _sharded(model, layout, device)
            self._hide()
        else:
            ids = [device] if device.type == "cuda" else None
            self.module = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def parts(self, batch: EncodedBatch, most_tokens: int | None) -> Iterator[EncodedBatch]:
        """This process's parts of a batch. What is done with each happens before the next is asked for: gradients are
        exchanged behind the last."""
        parts = parts_of(batch, self.here.rank, self.here.count, most_tokens)
        for place, part in enumerate(parts, 1):
            context: AbstractContextManager[object] = nullcontext()
            if isinstance(self.module, DistributedDataParallel) and place < len(parts):
                context = self.module.no_sync()
            elif self.layout.shard:
                self.module.set_requires_gradient_sync(place == len(parts))  # type: ignore[operator]
            with context:
                yield part

    def backward(self, loss: Tensor) -> None:
        """Gradients of a part's loss."""
        (loss * self.here.count if self.here.count > 1 else loss).backward()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model has its weights on the first process, as they are now; all processes come here together."""
        if self.layout.shard:
            self.show()
        try:
            yield
        finally:
            if self.layout.shard:
                self._hide()

    @torch.no_grad()
    def show(self) -> None:
        """Give the model its weights, on the first process, for good."""
        if not self.layout.shard:
            return
        own = dict(self._model.named_parameters())
        for name, parameter in self.trained.named_parameters():
            found = whole(parameter)
            if self.here.first:
                own[name].data = found.detach().to(own[name].device).clone()

    def _hide(self) -> None:
        for parameter in self._model.parameters():
            parameter.data = parameter.data.new_empty(0)


def _sharded(model: nn.Module, layout: Layout, device: torch.device) -> nn.Module:
    """A copy of the model, of whose weights this process keeps a part."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    assert isinstance(model, Transformer)
    shared = {id(tensor): tensor for tensor in model.buffers()}
    own = {id(one): nn.Parameter(one.detach(), requires_grad=one.requires_grad) for one in model.parameters()}
    copied = copy.deepcopy(model, {**shared, **own})
    mesh = init_device_mesh(device.type, (layout.dp,), mesh_dim_names=("dp",))
    for name, link in copied.links.items():
        if model.links[name]._compiled_call_impl is not None:  # a copy is not
            link.compile()
        fully_shard(link, mesh=mesh)
    fully_shard(copied, mesh=mesh)
    return copied


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its parts, which all processes must ask for together; one that is not parted as it is."""
    parted = getattr(tensor, "full_tensor", None)  # a DTensor's
    return tensor if parted is None else parted()


def parted_as(like: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, the same on all processes, parted among them as another one is."""
    if getattr(like, "full_tensor", None) is None:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements)
