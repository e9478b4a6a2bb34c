"""The command line as `pip install chinchilla-lm` without extras has it, in a process of its own.

Of all that is installed here it may import what the base's dependencies bring and nothing else. Run as a program it
takes a JSON list of steps on standard input and answers each: a list of words is a command, a text is an expression.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# tokenizers brings the hub's client and never imports it; nor may we.
UNUSED = {"huggingface-hub"}


def name_of(requirement: str) -> str:
    """The distribution that a requirement is for, as the index spells it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def base() -> set[str]:
    """The distributions of an installation without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, waiting = set(), [name_of(one) for one in project["dependencies"]]
    while waiting:
        name = waiting.pop()
        if name in found or name in UNUSED:
            continue
        found.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # for another system or an older Python
            continue
        waiting += [name_of(one) for one in needed if "extra ==" not in one]
    return found


class OnlyBase:
    """One of the process's finders, which finds nothing that the base does not bring."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:  # what is asked of finders besides
        return getattr(self.finder, name)


def hide() -> None:
    """From here on, import nothing that an installation without extras lacks."""
    allowed, owners = base(), packages_distributions()
    hidden = {name for name, distributions in owners.items() if not {name_of(one) for one in distributions} & allowed}
    sys.meta_path[:] = [OnlyBase(finder, hidden - {"chinchilla_lm"}) for finder in sys.meta_path]


def value_of(expression: str) -> Any:
    """Of Python that may speak of the package as `ch`."""
    import chinchilla_lm as ch

    return eval(expression, {"ch": ch, "sys": sys})


def answers(steps: list[Any], **environment: str) -> list[dict[str, Any]]:
    """What the steps came to: `status`, `out` and `err` of commands, `value` or `error` (type and text) of others."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CHINCHILLA_KEEP": "0"} | environment,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _answer(step: Any) -> dict[str, Any]:
    import contextlib
    import io

    from chinchilla_lm import cli

    if isinstance(step, str):
        try:
            return {"value": value_of(step)}
        except Exception as error:
            return {"error": [type(error).__name__, str(error)]}
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(word) for word in step])
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    hide()
    print(json.dumps([_answer(step) for step in json.load(sys.stdin)]))
