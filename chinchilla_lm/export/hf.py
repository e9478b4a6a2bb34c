"""A shortened model as a stock Hugging Face folder, which transformers and others load and compute the same with.

A block whose links are both gone is absent, and the blocks behind it move up; but the first one stays where stock code
has no norm in front of its attention, as another could not take its place. A single dropped link stays as a link
that adds nothing: zero output weights and bias.

In a post-norm model a dropped link may also have lost its norm, and stock code has no way to leave one out. But a norm
behind a norm of weight 1 and bias 0 finds mean 0 and variance 1 (but for eps), so it only applies its own weight and
bias. Hence the previous norm of the stream gets weight 1 and bias 0, and the lost norm's place takes over what it had.
This is allowed because in a post-norm model the previous norm's output goes nowhere but into this link,
which adds nothing, and past it. Several lost norms in a row pass weight and bias on, one to the next.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import Checkpoint, save
from chinchilla_lm.models.config import ModelConfig
from chinchilla_lm.models.families.base import Family
from chinchilla_lm.models.filling import skeleton
from chinchilla_lm.models.meta import ADAPTED, META, adapted, read_meta
from chinchilla_lm.models.sentence import FILES as SENTENCE_FILES
from chinchilla_lm.models.tokenizer import is_tokenizer_file
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.models.weight_files import SINGLE
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.certified import CERTIFICATE

KINDS = ("attn", "mlp")
# A certificate may have been issued for the export itself; it goes when that does.
_FILES = frozenset({"config.json", SINGLE, CERTIFICATE, *SENTENCE_FILES})


def is_of_an_export(folder: Path, name: str) -> bool:
    """Whether an export may hold this file, whose name is relative to its folder."""
    return name in _FILES or is_tokenizer_file(name) or (name == META and _says_only_what_it_learnt(folder / name))


def _says_only_what_it_learnt(path: Path) -> bool:
    try:
        meta = read_meta(path)
    except InputError:
        return False
    return meta.keys() <= {"version", "dropped", "hub", ADAPTED} and not meta.get("dropped")


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def export_hf(checkpoint: Checkpoint, folder: str | Path, form: str = "f32") -> None:
    """Write the portable model, with a chinchilla.json where it learnt from the answers of data. form: `f32` or `bf16`.
    Raises InputError where transformers has no class for the model's head."""
    refuse_ours_only(checkpoint)
    found = portable(checkpoint)
    if form != "f32":
        found = found.with_model(copy.deepcopy(found.model).to(DTYPES[form]))
        found.model.tie()
    save(found, folder, adapted(checkpoint.meta))


def refuse_ours_only(checkpoint: Checkpoint) -> None:
    """Raise InputError for a head of which transformers has no class."""
    family, head = checkpoint.family, checkpoint.model.config.head
    if head.kind in family.ours_only:
        raise InputError(f"transformers has no {family.name} with a head for {head.kind}; use the model's own folder")


def portable(checkpoint: Checkpoint, blocks: list[int] | None = None) -> Checkpoint:
    """The same function with every link present or its whole block absent, blocks renumbered from 0.

    blocks: those that stay, `remaining_blocks` or more.
    """
    model = checkpoint.model
    if not model.dropped:
        return checkpoint
    blocks = remaining_blocks(model) if blocks is None else blocks
    config = cut_config(model.config, blocks)
    state = renumbered(model, blocks)
    full = skeleton(config)
    example = model.embedding.tokens.weight
    for name, tensor in full.state_dict().items():
        if name not in state:
            state[name] = neutral(name, config, tensor.shape, example)
    for position, (block, kind) in enumerate((block, kind) for block in blocks for kind in KINDS):
        if config.post_norm and model.dropped.get(f"{block}.{kind}") == "lose":
            if position == 0 and config.embedding_size is not None:  # no norm stands right in front
                raise InputError(
                    f"link {block}.{kind} lost its norm, which a stock {checkpoint.family.name} cannot leave out; "
                    "use the model's own folder, or a plan that keeps this norm"
                )
            move_norm(state, position)
    full.load_state_dict(state, assign=True)
    full.tie()
    hf = cut_hf_config(checkpoint.hf_config, checkpoint.family, config)
    return replace(checkpoint.with_model(full.eval()), hf_config=hf)


