"""The run folder: what each stage wrote, from what, and whether it has to be done again.

`stages.json` holds, for every finished stage, the hash of all that decided its outcome and the hashes of what it
wrote. A stage for which both still hold is not run again, so the same command resumes where it was stopped. It also
holds how long the attempts were that Ctrl-C or SIGTERM stopped; a process that is killed cannot note its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text, read_text, sha256_of, sha256_text, user_path, write_atomic
from chinchilla_lm.recipe import Recipe

T = TypeVar("T")
Outputs = Sequence[str] | Callable[[], Sequence[str]]


class _Stopped(BaseModel):
    """Attempts at a stage that were stopped: what decides its outcome, as a hash, and how long they were together."""

    inputs: str
    seconds: float = Field(ge=0, allow_inf_nan=False)


class _Stage(BaseModel):
    """What stages.json says of one stage."""

    inputs: str | None = None
    outputs: dict[str, str] | None = None
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    stopped: _Stopped | None = None


_STAGES = TypeAdapter(dict[str, _Stage])


class RunFolder:
    """A folder that belongs to one job: recipe.yaml, costs.json, plan.json, model/, report.*, log.jsonl."""

    def __init__(self, path: str | Path, console: Console) -> None:
        self.path = Path(path)
        self.console = console
        self.recipe: Recipe | None = None
        self._worked = 0.0
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, not a folder; pass another -o")
        if self.path.exists() and any(self.path.iterdir()) and not (self.path / "recipe.yaml").exists():
            raise InputError(f"{self.path} holds files but no recipe.yaml, so it is no run folder; pass another -o")

    @classmethod
    def of(cls, recipe: Recipe, console: Console) -> RunFolder:
        """The folder that a recipe names. Its recipe.yaml is replaced once a stage has found its inputs good."""
        if recipe.output is None:
            raise InputError("output is missing: the verb writes files; pass -o FOLDER")
        folder = cls(recipe.output, console)
        if user_path(recipe.model).resolve() in (folder.path.resolve(), folder.file("model").resolve()):
            raise InputError(f"model {recipe.model} is where the verb writes its own; pass another -o")
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.recipe = recipe
        if not (folder.path / "recipe.yaml").exists():
            recipe.save(folder.path / "recipe.yaml")
        return folder

    def file(self, name: str) -> Path:
        """A path inside the folder."""
        return self.path / name

    def require(self, name: str, verb: str) -> Path:
        """A file that an earlier stage wrote. Raises InputError, naming that stage, where it is missing."""
        path = self.path / name
        if not path.exists():
            raise InputError(f"{path} is missing; run chinchilla {verb} -o {self.path} first")
        return path

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Outputs,
        work: Callable[[], T],
        read: Callable[[], T],
    ) -> T:
        """Do `work` and note it, or, where nothing that decides it has changed, `read` what it wrote.

        outputs: the files that it writes, or what lists them.
        """
        key = sha256_text(json_text(dict(inputs)))
        if self.recipe is not None:
            self.recipe.save(self.path / "recipe.yaml")
        noted, found = self._stages().get(name, _Stage()), self._hashes(outputs)
        if noted.inputs == key and found is not None and found.items() <= (noted.outputs or {}).items():
            self.console.say(f"{name}: unchanged, not run again")
            return read()
        before = noted.stopped.seconds if noted.stopped is not None and noted.stopped.inputs == key else 0.0
        begun = time.monotonic()
        try:
            result = work()
        except KeyboardInterrupt:
            seconds = round(time.monotonic() - begun, 1)
            with suppress(InputError, OSError):  # a full disk must not hide what stopped the stage
                self._note(name, noted.model_copy(update={"stopped": _Stopped(inputs=key, seconds=before + seconds)}))
                self.log({"stage": name, "stopped_after": seconds})
            raise
        seconds = round(time.monotonic() - begun, 1)
        self._worked += seconds
        self._note(name, _Stage(inputs=key, outputs=self._hashes(outputs), seconds=before + seconds))
        self.log({"stage": name, "seconds": seconds, "all_attempts": before + seconds})
        return result

    def _note(self, name: str, stage: _Stage) -> None:
        stages = {
            other: noted.model_dump(exclude_none=True) for other, noted in {**self._stages(), name: stage}.items()
        }
        write_atomic(self.path / "stages.json", json_text(stages, indent=1) + "\n")

    def _hashes(self, outputs: Outputs) -> dict[str, str] | None:
        """Hashes of what a stage wrote, None where something is missing."""
        paths = {name: self.path / name for name in (outputs() if callable(outputs) else outputs)}
        return (
            {name: sha256_of(path) for name, path in paths.items()} if all(map(Path.exists, paths.values())) else None
        )

    def timings(self) -> dict[str, float]:
        """Seconds that each finished stage took, attempts that were stopped included."""
        return {name: stage.seconds for name, stage in self._stages().items() if stage.seconds is not None}

    def earlier(self) -> float:
        """Seconds of `timings` that were not spent since this folder was opened."""
        return max(0.0, sum(self.timings().values()) - self._worked)

    def _stages(self) -> dict[str, _Stage]:
        path = self.path / "stages.json"
        if not path.exists():
            return {}
        try:
            return _STAGES.validate_json(read_text(path, "stages"))
        except ValidationError as error:
            raise InputError(f"{path} is not a mapping of stages; delete it to run all stages again") from error

    def log(self, event: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl, with the time."""
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": stamp, **event}) + "\n")
