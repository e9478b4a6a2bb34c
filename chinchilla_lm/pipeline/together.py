"""A verb run by several processes: the first one runs it, the others train along with it.

What a follower needs to come along travels with the invitation: the recipe, and what is trained. It reads model and
data itself, on its own host, and says so; where it cannot, or finds other files than the first process has, the first
one ends the verb with its reason. Followers write nothing and print nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from chinchilla_lm import __version__
from chinchilla_lm.console import Console
from chinchilla_lm.errors import ContractError, InputError, LostError
from chinchilla_lm.files import json_text
from chinchilla_lm.pipeline.finetune import Finetuning
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.pipeline.recovery import Recovery
from chinchilla_lm.recipe import TRAINING, Recipe
from chinchilla_lm.runtime.processes import END, STEP_TIMEOUT, Agreed, Processes, asked_for, joined, lost
from chinchilla_lm.shorten.surgery import without
from chinchilla_lm.train.parallel import Layout

DONE, BAD_INPUT = 0, 2
# Seconds that a follower which finds others gone leaves to the first process, if that is still there.
GRACE_S = 10


class _Silent(Console):
    """Of a follower: the first process says it all."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def warn(self, text: str) -> None:
        """Not said."""

    def show(self, text: str) -> None:
        """Not said."""


def run_together(verb: str, arguments: list[str], parallel: str | None, run: Callable[[], int]) -> int:
    """Run a verb by the processes that torchrun started; its exit status. Raises what the verb raises, in the first.

    parallel: the flag, if it was given, which has to fit the processes before they meet.
    """
    if verb not in TRAINING:
        raise InputError(f"{verb} runs in one process, and several are started, which {', '.join(TRAINING)} take")
    Layout.parse(parallel, asked_for())
    with joined() as here:
        try:
            here.ready(version=__version__, arguments=json_text(arguments))
            if not here.first:
                return _follow(here)
            status = run()
        except Agreed:
            if here.first:
                raise
            return BAD_INPUT
        except (InputError, ContractError, KeyboardInterrupt):
            if here.first:
                with suppress(RuntimeError):  # of a process that is gone
                    here.leave()
                    here.dismiss()
            raise
        except RuntimeError as error:
            if not lost(error):
                raise
            if not here.first:
                if here.left():
                    return BAD_INPUT
                time.sleep(GRACE_S)  # the first process says what is wrong, if it can; torchrun ends this one meanwhile
            raise LostError(
                f"a process that trains along is gone, or has not answered for {STEP_TIMEOUT}; "
                "run the same command again to go on from what was saved"
            ) from error
        here.dismiss()
        return status


def _follow(here: Processes) -> int:
    jobs: dict[str, Any] = {}
    while True:
        what, how = here.led()
        if what == END:
            return DONE
        problem, facts = "", dict[str, str]()
        train: Callable[[], None] | None = None
        try:
            train, facts = _PREPARING[what](jobs, **how)
        except (InputError, OSError) as error:
            problem = str(error)
        here.ready(problem, **facts)
        assert train is not None
        train()


# What trains, and what must be alike on all processes.
Prepared = tuple[Callable[[], None], dict[str, str]]


def _recover(
    jobs: dict[str, Any], recipe: Mapping[str, Any], dropped: Mapping[str, Any], options: Mapping[str, Any]
) -> Prepared:
    key = json_text(recipe)
    if key not in jobs:
        job = Job(Recipe.model_validate(recipe), _Silent())
        jobs[key] = Recovery(job, job.ready(job.checkpoint.model))
    recovery: Recovery = jobs[key]
    short = without(recovery.job.checkpoint.model, dropped, share=False)
    return lambda: recovery.train_here(short, **options), recovery.facts


def _finetune(jobs: dict[str, Any], recipe: Mapping[str, Any], state: Path, identity: str) -> Prepared:
    fitting = Finetuning(Job(Recipe.model_validate(recipe), _Silent(), new_head=True))
    return lambda: fitting.train_here(state, identity), fitting.facts


_PREPARING: dict[str, Callable[..., Prepared]] = {"recover": _recover, "finetune": _finetune}
