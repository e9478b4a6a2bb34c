"""What a person may call a model: a folder, a run folder, a GGUF file, or the name of a model on the hub.

A hub name may end in `@` and a revision: a branch, a tag or a commit. Files and folders come first, so that one whose
name has an `@` is what its name says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import user_path
from chinchilla_lm.models.gguf_names import models_among, shards_of
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
# What says where the hub's client keeps models, where it is not in the home.
HUB_CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
_HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(@(?P<revision>.*))?")
_REVISION = re.compile(r"(?!.*(\.\.|//))[A-Za-z0-9_][\w.+/-]*(?<![./])")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Located:
    """A folder in Hugging Face's layout, or a GGUF file.

    root: the folder of sentence-transformers that it is in. hub: the name that it has on the hub, its revision, and the
    commit that this was.
    """

    folder: Path
    gguf: Path | None = None
    root: Path | None = None
    hub: Mapping[str, str] | None = None


def locate(source: str | Path) -> Located:
    """The files behind a name. Raises InputError where there are none, or where there are several."""
    path = user_path(source)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path} is a file but not .gguf; pass the folder that holds it")
        return _gguf(path)
    if path.is_dir():
        return _in_folder(path)
    name, named = str(source), _HUB_NAME.fullmatch(str(source))
    if named is not None and not name.endswith((".gguf", ".safetensors", ".json")):
        return _on_hub(named["name"], named["revision"])
    raise InputError(f"model {name} does not exist; check the path")


def _on_hub(name: str, revision: str | None) -> Located:
    """A hub model's local copy. Raises InputError as `_download` does, and for what cannot name a revision."""
    if revision is not None and _REVISION.fullmatch(revision) is None:
        raise InputError(
            f"revision {revision!r:.60} of {name} is not a branch, a tag or a commit; pass one, such as {name}@main"
        )
    folder = _download(name, revision)
    found = _in_folder(folder)
    commit = {"commit": folder.name} if _COMMIT.fullmatch(folder.name) else {}
    return replace(found, hub={"model": name, "revision": revision or "main"} | commit)


def _in_folder(folder: Path) -> Located:
    # macOS keeps a `._model.gguf` beside each file on disks and in archives that are not its own.
    files = sorted(path for path in folder.glob("*.gguf") if not path.name.startswith("."))
    if (folder / "config.json").is_file() and (any(folder.glob("*.safetensors")) or not files):
        return Located(folder)
    if (folder / "model" / "config.json").is_file():
        return Located(folder / "model")
    if (inner := transformer_folder(folder)) is not None:
        return Located(inner, root=folder)
    models = models_among(files)
    if len(models) > 1:
        raise InputError(f"{folder} holds {len(models)} GGUF models; pass one of them, such as {models[0]}")
    if models:
        return _gguf(models[0])
    raise InputError(f"{folder} holds no config.json, no model/config.json and no GGUF file; pass a model's folder")


def _gguf(path: Path) -> Located:
    """A GGUF file, or the first of the files that it is one of."""
    return Located(path.parent, shards_of(path)[0])


def _download(name: str, revision: str | None) -> Path:
    """The local copy of a hub model, downloaded where it is missing."""
    if not any(os.environ.get(one) for one in HUB_CACHES) and os.path.expanduser("~") == "~":
        raise InputError(f"model {name} cannot be kept, as this user has no home; set {HUB_CACHES[0]} to a folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_SKIPPED)
            )
        )
    except RevisionNotFoundError as error:
        raise InputError(f"model {name} has no revision {revision} on the hub; check the name") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"model {name} is no folder here and no public model on the hub; check the name") from error
    except PermissionError as error:
        raise InputError(
            f"model {name} cannot be kept in {error.filename}: {error.strerror}; "
            f"set {HUB_CACHES[0]} to a folder that you may write"
        ) from error
    except Exception as error:  # the hub client raises what its HTTP library does, which changes with its version
        reason = type(error).__name__
        what = name if revision is None else f"{name} at {revision}"
        raise InputError(
            f"model {what} is no folder here and the hub cannot be reached ({reason}); pass a folder or a GGUF file"
        ) from error
