"""A model as other programs read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.export.compressed import export_compressed
from chinchilla_lm.export.ggml import KINDS
from chinchilla_lm.export.gguf import draft
from chinchilla_lm.export.gguf_vocabulary import vocabulary
from chinchilla_lm.export.hf import DTYPES, export_hf, is_of_an_export, remaining_blocks
from chinchilla_lm.export.parts import WIDENED, rounded
from chinchilla_lm.files import read_json
from chinchilla_lm.models.checkpoint import Checkpoint, load
from chinchilla_lm.models.filling import OUTPUT
from chinchilla_lm.models.gguf_file import MAGIC
from chinchilla_lm.models.source import locate
from chinchilla_lm.pack.mixed import mixed
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pipeline.held import certificate_in, how_to_certify
from chinchilla_lm.results import ExportResult
from chinchilla_lm.runtime.engine.packed import is_packed
from chinchilla_lm.runtime.engine.unpacking import unpack_with_codes


@dataclass(frozen=True, slots=True)
class Exporting:
    """What to write of which model, and where: `out` is a folder, or for `gguf` a file. form: how numbers are written,
    None: as they are; force: replace an earlier export that is there."""

    model: str
    to: str
    out: Path
    form: str | None = None
    force: bool = False

    def check(self) -> None:
        """Raises InputError for what does not go together, before the model is read."""
        if self.to not in TARGETS:
            raise InputError(f"format {self.to!r} is not one of {', '.join(TARGETS)}; pass --to hf")
        forms = {"hf": tuple(DTYPES), "gguf": tuple(KINDS)}.get(self.to)
        if forms is not None and self.form is not None and self.form not in forms:
            raise InputError(f"--format {self.form!r} is not one of {', '.join(forms)} for {self.to}; pass one of them")
        if self.to == "compressed-tensors":
            self._check_codes()
        if self.to == "gguf":
            self._check_file()
        else:
            self._check_folder()

    def _check_codes(self) -> None:
        packed = is_packed(self.model)
        if packed and self.form is not None:
            raise InputError(f"{self.model} is packed, and its codes are kept as they are; leave --format away")
        if not packed and self.form is None:
            raise InputError(
                f"{self.model} has no codes yet; pass --format int4-sym, or a model that chinchilla pack made"
            )
        if self.form is not None and all(one.rounding is None for one in mixed(self.form).all()):
            raise InputError(f"--format {self.form} rounds no matrix; pass --format int4-sym, or --to hf")
        if self.form is not None and any(pattern == "head" for pattern, _ in mixed(self.form).others):
            raise InputError(
                f"--format {self.form} names the head, which compressed-tensors has in 16 bits; leave head= away"
            )

    def _check_file(self) -> None:
        if self.out.suffix != ".gguf":
            raise InputError(f"{self.out} does not end in .gguf; pass -o NAME.gguf")
        if not self.out.exists():
            return
        if not self.out.is_file() or not self.force:
            remedy = "pass another -o" if not self.out.is_file() else "pass --force to replace it, or another -o"
            raise InputError(f"{self.out} is there already; {remedy}")
        gguf = locate(self.model).gguf if not is_packed(self.model) else None
        if gguf is not None and gguf.resolve() == self.out.resolve():
            raise InputError(f"{self.out} is MODEL itself; pass another -o")
        with open(self.out, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise InputError(f"{self.out} is no GGUF file: not ours to replace; pass another -o")

    def _check_folder(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file, not a folder; pass another -o")
        if not self.out.exists() or not any(self.out.iterdir()):
            return
        if not self.force:
            raise InputError(f"{self.out} is not empty; pass --force to replace the model in it, or another -o")
        if locate(self.model).folder.resolve() == self.out.resolve():
            raise InputError(f"{self.out} is MODEL itself; pass another -o")
        for path in sorted(self.out.rglob("*")):
            name = path.relative_to(self.out).as_posix()
            if not path.is_dir() and not is_of_an_export(self.out, name):
                raise InputError(
                    f"{self.out} holds {name}, which no export writes: not ours to replace; pass another -o"
                )


@dataclass(frozen=True, slots=True)
class Written:
    """What is in the files. weights: bytes of tensors by the format of their numbers; changes: what became of numbers
    that are not written as they are, and of how many tensors; absent: blocks; load: how it is loaded."""

    weights: dict[str, int]
    changes: dict[str, int]
    absent: list[int]
    load: str
    hint: str


def export(asked: Exporting, console: Console) -> ExportResult:
    """Write the model and return what was written as plain values.

    Raises InputError for what `Exporting.check` refuses, and for a model that the format cannot say.
    """
    asked.check()
    checkpoint, codes = _read(asked.model)
    if checkpoint.legal_tags:
        console.warn(
            "tags are judged here as decoded to the most probable legal BIO sequence; "
            "programs that take the best tag of each word find up to a point of F1 less"
        )
    held = certificate_in(checkpoint.source, console)
    written = TARGETS[asked.to](asked, checkpoint, codes, console)
    paths = [asked.out] if asked.out.is_file() else sorted(path for path in asked.out.rglob("*") if path.is_file())
    files = {path.name: path.stat().st_size for path in paths}
    console.table(["file", "bytes"], list(files.items()), f"written to {asked.out}")
    if written.weights:
        console.table(["weights", "bytes"], list(written.weights.items()))
    for change, count in written.changes.items():
        console.show(f"{count} tensor{'s' if count > 1 else ''}: {change}")
    if held is not None:
        how = how_to_certify(str(asked.out), held.original.name, checkpoint.model.config.head.kind)
        # Our loader reads no folder of compressed-tensors.
        own = "" if asked.to == "compressed-tensors" else f"; one of their own: {how}"
        console.show(f"no certificate: that of {asked.model} is of its own files, not of these{own}")
    silent = _silent(checkpoint, written.absent)
    if written.absent:
        console.show(f"blocks left out: {_listed(written.absent)}; those behind them moved up")
    if silent:
        console.show(f"links that add nothing, as zero weights: {_listed(silent)}")
    console.show(written.hint)
    return {
        "format": asked.to,
        "output": str(asked.out),
        "files": files,
        "bytes": sum(files.values()),
        "weights": written.weights,
        "changes": written.changes,
        "absent_blocks": written.absent,
        "zeroed_links": silent,
        "load": written.load,
    }


def _read(model: str) -> tuple[Checkpoint, Mapping[str, Quantized]]:
    """The model, and the codes of its rounded matrices where it is packed."""
    return unpack_with_codes(model) if is_packed(model) else (load(model), {})


def _hf(asked: Exporting, checkpoint: Checkpoint, codes: Mapping[str, Quantized], console: Console) -> Written:
    export_hf(checkpoint, asked.out, asked.form or "f32")
    changes = {"codes dequantised": len(codes)} if codes else {}
    return Written({}, changes, _absent(checkpoint), *_with_transformers(asked.out))


def _compressed(asked: Exporting, checkpoint: Checkpoint, codes: Mapping[str, Quantized], console: Console) -> Written:
    made = codes if asked.form is None else rounded(checkpoint, mixed(asked.form))
    weights = export_compressed(checkpoint, made, asked.out)
    links = [one for name, one in made.items() if name.startswith("links.")]
    changes = {} if codes else {"rounded, each weight to the nearest": len(links)}
    widened = sum(not one.is_plain for one in links)
    if widened:
        changes[f"{WIDENED}, the same numbers"] = widened
    if OUTPUT in codes:
        changes["the decoder's codes, dequantised to float16"] = 1
    load, hint = _with_transformers(asked.out)
    return Written(weights, changes, _absent(checkpoint), load, f"{hint} (needs pip install compressed-tensors)")


def _gguf(asked: Exporting, checkpoint: Checkpoint, codes: Mapping[str, Quantized], console: Console) -> Written:
    def words(architecture: str) -> dict[str, Any]:
        if checkpoint.source is None:
            raise InputError(f"{asked.model} has no tokenizer; pass a folder that holds tokenizer.json")
        return vocabulary(checkpoint.source, architecture, checkpoint.model.config.vocab_size)

    made = draft(checkpoint, codes, asked.out, form=asked.form, vocabulary=words, name=_name(asked.model))
    if made.ignored_window is not None:
        console.warn(
            f"llama.cpp runs this model without its window: texts of more than {made.ignored_window} tokens get other "
            "answers there"
        )
    made.write(asked.out)
    load = f'llama_cpp.Llama("{asked.out}")'
    kept = made.found.checkpoint.model.config.num_blocks == checkpoint.model.config.num_blocks
    absent = [] if kept else _absent(checkpoint)
    return Written(made.bytes_by_kind, made.changes, absent, load, f"run it with: llama-cli -m {asked.out}")


TARGETS: dict[str, Callable[[Exporting, Checkpoint, Mapping[str, Quantized], Console], Written]] = {
    "hf": _hf,
    "compressed-tensors": _compressed,
    "gguf": _gguf,
}


def _name(model: str) -> str:
    """What a person calls the model."""
    return Path(model).stem if Path(model).exists() else model


def _with_transformers(folder: Path) -> tuple[str, str]:
    names = read_json(folder / "config.json", "config").get("architectures") or ["AutoModel"]
    how = f'{names[0]}.from_pretrained("{folder}")'
    return how, f"load it with: from transformers import {names[0]}; model = {how}"


def _absent(checkpoint: Checkpoint) -> list[int]:
    """Blocks that are not in the export."""
    left = set(remaining_blocks(checkpoint.model))
    return [block for block in range(checkpoint.model.config.num_blocks) if block not in left]


def _silent(checkpoint: Checkpoint, absent: list[int]) -> list[str]:
    """Dropped links that stand in the export with zero weights."""
    model = checkpoint.model
    return [name for name in model.names if name in model.dropped and int(name.split(".")[0]) not in absent]


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))
