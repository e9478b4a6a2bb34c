"""How many threads: decided by rounds in turn, and not by one that was disturbed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest

from chinchilla_lm.peers import trials
from chinchilla_lm.peers.trials import best_threads, chance


class Machine:
    """Takes so many seconds on so many threads, with noise; time passes as it works."""

    def __init__(self, seconds: dict[int, float], noise: float = 0.0, seed: int = 0) -> None:
        self.seconds, self.noise, self.random = seconds, noise, np.random.default_rng(seed)
        self.passed, self.tried = 0.0, list[int]()

    def __call__(self, threads: int) -> float:
        taken = self.seconds[threads] * float(np.exp(self.random.normal(0, self.noise)))
        self.tried.append(threads)
        self.passed += taken
        return taken

    def best(self) -> int:
        return best_threads(list(self.seconds), self, lambda: self.passed)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 0.6, 2: 1.0}, 1),
        ({1: 1.0, 2: 1.0}, 2),
        ({1: 0.99, 2: 1.0}, 2),  # too little to give a core away for
        ({2: 0.5, 4: 0.8, 8: 1.0}, 2),
        ({2: 2.0, 4: 0.8, 8: 1.0}, 4),
        ({1: float("inf"), 2: 1.0}, 2),
        ({1: 1.0, 2: float("inf")}, 1),
        ({3: 1.0}, 3),
    ],
)
def test_the_fastest_wins_and_a_tie_goes_to_more(seconds: dict[int, float], best: int):
    assert Machine(seconds).best() == best


def test_a_disturbed_round_decides_nothing():
    """The first trial of two threads takes ten times as long, as a neighbour once made int4 look."""
    machine = Machine({1: 1.0, 2: 0.6})
    first: list[Callable[[float], float]] = [lambda taken: 10 * taken]
    trial = lambda threads: first.pop()(machine(threads)) if first and threads == 2 else machine(threads)  # noqa: E731
    assert best_threads([1, 2], trial, lambda: machine.passed) == 2


def test_places_in_a_round_change_and_there_are_never_fewer_rounds():
    machine = Machine({1: 100.0, 2: 60.0})  # a round is longer than the time that there is
    assert machine.best() == 2
    assert machine.tried == [2, 1, 1, 2] * (trials.LEAST_ROUNDS // 2)


def test_what_cannot_be_decided_ends_in_time():
    machine = Machine({1: 0.1, 2: 0.1}, noise=0.2)
    machine.best()
    assert machine.passed < trials.LIMIT_S + 1


@pytest.mark.parametrize(("true", "most_wrong"), [(1.3, 1), (1.0, 20)])
def test_noise_rarely_costs_a_core(true: float, most_wrong: int):
    """Of 200 machines whose rounds scatter by 20 %: where one thread takes 1.3 times as long, and where it makes no
    difference, one thread is rarely chosen."""
    wrong = sum(Machine({1: true * 0.1, 2: 0.1}, 0.2, seed).best() == 1 for seed in range(200))
    assert wrong <= most_wrong


def test_the_chance_is_a_sign_tests():
    for above in range(10):
        ratios = [1.1] * above + [0.9] * (9 - above)
        assert chance(ratios) == pytest.approx(binomtest(above, 9).pvalue)
