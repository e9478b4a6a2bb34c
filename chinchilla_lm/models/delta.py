"""Linear attention by the gated delta rule (Yang et al. 2024, Gated Delta Networks), as Qwen3.5 has it.

A head remembers a matrix S, from keys to values, instead of all keys and values. At every token it forgets a share of
it, and writes what it did not yet know of the token's value, as far as β says:

    S ← exp(g) S;   u = β (v − Sᵀ k);   S ← S + k uᵀ;   output Sᵀ q

Token after token that is one small product each. Of a piece of C tokens it is a triangular system for all u at once:
with G the running sum of g in the piece and S₀ the memory in front of it,

    (I + A) U = β (V − exp(G) K S₀),    A_ti = β_t exp(G_t − G_i) k_t·k_i for i < t
    output = exp(G) Q S₀ + (Q Kᵀ ⊙ exp(G_t − G_i) for i ≤ t) U

Queries, keys and values come out of a convolution over the last few tokens, so a cache holds those tokens too.

B rows, T positions, C positions of a piece, H value heads, K key features, V value features, M mixed features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.models.config import ModelConfig
from chinchilla_lm.models.layers import Context, Link

PIECE = 64  # tokens solved for at once; transformers' choice
SMALLEST_SQUARE = 1e-6  # added to the squared length of queries and keys before they are divided by it


class GatedDelta(Link):
    """A link that mixes tokens by the gated delta rule."""

    remembers = True

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__(config, block)
        delta = config.deltas[block]
        assert delta is not None
        self.name, self.delta = f"{block}.attn", delta
        self.eps = config.norm_eps
        keys, values = delta.key_heads * delta.key_dim, delta.value_heads * delta.value_dim
        self.mixed = 2 * keys + values
        self.widths = [self.mixed, values, delta.value_heads, delta.value_heads]
        self.parts = [keys, keys, values]
        self.inner = nn.Linear(config.hidden_size, sum(self.widths), bias=False)
        self.conv = nn.Conv1d(self.mixed, self.mixed, delta.kernel, groups=self.mixed, bias=False)
        self.decay = nn.Parameter(torch.zeros(delta.value_heads))  # A_log
        self.step = nn.Parameter(torch.ones(delta.value_heads))  # dt_bias
        self.head_norm = nn.RMSNorm(delta.value_dim, eps=config.norm_eps)
        self.out = nn.Linear(values, config.hidden_size, bias=False)

    @property
    def first(self) -> nn.Linear:
        """See Link."""
        return self.inner

    @property
    def second(self) -> nn.Linear:
        """See Link."""
        return self.out

    def contribution(self, x_BTD: Tensor, context: Context) -> Tensor:
        """What the tokens up to each position left in the memory, [B, T, D]; a text does not see padding behind it."""
        rows, positions, _ = x_BTD.shape
        mixed, gate, write, forget = self.inner(x_BTD).split(self.widths, dim=-1)
        before = None if context.cache is None else context.cache.state(self.name)
        query, key, value, past_BMC = self._convolved(mixed, None if before is None else before[0])
        log_decay = -self.decay.float().exp() * F.softplus(forget.float() + self.step.float())
        memory = None if before is None else before[1]
        with torch.autocast(x_BTD.device.type, enabled=False):
            mixed_BTHV, memory = gated_delta(query, key, value, log_decay, write.float().sigmoid(), memory)
        if context.cache is not None:
            context.cache.keep(self.name, (past_BMC, memory))
        heads = self.head_norm(mixed_BTHV.to(x_BTD.dtype)).float() * F.silu(gate.float().view_as(mixed_BTHV))
        return self.out(heads.to(x_BTD.dtype).reshape(rows, positions, -1))

    def _convolved(self, mixed_BTM: Tensor, past_BMC: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key and value, [B, T, heads, features], and the tokens that the next ones will be mixed with."""
        rows, positions, _ = mixed_BTM.shape
        new = mixed_BTM.transpose(1, 2)
        if past_BMC is None:
            past_BMC = new.new_zeros(rows, self.mixed, self.delta.kernel - 1)
        whole = torch.cat((past_BMC, new), dim=-1)
        convolved = F.silu(self.conv(whole)).transpose(1, 2)
        query, key, value = convolved.split(self.parts, dim=-1)
        shared = self.delta.value_heads // self.delta.key_heads
        query, key = (
            part.view(rows, positions, -1, self.delta.key_dim).repeat_interleave(shared, dim=2) for part in (query, key)
        )
        value = value.view(rows, positions, -1, self.delta.value_dim)
        return query, key, value, whole[..., positions:]


def gated_delta(
    query: Tensor, key: Tensor, value: Tensor, log_decay_BTH: Tensor, write_BTH: Tensor, memory_BHKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, V] and the memory behind the last token [B, H, K, V], float32.

    query, key: [B, T, H, K], brought to length 1 here; value: [B, T, H, V]; memory_BHKV: in front of the first token.
    """
    query, key, value = (part.float().transpose(1, 2) for part in (query, key, value))
    query, key = (part * (part.square().sum(-1, keepdim=True) + SMALLEST_SQUARE).rsqrt() for part in (query, key))
    query = query * key.shape[-1] ** -0.5
    decay_BHT, write_BHT1 = log_decay_BTH.transpose(1, 2), write_BTH.transpose(1, 2)[..., None]
    memory = value.new_zeros(*key.shape[:2], key.shape[-1], value.shape[-1]) if memory_BHKV is None else memory_BHKV
    found = []
    for start in range(0, key.shape[2], PIECE):
        part = slice(start, start + PIECE)
        output, memory = _piece(
            query[:, :, part], key[:, :, part], value[:, :, part], decay_BHT[..., part], write_BHT1[:, :, part], memory
        )
        found.append(output)
    return torch.cat(found, dim=2).transpose(1, 2), memory


def _piece(
    query_BHCK: Tensor, key: Tensor, value: Tensor, decay_BHC: Tensor, write: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """See the top of this file."""
    total = decay_BHC.cumsum(-1)
    count = total.shape[-1]
    later = torch.ones(count, count, dtype=torch.bool, device=total.device).triu(1)
    # Hidden before the exponential, which would be infinite for what lies ahead.
    kept = (total[..., :, None] - total[..., None, :]).masked_fill(later, -torch.inf).exp()
    since = total.exp()[..., None]
    matrix = (write * kept * (key @ key.transpose(-1, -2))).tril(-1)
    wanted = write * (value - since * (key @ memory))
    unit = matrix + torch.eye(count, dtype=matrix.dtype, device=matrix.device)
    news = torch.linalg.solve_triangular(unit, wanted, upper=False, unitriangular=True)
    output = since * (query_BHCK @ memory) + (kept * (query_BHCK @ key.transpose(-1, -2))) @ news
    to_end = (total[..., -1:] - total).exp()[..., None]
    return output, since[..., -1:, :] * memory + key.transpose(-1, -2) @ (to_end * news)
