"""What sentence-transformers says of an embedding model beside its config: pooling, the longest text, a prompt.

`modules.json` lists the modules, each in a folder of its own or, the first, in the model's. Class paths and the keys of
the pooling's config changed in version 5.4; both forms are read, the older one is written, which every version reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text, read_json

Pooling = Literal["first", "last", "mean"]

MODULES, POOLING = "modules.json", "1_Pooling/config.json"
PROMPTS = "config_sentence_transformers.json"
# The name depends on the version and on the model's family.
LENGTHS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# All that is written of it.
FILES = (MODULES, POOLING, PROMPTS, LENGTHS[0])

PACKAGE = "sentence_transformers."
# A folder's modules, in this order; the last two may be missing.
ORDER = ("Transformer", "Pooling", "Normalize")
NO_EFFECT = "Dropout"  # outside training
# Key until 5.4 → value since.
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
OURS: dict[str, Pooling] = {"cls": "first", "mean": "mean", "lasttoken": "last"}


@dataclass(frozen=True, slots=True)
class Sentences:
    """How texts become vectors. Without modules.json, `pooling` is None: the head's own default holds.

    max_tokens: a longer text is cut, special tokens included; None: at the model's positions. prompt: stands before
    every text. lower: texts are lower-cased.
    """

    pooling: Pooling | None = None
    normalize: bool = False
    max_tokens: int | None = None
    prompt: str = ""
    lower: bool = False


PLAIN = Sentences()


def makes_vectors(root: Path) -> bool:
    """Whether sentence-transformers pools what the transformer gives; it also keeps sparse models and rerankers."""
    path = root / MODULES
    modules = read_json(path, "sentence-transformers modules") if path.is_file() else None
    found = modules if isinstance(modules, list) else []
    return any(isinstance(part, dict) and str(part.get("type")).endswith(f".{ORDER[1]}") for part in found)


def transformer_folder(folder: Path) -> Path | None:
    """The folder in which modules.json says that the transformer is, where that is not the model's own."""
    path = folder / MODULES
    if not path.is_file():
        return None
    place = _modules(path).get(ORDER[0], "")
    return folder / place if place and (folder / place / "config.json").is_file() else None


def read_sentences(root: Path, folder: Path) -> Sentences:
    """The settings of a model: root has modules.json, folder the transformer, and are mostly the same.

    Raises InputError for what is damaged, and for modules or poolings that we do not have.
    """
    most, lower = _lengths(root, folder)
    if not (root / MODULES).is_file():
        return Sentences(max_tokens=most, lower=lower)
    modules = _modules(root / MODULES)
    normalize = ORDER[2] in modules
    pooling, whole_prompt = OURS["mean"], True
    if ORDER[1] in modules:
        pooling, whole_prompt = _pooling(root / modules[ORDER[1]] / "config.json", normalize)
    prompt = _prompt(root / PROMPTS)
    if prompt and not whole_prompt:
        raise InputError(
            f"{root / PROMPTS} has the prompt {prompt!r:.60}, which its pooling leaves out (include_prompt false), "
            "which is not supported; use another model"
        )
    return Sentences(pooling, normalize, most, prompt, lower)


def write_sentences(settings: Sentences, hidden: int, source: Path | None, folder: Path) -> None:
    """The same for sentence-transformers, with the transformer in the folder itself. source: has the prompts."""
    if settings.pooling is not None:
        kinds = ORDER if settings.normalize else ORDER[:2]
        modules = [
            {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{PACKAGE}models.{kind}"}
            for i, kind in enumerate(kinds)
        ]
        chosen = {key: OURS.get(mode) == settings.pooling for key, mode in MODES.items()}
        _write(folder / MODULES, modules)
        _write(folder / POOLING, {"word_embedding_dimension": hidden} | chosen | {"include_prompt": True})
    if settings.max_tokens is not None or settings.lower:
        _write(folder / LENGTHS[0], {"max_seq_length": settings.max_tokens, "do_lower_case": settings.lower})
    if source is not None and (source / PROMPTS).is_file():
        shutil.copyfile(source / PROMPTS, folder / PROMPTS)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json_text(value, indent=2) + "\n", encoding="utf-8")


