"""What a person may call a model: a folder, a run folder, a GGUF file, or the name of a model on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.sentence import transformer_folder

# Weights, configuration and tokenizers as data; no Python file and no pickle.
HUB_FILES = (
    "*.json",
    "*.jinja",
    "model.safetensors",
    "model-*.safetensors",
    "vocab.txt",
    "merges.txt",
    "*.model",
    # Where an older sentence-transformers put its transformer.
    "0_*/*.safetensors",
    "0_*/vocab.txt",
    "0_*/merges.txt",
)
HUB_SKIPPED = ("onnx/*", "openvino/*", "original/*", "flax_model*", "checkpoint-*/*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Located:
    """A folder in Hugging Face's layout, or a GGUF file. root: the folder of sentence-transformers that it is in."""

    folder: Path
    gguf: Path | None = None
    root: Path | None = None


def locate(source: str | Path) -> Located:
    """The files behind a name. Raises InputError where there are none, or where there are several."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path} is a file but not .gguf; pass the folder that holds it")
        return Located(path.parent, path)
    if path.is_dir():
        return _in_folder(path)
    name = str(source)
    if _HUB_NAME.fullmatch(name) and not name.endswith((".gguf", ".safetensors", ".json")):
        return Located(_download(name))
    raise InputError(f"model {name} does not exist; check the path")


def _in_folder(folder: Path) -> Located:
    files = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() and (any(folder.glob("*.safetensors")) or not files):
        return Located(folder)
    if (folder / "model" / "config.json").is_file():
        return Located(folder / "model")
    if (inner := transformer_folder(folder)) is not None:
        return Located(inner, root=folder)
    if len(files) > 1:
        raise InputError(f"{folder} holds {len(files)} GGUF files; pass one of them, such as {files[0]}")
    if files:
        return Located(folder, files[0])
    raise InputError(f"{folder} holds no config.json, no model/config.json and no GGUF file; pass a model's folder")


def _download(name: str) -> Path:
    """The local copy of a hub model, downloaded where it is missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_SKIPPED)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"model {name} is no folder here and no public model on the hub; check the name") from error
    except Exception as error:  # the hub client raises what its HTTP library does, which changes with its version
        reason = type(error).__name__
        raise InputError(
            f"model {name} is no folder here and the hub cannot be reached ({reason}); pass a folder or a GGUF file"
        ) from error
