"""How torch's OpenMP threads wait for each other, so that a busy machine does not stop them.

libgomp reads its settings when torch loads it. By itself a waiting thread looks 300,000 times whether it may go on,
some milliseconds long, before it sleeps. Alone that costs nothing. Beside another program that computes, a thread that
spins keeps the core from the very thread that it waits for, for a whole time slice at each of thousands of barriers a
second. A thread that sleeps gives the core away at once and gets it back at once, for it has used little; but where
threads always sleep, waking them costs a quarter of the speed alone. SPINS is long enough for the waits of a machine at
rest and short beside a time slice (benchmarks/neighbour.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# Looks of a waiting thread, each a few nanoseconds to some tens, by the CPU. Thousands of pairs of small operations a
# second (linear of 32 × 576 × 1536 in bfloat16, GELU) on two cores, alone and beside a torch process of two threads:
# 300,000 looks 3.3 and 0.4, 10,000 2.9 and 0.7, 3,000 3.2 and 1.2, 1,000 2.6 and 1.3, none 2.3 and 2.0 (Zen 4, by hand;
# benchmarks/neighbour.py has whole verbs).
SPINS = "3000"
VARIABLE = "GOMP_SPINCOUNT"
POLICY = "OMP_WAIT_POLICY"


def share_cores() -> None:
    """Have torch's threads give up their cores soon. What the user has set stays, and torch that is loaded."""
    if "torch" not in sys.modules and POLICY not in os.environ:
        os.environ.setdefault(VARIABLE, SPINS)


def for_others(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a program that is not ours and has settings of its own: without what `share_cores` set."""
    return {name: value for name, value in environment.items() if (name, value) != (VARIABLE, SPINS)}
