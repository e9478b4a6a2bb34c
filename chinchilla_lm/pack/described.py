"""Formats matrix by matrix as a short text: the fewest patterns that a person still reads.

First comes the format that most matrices have, then for each place in a block (`*.attn.second`) the one that most have
there, where it is another, and then what is left: whole blocks, links, matrices, their numbers by tens, as in
`[135].mlp=int8` and `1[02].mlp.first=int8`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from chinchilla_lm.pack.formats import Format
from chinchilla_lm.pack.mixed import Mixed

Place = tuple[int, str]  # (3, "attn.first")


def described(formats: Mapping[str, Format]) -> Mixed:
    """A `Mixed` that gives each of these matrices its format. formats: by the name of the matrix, at least one."""
    default = _default(list(formats.values()))
    wanted = {_place(name): form for name, form in formats.items() if name != "head"}
    base: dict[str, Format] = {}
    for place in dict.fromkeys(place for _, place in wanted):
        there = Counter(form for (_, one), form in wanted.items() if one == place)
        base[place] = max(there, key=lambda form: (there[form], form == default))
    others = [(f"*.{place}", form) for place, form in base.items() if form != default]
    left = {key: form for key, form in wanted.items() if form != base[key[1]]}
    for places in (
        list(base),
        [place for place in base if "attn" in place],
        [place for place in base if "mlp" in place],
    ):
        others += _together(left, places, wanted)
    numbers: defaultdict[tuple[str, Format], list[int]] = defaultdict(list)
    for (block, place), form in left.items():
        numbers[place, form].append(block)
    others += [(f"{some}.{place}", form) for (place, form), found in numbers.items() for some in _tens(found)]
    if formats.get("head", default) != default:
        others.append(("head", formats["head"]))
    return Mixed(default, tuple(others))


def _default(forms: list[Format]) -> Format:
    """The commonest, of those that round where any does: what is small beside the matrices and the cache go by it."""
    rounding = [form for form in forms if form.rounding is not None]
    return Counter(rounding or forms).most_common(1)[0][0]


def _place(name: str) -> Place:
    block, _, place = name.partition(".")
    return int(block), place


def _together(left: dict[Place, Format], places: list[str], wanted: Mapping[Place, Format]) -> list[tuple[str, Format]]:
    """Patterns of blocks that lack one format at all of several places; takes these out of `left`."""
    if len(places) < 2:
        return []
    text = "*" if len({place.partition(".")[0] for place in places}) > 1 else places[0].partition(".")[0]
    found: defaultdict[Format, list[int]] = defaultdict(list)
    for block in dict.fromkeys(block for block, _ in left):
        there = [(block, place) for place in places if (block, place) in wanted]
        forms = {left.get(key) for key in there}
        form = left.get(there[0]) if len(there) > 1 and len(forms) == 1 else None
        if form is not None:
            found[form].append(block)
            for key in there:
                del left[key]
    return [(f"{some}.{text}", form) for form, blocks in found.items() for some in _tens(blocks)]


def _tens(numbers: Iterable[int]) -> list[str]:
    """Patterns that together name these numbers and no others."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number in sorted(numbers):
        found[str(number // 10) if number >= 10 else ""].append(number % 10)
    return [
        f"{tens}{digits[0]}" if len(digits) == 1 else f"{tens}[{''.join(map(str, digits))}]"
        for tens, digits in found.items()
    ]
