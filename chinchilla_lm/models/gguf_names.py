"""Names of GGUF files: which of them are parts of one model, read without torch.

`llama-gguf-split` cuts a model into NAME-00001-of-00003.gguf and its siblings. Any of them names the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from chinchilla_lm.errors import InputError

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def shards_of(path: Path) -> tuple[Path, ...]:
    """All files of the model that a file is a part of, in order; itself alone where its name is no shard's.

    Raises InputError where a sibling is missing.
    """
    found = _NAME.fullmatch(path.name)
    if found is None:
        return (path,)
    number, count = int(found["number"]), int(found["count"])
    if not 1 <= number <= count:
        raise InputError(f"{path} is named as shard {number} of {count}, which cannot be; rename it")
    names = [f"{found['stem']}-{one:05}-of-{count:05}.gguf" for one in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise InputError(
            f"{path} is shard {number} of {count} of a model, but {missing[0]}{more} not beside it; put them together"
        )
    return tuple(path.parent / name for name in names)


def models_among(files: Iterable[Path]) -> list[Path]:
    """One file for each model among GGUF files: those that are whole, and of shards the first that is there."""
    found: dict[str, Path] = {}
    for path in sorted(files):
        parts = _NAME.fullmatch(path.name)
        found.setdefault(f"{parts['stem']} {parts['count']}" if parts else path.name, path)
    return list(found.values())
