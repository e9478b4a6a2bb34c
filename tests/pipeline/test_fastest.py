"""The bisection over speeds, with models whose loss is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chinchilla_lm.errors import ContractError
from chinchilla_lm.pipeline.fastest import Effort, Trial, bisect, candidates
from chinchilla_lm.pipeline.outcome import advice_words
from chinchilla_lm.pipeline.planning import with_chosen
from chinchilla_lm.pipeline.recovery import Standing
from chinchilla_lm.plan import Plan, chain
from chinchilla_lm.recipe import make_recipe


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
    held = sorted({one.speedup for one in made if one.holds(4.0)})[::-1]
    assert 2.6 < held[0] <= 3.05
    assert [one.speedup for one in candidates(made, 4.0, further=True) if one.holds(4.0)] == held


def test_what_cannot_be_had_or_never_holds():
    assert bisect(1.5, 1.0, lambda speed: None) == []
    with pytest.raises(ContractError, match="no shortened model holds the margin of 1 on dev"):
        candidates(bisect(3.0, 1.0, lambda speed: trial(speed, 10.0)), 1.0, further=True)


def test_a_plan_found_twice_is_one_candidate():
    made = [trial(2.0, 0.1), trial(2.0, 0.1), trial(1.5, 0.0)]
    assert [one.speedup for one in candidates(made, 1.0, further=True)] == [2.0, 1.5]


def test_the_first_is_the_undecided_one_of_least_loss():
    """Intervals reach 0.5 beyond the loss; a margin of 1 rules out 1.6 and 3.0, and 1.2× is slower than what holds."""
    losses = {2.8: 3.0, 2.6: 1.3, 2.4: 1.6, 2.2: 1.2, 2.0: 1.4, 1.8: 0.9, 1.5: 0.1, 1.2: 1.1}
    made = [trial(speed, loss) for speed, loss in losses.items()]
    assert [one.speedup for one in candidates(made, 1.0, further=True)] == [2.2, 1.8, 1.5]


def test_where_none_holds_the_slower_undecided_ones_follow():
    losses = {2.8: 3.0, 2.6: 1.3, 2.4: 1.6, 2.2: 1.2, 2.0: 1.4, 1.8: 1.7, 1.5: 1.3}
    made = [trial(speed, loss) for speed, loss in losses.items()]
    assert [one.speedup for one in candidates(made, 1.0, further=True)] == [2.2, 2.0, 1.5]


def test_without_more_recovery_what_is_undecided_stays_so():
    made = [trial(2.2, 1.2), trial(1.8, 0.9)]
    assert [one.speedup for one in candidates(made, 1.0, further=False)] == [1.8]
    with pytest.raises(ContractError, match="no shortened model holds the margin of 1 on dev"):
        candidates(made[:1], 1.0, further=False)


def test_what_dev_cannot_tell_is_said():
    """Losses are known to ±0.5: enough for a margin of 1, too little for 0.4."""
    for margin, coarse in ((1.0, False), (0.4, True)):
        with pytest.raises(ContractError) as error:
            candidates([trial(1.2, 3.0)], margin, further=True)
        assert ("dev tells a loss to ±0.5 only" in str(error.value)) is coarse


def test_holding_is_the_estimate_showing_the_interval():
    one = trial(2.0, 0.8)
    assert (one.holds(1.0), one.shows(1.0), one.shows(1.5)) == (True, False, True)
    assert Trial.from_dict(one.to_dict()) == one


def test_what_the_trials_take_is_said_before_them():
    """6 models on 10,000 tokens, each four passes over a token, and thrice 2,000 of dev: 46,000 passes of 1 ms."""
    effort = Effort(5, 6, 10_000, 2_000, 200, 500, 0.001, dev_readings=3)
    assert effort.words() == (
        "5 speeds are tried on dev: up to 6 models are recovered on 10,000 tokens and judged, about 0:46 each, 4:36 in "
        "all, by how fast the original reads dev; on top come the searches, of 200 measurements or 1:40 each at most, "
        "and, not counted, the timing of what they find; the test data are looked at once, at the end"
    )
    advice = replace(effort, advice=True)
    assert advice.words() == effort.words().removesuffix("; the test data are looked at once, at the end")
    full = replace(effort, recovery_tokens=90_000)
    assert full.words() == effort.words().replace(
        "; the test data",
        "; then one is recovered in full, on 90,000 tokens, about 6:00, and another each time that dev does not show "
        "it to be within the margin; the test data",
    )
    assert replace(full, advice=True).words() == advice.words()
    assert replace(effort, recovery_tokens=10_000).words() == effort.words()
    without = Effort(3, 3, 0, 2_000, measures=0, calibration_tokens=500, token_seconds=0.001)
    assert without.words() == (
        "3 speeds are tried on dev: up to 3 models are judged without recovery, about 0:02 each, 0:06 in all, by how "
        "fast the original reads dev; not counted are the searches and the timing of what they find; the test data are "
        "looked at once, at the end"
    )


def test_advice_says_that_it_knows_nothing_of_the_guard():
    asked = {"model": "bert", "task": "token-classification", "data": "ner", "speedup": 2.5}
    alone, guarded = (advice_words(trial(2.02, 0.8), make_recipe(asked | more)) for more in ({}, {"guard": "other"}))
    assert "what would pass: 2.02× with 32 links, whose loss on dev is 0.80 [0.30, 1.30] after a short " in alone
    assert "--speedup 1.98" in alone
    assert "guard" not in alone
    for words in (alone, guarded):
        assert words.endswith("; that is a second look at the test data")
    assert "after a short recovery, the guard not looked at; run chinchilla compress" in guarded


def test_the_frontier_marks_the_plan_that_was_taken():
    taken, other = (Plan.from_dropped(20, ["0.attn", name], method="refine") for name in ("3.mlp", "4.mlp"))
    rows = [("original", None), ("refine", taken), ("refine", other), ("top", taken), ("refine", taken)]
    points = [
        {"method": method, "links": 1} | ({} if plan is None else {"dropped": list(plan.dropped)})
        for method, plan in rows
    ]
    for plan, marked in [(taken, [4]), (other, [2]), (Plan.from_dropped(20, [], method="refine"), [])]:
        report = with_chosen(points, plan)
        assert [place for place, point in enumerate(report) if point["chosen"]] == marked
        assert all(point.keys() == {"method", "links", "chosen"} for point in report)
    assert with_chosen([{"links": 1}], taken) == [{"links": 1, "chosen": False}]