def _modules(path: Path) -> dict[str, str]:
    """Kind → folder, of modules that we have, in their order."""
    modules = read_json(path, "sentence-transformers modules")
    if not isinstance(modules, list) or not all(isinstance(part, dict) for part in modules):
        raise InputError(f"{path} is not a list of modules with type and path; download the model again")
    found: dict[str, str] = {}
    for part in modules:
        kind, place = str(part.get("type", "")), str(part.get("path", ""))
        if place and (Path(place).name != place or place == ".."):
            raise InputError(f"{path} names the folder {place!r}, which is not beside it; do not use it")
        name = kind.rsplit(".", 1)[-1]
        if name == NO_EFFECT and kind.startswith(PACKAGE):
            continue
        if name not in ORDER or not kind.startswith(PACKAGE):
            raise InputError(f"{path} has a module {kind!r:.90}, not {', '.join(ORDER)}; use another model")
        if name in found or ORDER.index(name) < len(found):
            raise InputError(f"{path} has a module {name} in another order than {', '.join(ORDER)}; use another model")
        found[name] = place
    if ORDER[0] not in found:
        raise InputError(f"{path} has no module {ORDER[0]}; download the model again")
    return found


def _pooling(path: Path, normalize: bool) -> tuple[Pooling, bool]:
    """How tokens are pooled, and whether those of a prompt are, too."""
    config = _dictionary(path, "pooling config")
    whole_prompt = config.get("include_prompt", True)
    if not isinstance(whole_prompt, bool):
        raise InputError(f"{path}: include_prompt {whole_prompt!r:.60} is not true or false; download the model again")
    modes = _modes(path, config)
    # Divided by the square root of the length instead of the length: after normalisation that is the same.
    known = OURS | {"mean_sqrt_len_tokens": OURS["mean"]} if normalize else OURS
    if len(modes) != 1 or modes[0] not in known:
        raise InputError(
            f"{path}: pooling {' and '.join(modes) or 'none'} is not one of {', '.join(OURS)}; use another model"
        )
    return known[modes[0]], whole_prompt


def _modes(path: Path, config: Mapping[str, Any]) -> list[str]:
    """The poolings that a config asks for, which sentence-transformers concatenates."""
    named = config.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else named
        if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes):
            raise InputError(f"{path}: pooling_mode {named!r:.60} is not a name or a list; download the model again")
        return modes
    flags = {key: on for key, on in config.items() if key.startswith("pooling_mode_")}
    for key, on in flags.items():
        if not isinstance(on, bool):
            raise InputError(f"{path}: {key} {on!r:.60} is not true or false; download the model again")
    return [MODES.get(key, key) for key, on in flags.items() if on] if flags else ["mean"]


def _lengths(root: Path, folder: Path) -> tuple[int | None, bool]:
    """The longest text in tokens, and whether texts are lower-cased."""
    path = next((place / name for place in (folder, root) for name in LENGTHS if (place / name).is_file()), None)
    most, lower = None, False
    if path is not None:
        config = _dictionary(path, "sentence-transformers config")
        most, lower = config.get("max_seq_length"), config.get("do_lower_case", False)
        if most is not None and (type(most) is not int or most < 1):
            raise InputError(f"{path}: max_seq_length {most!r:.60} is not a number of tokens from 1; mend it")
        if not isinstance(lower, bool):
            raise InputError(f"{path}: do_lower_case {lower!r:.60} is not true or false; mend it")
    if most is None and (folder / "tokenizer_config.json").is_file():
        found = _dictionary(folder / "tokenizer_config.json", "tokenizer config").get("model_max_length")
        # Where there is no limit, transformers writes 1e30.
        most = int(found) if isinstance(found, int | float) and 1 <= found < 1 << 31 else None
    return most, lower


def _prompt(path: Path) -> str:
    """What stands before a text that is embedded without a word on prompts."""
    if not path.is_file():
        return ""
    config = _dictionary(path, "sentence-transformers config")
    prompts, name = config.get("prompts") or {}, config.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise InputError(
            f"{path}: default_prompt_name {name!r:.60} is not one of its prompts; download the model again"
        )
    return str(prompts[name])


def _dictionary(path: Path, what: str) -> dict[str, Any]:
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a dictionary; download the model again")
    return found
