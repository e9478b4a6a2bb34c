"""Real removal: a new model without the dropped links, which shares or copies the weights of those that are left."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from chinchilla_lm.models.filling import skeleton
from chinchilla_lm.models.transformer import NormFate, Transformer
from chinchilla_lm.plan import Plan


def drops(plan: Plan) -> dict[str, NormFate]:
    """Dropped links of a plan and what becomes of their norms, as a Transformer takes them."""
    return {name: "keep" if plan.norms.get(name) == "keep" else "lose" for name in plan.dropped}


def outline(model: Transformer, dropped: Mapping[str, NormFate] | None = None) -> Transformer:
    """A model on the meta device with the parameters that `model` has, less those of the links in `dropped`.

    What a config describes and what a model has can differ: folding takes norms' weights away and adds biases.
    """
    empty = skeleton(model.config, {**model.dropped, **(dropped or {})})
    for path, module in list(empty.named_modules()):
        expected = dict(module.named_parameters(recurse=False))
        present = dict(model.get_submodule(path).named_parameters(recurse=False))
        for name in expected.keys() - present.keys():
            setattr(module, name, None)
        for name in present.keys() - expected.keys():
            setattr(module, name, nn.Parameter(present[name].detach().to("meta")))
    return empty


def without(model: Transformer, dropped: Mapping[str, NormFate], *, share: bool) -> Transformer:
    """A new model that lacks `dropped` as well as what the old one lacked; `share` False copies the weights.

    A shared model costs no memory and is for measuring; a model that will be trained needs its own copy.
    """
    short = outline(model, dropped)
    weights = model.state_dict()
    kept = {name: weights[name] if share else weights[name].clone() for name in short.state_dict()}
    short.load_state_dict(kept, assign=True)
    short.tie()
    return short.train(model.training)


def shorten(model: Transformer, plan: Plan, *, share: bool = False) -> Transformer:
    """The model that a plan describes."""
    return without(model, drops(plan), share=share)
