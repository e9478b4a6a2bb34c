"""The bisection over speeds, with models whose loss is known."""

from __future__ import annotations

import pytest

from chinchilla_lm.errors import ContractError
from chinchilla_lm.pipeline.fastest import Trial, bisect, candidates
from chinchilla_lm.pipeline.recovery import Standing
from chinchilla_lm.plan import Plan, chain


def trial(speed: float, loss: float) -> Trial:
    names = [link.name for link in chain(20)]
    plan = Plan.from_dropped(20, names[: round(4 * speed)])
    return Trial(plan, speed, Standing(0.9, loss, loss - 0.5, loss + 0.5))


def test_the_bisection_closes_in_on_the_fastest_speed_that_holds():
    tried = []

    def attempt(speed: float) -> Trial:
        tried.append(speed)
        return trial(speed * 1.01, (speed - 1) ** 2)  # holds a margin of 4 up to 3×

    made = bisect(8.0, 4.0, attempt)
    assert len(tried) == 5
    assert tried[0] == 2.0
    best = candidates(made, 4.0)[0]
    assert 2.6 < best.speedup <= 3.05
    assert [one.speedup for one in candidates(made, 4.0)] == sorted({one.speedup for one in made if one.holds(4.0)})[
        ::-1
    ]


def test_what_cannot_be_had_or_never_holds():
    assert bisect(1.5, 1.0, lambda speed: None) == []
    with pytest.raises(ContractError, match="no shortened model holds the margin of 1 on dev"):
        candidates(bisect(3.0, 1.0, lambda speed: trial(speed, 10.0)), 1.0)


def test_a_plan_found_twice_is_one_candidate():
    made = [trial(2.0, 0.1), trial(2.0, 0.1), trial(1.5, 0.0)]
    assert [one.speedup for one in candidates(made, 1.0)] == [2.0, 1.5]


def test_holding_is_the_estimate_showing_the_interval():
    one = trial(2.0, 0.8)
    assert (one.holds(1.0), one.shows(1.0), one.shows(1.5)) == (True, False, True)
    assert Trial.from_dict(one.to_dict()) == one
