"""A language model as a GGUF file, which llama.cpp and its kin run.

Rounded matrices keep their codes. Query and key rows are interleaved where llama.cpp turns neighbouring features,
Gemma's norms have one added: `models/gguf.py` undoes both. A block without any of its links is absent, where the
architecture does not tell blocks by their number; a link that is dropped alone stays as one that adds nothing, zero
matrices. All is checked before a byte is written, and the tensors are made one at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.ggml import BLOCK, KINDS, Kind, encode, exact_kind, kind_of_codes, row_bytes
from chinchilla_lm.export.gguf_metadata import UNTIED, WINDOWLESS, Sheet, architecture_of, check, describe, tables
from chinchilla_lm.export.parts import WIDENED, Portable
from chinchilla_lm.files import building_file
from chinchilla_lm.models.checkpoint import Checkpoint
from chinchilla_lm.models.gguf import ARCHITECTURES, BLOCK_NAMES, PLAIN_NAMES
from chinchilla_lm.models.gguf_file import TensorInfo
from chinchilla_lm.pack.panels import Floats
from chinchilla_lm.pack.quantized import Quantized

QUANTIZATION_VERSION = 2  # of ggml's blocks
# The embedding and the decoder are in every token's way; where the rest has 4 bits, they have 8.
EMBEDDING, DECODER = "token_embd.weight", "output.weight"
WIDER = {"q4_0": "q8_0", "q4_1": "q8_0"}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file: its values, float32 or rounded, and the kind that they are written in. widened: its codes
    had a codebook or a mask."""

    values: Floats | Quantized
    kind: Kind
    widened: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As torch has it."""
        return tuple(self.values.shape)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        *outer, inputs = self.shape
        return row_bytes(self.kind, inputs) * prod(outer)

    @property
    def change(self) -> str | None:
        """What became of its numbers, where they are not written as they are."""
        if not isinstance(self.values, Quantized):
            return None if self.kind.rounding is None or not self.values.any() else f"rounded to {self.kind.name}"
        if self.kind is not kind_of_codes(self.values):
            return f"codes dequantised and written anew as {self.kind.name}"
        codes = WIDENED if self.widened else "codes kept"
        if self.values.scales_NG.dtype != np.float16:
            return f"{codes}, scales rounded from float32 to float16"
        return f"{codes}, the same numbers" if self.widened else None


@dataclass(frozen=True, slots=True)
class Draft:
    """A file that is described and checked, and not yet written."""

    found: Portable
    sheet: Sheet
    entries: dict[str, Entry]

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """How many bytes of tensors there are of each kind."""
        found: Counter[str] = Counter()
        for one in self.entries.values():
            found[one.kind.name] += one.size
        return dict(found)

    @property
    def changes(self) -> dict[str, int]:
        """What became of tensors, and of how many."""
        return dict(Counter(one.change for one in self.entries.values() if one.change is not None))

    @property
    def ignored_window(self) -> int | None:
        """A window that the file names, in tokens, and llama.cpp takes no notice of."""
        architecture = self.sheet.metadata["general.architecture"]
        named = self.sheet.metadata.get(f"{architecture}.attention.sliding_window")
        return named if named and architecture in WINDOWLESS else None

    def write(self, path: str | Path) -> None:
        """Write the file, wholly or not at all. Raises InputError where the disk refuses."""
        with building_file(path) as temporary:
            writer = GGUFWriter(temporary, self.sheet.metadata["general.architecture"])
            try:
                self._write(writer)
            finally:
                writer.close()

    def _write(self, writer: GGUFWriter) -> None:
        for key, value in self.sheet.metadata.items():
            if key != "general.architecture":  # the writer has put it down
                _add(writer, key, value)
        for name, one in self.entries.items():
            writer.add_tensor_info(name, one.shape, np.dtype(np.float32), one.size, one.kind.code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in self.entries.values():
            writer.write_tensor_data(encode(one.kind, one.values))


def draft(
    checkpoint: Checkpoint,
    codes: Mapping[str, Quantized],
    path: Path,
    *,
    form: str | None = None,
    name: str | None = None,
    vocabulary: Callable[[str], Mapping[str, Any]],
) -> Draft:
    """The file of a model. codes: of its rounded matrices, by parameter. form: a kind for all matrices (see `KINDS`);
    None: codes stay as they are, and floats have the fewest bits that hold them. name: what the model is called.
    vocabulary: of an architecture, the metadata of the tokenizer.

    A block without links is left out; where the file would then mean something else, as of a Gemma, whose windows go by
    a block's number, it stays as one of zeros. Raises InputError for what GGUF files cannot say.
    """
    head = checkpoint.model.config.head
    if head.kind != "language-modeling":
        raise InputError(f"this model is for {head.kind}, and GGUF files are written of language models; pass --to hf")
    architecture = architecture_of(checkpoint.hf_config["model_type"])
    found = Portable.of(checkpoint, codes)
    try:
        sheet, entries = _described(found, path, architecture, form)
    except InputError:
        if not checkpoint.model.dropped:
            raise
        found = Portable.of(checkpoint, codes, every_block=True)
        sheet, entries = _described(found, path, architecture, form)
    sheet.metadata.update({} if name is None else {"general.name": name})
    sheet.metadata.update(vocabulary(architecture))
    return Draft(found, sheet, entries)


def _described(found: Portable, path: Path, architecture: str, form: str | None) -> tuple[Sheet, dict[str, Entry]]:
    config = found.checkpoint.model.config
    entries = _entries(found, architecture, form)
    factors = tables(config)
    entries |= {name: Entry(table.numpy(), KINDS["f32"]) for name, table in factors.items()}
    infos = {name: TensorInfo(one.shape, int(one.kind.code), 0, one.size) for name, one in entries.items()}
    metadata = describe(config, found.checkpoint.hf_config, architecture)
    kinds: Counter[Kind] = Counter()
    for one in entries.values():
        kinds[one.kind] += one.size if len(one.shape) > 1 else 0
    metadata |= {
        "general.type": "model",
        "general.file_type": kinds.most_common(1)[0][0].file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    sheet = Sheet(path, metadata, infos, factors)
    check(sheet, config, architecture)
    return sheet, entries


def _entries(found: Portable, architecture: str, form: str | None) -> dict[str, Entry]:
    about, config = ARCHITECTURES[architecture], found.checkpoint.model.config
    names = {theirs: ours for ours, theirs in (BLOCK_NAMES | dict(about.names)).items()}
    plain = {theirs: ours for ours, theirs in PLAIN_NAMES.items()}
    entries: dict[str, Entry] = {}
    for ours, theirs, values in found.parts():
        inside = _BLOCK.fullmatch(theirs)
        name = f"blk.{inside[1]}.{names[inside[2]]}.{inside[3]}" if inside else plain[theirs]
        if about.interleaved and ".attn_q." in name:
            values = _interleaved(values, config.num_heads)
        elif about.interleaved and ".attn_k." in name:
            values = _interleaved(values, config.num_kv_heads)
        if about.one_more and name.endswith("norm.weight"):
            assert not isinstance(values, Quantized)
            values = values + np.float32(1.0)
        entries[name] = Entry(values, _kind(name, values, form), ours in found.widened)
    if architecture in UNTIED:
        entries.setdefault(DECODER, entries[EMBEDDING])
    return entries


def _kind(name: str, values: Floats | Quantized, form: str | None) -> Kind:
    """What a tensor is written in."""
    if len(values.shape) < 2:
        return KINDS["f32"]
    if form is not None:
        kind = KINDS[WIDER.get(form, form) if name in (EMBEDDING, DECODER) else form]
    else:
        kind = kind_of_codes(values) if isinstance(values, Quantized) else exact_kind(values)
    whole = values.shape[-1] % BLOCK == 0
    return kind if whole or kind.rounding is None else KINDS["f32"]


def _interleaved(values: Floats | Quantized, heads: int) -> Floats | Quantized:
    """Rows of heads with halves (a0 … an b0 … bn) as rows with neighbours (a0 b0 … an bn)."""
    rows = np.arange(values.shape[0]).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return values.take(rows) if isinstance(values, Quantized) else values[rows]


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """A metadata entry, of the type that its value has; of a list the writer finds it, and an empty one has none."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif value:
        writer.add_array(key, value)
