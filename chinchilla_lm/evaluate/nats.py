"""How unexpected the tokens of a text are to a language model, without the logits of a whole batch in memory.

4,096 tokens and a vocabulary of 262,144 words have 4 GB of logits, of which one number a token is wanted. The engine
counts its logits as it makes them; a transformer's head gets some positions at a time.

The engine's sums are compensated and agree with float64 to 1e-6 nats a token. torch's log-softmax in float32 loses what
is small beside the sum so far: SmolLM2's nats on WikiText-2 are 8e-6 a token too low in it, its perplexity likewise.

B rows, T positions, D hidden features, N positions with a target, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.data.encoded import IGNORED
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.head import Head
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.engine.served import NativeForward

# Logits at once, 67 MB in float32: 64 positions of 262,144 words, which read a decoder of 0.3 GB in less time than
# their products take.
LOGITS = 1 << 24

Forward = Callable[[Batch], Tensor]


def nats_of(forward: Forward, batch: Batch, targets_BT: Tensor) -> Tensor:
    """−log softmax(logits)[target], float32 [B, T] on the CPU, 0 where the target is IGNORED.

    forward: a program or a transformer, or whatever else gives logits [B, T, V]. Raises InputError where its outputs
    are not finite numbers.
    """
    if isinstance(forward, NativeForward):
        found = forward.nats(batch, targets_BT)
        if not bool(torch.isfinite(found).all()):
            raise not_finite()
        return found
    at = (targets_BT.reshape(-1) != IGNORED).nonzero().squeeze(1)
    outputs, head = _outputs(forward, batch)
    rows_ND = outputs.flatten(0, 1)[at.to(outputs.device)]
    size = max(1, LOGITS // (outputs.shape[-1] if head is None or head.output is None else head.output.out_features))
    found = torch.zeros(targets_BT.numel())
    for some, rows, targets in zip(
        at.split(size), rows_ND.split(size), targets_BT.reshape(-1)[at].split(size), strict=True
    ):
        logits = checked(rows if head is None else head.classify(rows))
        found[some] = F.cross_entropy(logits, targets.to(logits.device), reduction="none").cpu()
    return found.view(targets_BT.shape)


def _outputs(forward: Forward, batch: Batch) -> tuple[Tensor, Head | None]:
    """Last hidden states [B, T, D] and the head that makes logits of them; or logits [B, T, V]."""
    if not isinstance(forward, Transformer):
        return forward(batch), None
    return forward(batch, then=lambda hidden, _: hidden), forward.head


def checked(outputs: Tensor) -> Tensor:
    """float32 outputs; raises InputError for those that are not numbers."""
    outputs = outputs.float()
    if not bool(torch.isfinite(outputs).all()):
        raise not_finite()
    return outputs


def not_finite() -> InputError:
    """One line."""
    return InputError("the model's outputs are not finite numbers; check its weights, or pass --dtype float32")