def remaining_blocks(model: Transformer) -> list[int]:
    """The blocks that still do something; the first one where none does, or where it is not built like the others.

    Of a model with a linear attention one block with another one stays too: without it transformers' cache fails.
    """
    gone = "lose" if model.config.post_norm else None
    blocks = [
        block
        for block in range(model.config.num_blocks)
        if (block == 0 and not model.config.first_norm)
        or not all(_is_gone(model.dropped.get(f"{block}.{kind}"), gone) for kind in KINDS)
    ]
    deltas = model.config.deltas
    attending = [block for block, delta in enumerate(deltas) if delta is None]
    if attending and not set(attending) & set(blocks):
        blocks = sorted([*blocks, attending[0]])
    return blocks or [0]


def _is_gone(fate: str | None, needed: str | None) -> bool:
    return fate is not None and (needed is None or fate == needed)


def cut_config(config: ModelConfig, blocks: list[int]) -> ModelConfig:
    """The config of the remaining blocks."""
    return replace(
        config,
        num_blocks=len(blocks),
        windows=tuple(config.windows[block] for block in blocks) if config.windows else (),
        ropes=tuple(config.ropes[block] for block in blocks) if config.ropes else (),
        deltas=tuple(config.deltas[block] for block in blocks) if config.deltas else (),
    )


def cut_hf_config(hf: Mapping[str, Any], family: Family, config: ModelConfig) -> dict[str, Any]:
    """The Hugging Face config of the remaining blocks; what was said by a pattern is now said block by block."""
    depth = {key: config.num_blocks for key in (family.depth_key, "num_hidden_layers") if key in hf}
    cut = dict(hf) | depth | {family.depth_key: config.num_blocks}
    if family.layer_types and (config.windows or config.deltas):
        cut["layer_types"] = [_layer_type(config, block) for block in range(config.num_blocks)]
    if family.rope_layers is not None:
        cut[family.rope_layers] = [int(rope is not None) for rope in config.ropes]
    return cut


def _layer_type(config: ModelConfig, block: int) -> str:
    """What transformers calls a block's way to mix tokens."""
    if config.deltas and config.deltas[block] is not None:
        return "linear_attention"
    return "sliding_attention" if config.windows and config.windows[block] is not None else "full_attention"


def renumbered(model: Transformer, blocks: list[int]) -> dict[str, Tensor]:
    """The weights of the remaining blocks, numbered from 0."""
    names = new_names(model.state_dict(), blocks)
    return {names[name]: tensor.detach() for name, tensor in model.state_dict().items() if name in names}


def new_names(names: Iterable[str], blocks: list[int]) -> dict[str, str]:
    """What the parameters of the remaining blocks are called, numbered from 0; those of others are not among them."""
    new = {str(block): position for position, block in enumerate(blocks)}
    found: dict[str, str] = {}
    for name in names:
        if not name.startswith("links."):
            found[name] = name
            continue
        block, rest = name.removeprefix("links.").split("_", 1)
        if block in new:
            found[name] = f"links.{new[block]}_{rest}"
    return found


def portable_codes(codes: Mapping[str, Quantized], blocks: list[int]) -> dict[str, Quantized]:
    """The codes of the remaining blocks, numbered from 0."""
    names = new_names(codes, blocks)
    return {names[name]: one for name, one in codes.items() if name in names}


def neutral(name: str, config: ModelConfig, shape: torch.Size, example: Tensor) -> Tensor:
    """A weight of a link that adds nothing: zero, but for the scale of a norm."""
    scale = "norm" in name and name.endswith(".weight") and not config.norm_unit_offset
    return example.new_full(shape, 1.0 if scale else 0.0)


def move_norm(state: dict[str, Tensor], position: int) -> None:
    """Hand the previous norm's weight and bias to the norm at a chain position; see the top of this file."""
    previous = "embedding.norm" if position == 0 else _norm(position - 1)
    for part, rest in (("weight", 1.0), ("bias", 0.0)):
        old = state[f"{previous}.{part}"]
        state[f"{_norm(position)}.{part}"] = old
        state[f"{previous}.{part}"] = torch.full_like(old, rest)


def _norm(position: int) -> str:
    return f"links.{position // 2}_{KINDS[position % 2]}.norm"
