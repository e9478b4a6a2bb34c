"""Formats matrix by matrix as a short text, which means the same again."""

from __future__ import annotations

import random

import pytest

from chinchilla_lm.pack.described import described
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.mixed import mixed

PLACES = ("attn.first", "attn.second", "mlp.first", "mlp.second")


def names(blocks: int, source: random.Random | None = None) -> list[str]:
    """The matrices of a model, of which some links are dropped where there is a source."""
    links = [f"{block}.{kind}" for block in range(blocks) for kind in ("attn", "mlp")]
    kept = links if source is None else [link for link in links if source.random() < 0.8]
    return [*(f"{link}.{place}" for link in kept for place in ("first", "second")), "head"]


@pytest.mark.parametrize("seed", range(200))
def test_the_text_gives_every_matrix_its_format(seed: int):
    source = random.Random(seed)
    offered = source.sample(list(FORMATS.values()), source.randint(1, 4))
    weights = [source.random() ** 3 for _ in offered]
    matrices = names(source.choice([1, 3, 12, 36, 120]), source if seed % 2 else None)
    wanted = {name: source.choices(offered, weights)[0] for name in matrices}
    for name in matrices:  # links and blocks that are alike
        if source.random() < 0.5:
            link = name.rpartition(".")[0]
            wanted |= dict.fromkeys([one for one in matrices if one.startswith(link)], wanted[name])
    text = str(described(wanted))
    found = mixed(text)
    found.check(matrices)
    assert {name: found.of(name) for name in matrices} == wanted
    assert len(text) <= sum(len(f",{name}={form.name}") for name, form in wanted.items()) + 20


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "int4"),
        ({"head": "int8"}, "int4,head=int8"),
        ({"3.mlp.first": "int8", "3.mlp.second": "int8"}, "int4,3.mlp=int8"),
        ({f"12.{place}": "bf16" for place in PLACES}, "int4,12.*=bf16"),
        ({f"{block}.mlp.first": "int8" for block in (1, 3, 10, 12)}, "int4,[13].mlp.first=int8,1[02].mlp.first=int8"),
        (
            {f"{block}.attn.second": "int8" for block in range(14) if block != 5},
            "int4,*.attn.second=int8,5.attn.second=int4",
        ),
    ],
)
def test_the_text_is_short(changes: dict[str, str], text: str):
    formats = dict.fromkeys(names(14), FORMATS["int4"]) | {name: FORMATS[form] for name, form in changes.items()}
    assert str(described(formats)) == text


def test_a_format_that_rounds_comes_first():
    """What is small beside the matrices and the cache of keys and values go by the first."""
    formats = dict.fromkeys(names(3), FORMATS["f32"]) | {"1.mlp.first": FORMATS["int8"]}
    assert str(described(formats)).startswith("int8,")
