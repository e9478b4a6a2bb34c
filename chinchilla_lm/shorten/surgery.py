"""Real removal: a new model without the dropped links, which shares or copies the weights of those that are left."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from chinchilla_lm.models.transformer import NormFate, Transformer
from chinchilla_lm.plan import Plan


def drops(plan: Plan) -> dict[str, NormFate]:
    """Dropped links of a plan and what becomes of their norms, as a Transformer takes them."""
    return {name: "keep" if plan.norms.get(name) == "keep" else "lose" for name in plan.dropped}


def without(model: Transformer, dropped: Mapping[str, NormFate], *, share: bool) -> Transformer:
    """A new model that lacks `dropped` as well as what the old one lacked; `share` False copies the weights.

    A shared model costs no memory and is for measuring; a model that will be trained needs its own copy.
    """
    with torch.device("meta"):
        short = Transformer(model.config, {**model.dropped, **dropped})
    weights = model.state_dict()
    kept = {name: weights[name] if share else weights[name].clone() for name in short.state_dict()}
    short.load_state_dict(kept, assign=True)
    short.tie()
    return short.train(model.training)


def shorten(model: Transformer, plan: Plan, *, share: bool = False) -> Transformer:
    """The model that a plan describes."""
    return without(model, drops(plan), share=share)
