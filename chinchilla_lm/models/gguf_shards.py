"""A model in several GGUF files, as `llama-gguf-split` makes them: NAME-00001-of-00003.gguf and its siblings.

The first has the metadata, and each a table of its own tensors. Any of them names the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.gguf_file import GgufFile, TensorInfo, open_file
from chinchilla_lm.models.gguf_names import shards_of


class GgufShards:
    """The tensors of all files as those of one; see `GgufFile`."""

    def __init__(self, files: list[GgufFile]) -> None:
        self.path, self.metadata = files[0].path, files[0].metadata
        self.tensors: dict[str, TensorInfo] = {}
        self._places: dict[str, GgufFile] = {}
        for file in files:
            for name, info in file.tensors.items():
                if name in self.tensors:
                    raise InputError(
                        f"tensor {name} is in {self._places[name].path} and in {file.path}; download both again"
                    )
                self.tensors[name], self._places[name] = info, file

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor's values, or those of some rows, in float32."""
        return self._places[name].read(name, rows)


@contextmanager
def open_whole(path: Path) -> Iterator[GgufFile | GgufShards]:
    """A model's file, or all its files together. Raises InputError where one is missing, damaged or another model's."""
    paths = shards_of(path)
    with ExitStack() as stack:
        files = [stack.enter_context(open_file(one)) for one in paths]
        for number, file in enumerate(files):
            _check_place(file, number, len(files))
        if len(files) == 1:
            yield files[0]
            return
        shards = GgufShards(files)
        total = shards.metadata.get("split.tensors.count", len(shards.tensors))
        if total != len(shards.tensors):
            raise InputError(
                f"the {len(files)} shards of {path} hold {len(shards.tensors)} tensors, where split.tensors.count says "
                f"{total!r:.60}; download them again"
            )
        yield shards


def _check_place(file: GgufFile, number: int, count: int) -> None:
    """Whether a file is the shard that its name says. number: from 0."""
    said: dict[str, Any] = {key: file.metadata.get(f"split.{key}") for key in ("no", "count")}
    if said["count"] is None:  # it is whole, or was cut by an older program
        return
    if count == 1 and said["count"] != 1:
        raise InputError(
            f"{file.path} is a shard of a model in {said['count']!r:.60} files, but is not named as one; "
            "name it NAME-00001-of-00002.gguf, with its own numbers, beside its siblings"
        )
    if said["count"] != count or said["no"] != number:
        raise InputError(
            f"{file.path} says that it is shard number {said['no']!r:.60} from 0 of {said['count']!r:.60}; "
            "its name is another's: download it again"
        )
