"""The models of tests/light_install.sh: `pack FOLDER` makes them with everything installed and notes what they answer,
`run FOLDER` asks them again and compares. `run` needs an installation without extras, and nothing of these tests."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import chinchilla_lm as ch

TEXTS = ["Angela Merkel met Siemens in Munich.", "Is it good?"]
ANSWERS = "answers.json"


def pack(folder: Path) -> None:
    """Tiny random models, and those that pip brought."""
    from chinchilla_lm.runtime.measuring.machine import packaged_models
    from chinchilla_lm.runtime.packing import write_packed

    folder.mkdir(parents=True)
    for name, path, kind in (*_tiny(folder / "sources"), *_brought(packaged_models())):
        write_packed(path, "int8", folder / name, kind)
    found = {path.name: answer(path) for path in _packed(folder)}
    (folder / ANSWERS).write_text(json.dumps(found), encoding="utf-8")


def run(folder: Path) -> None:
    """Ends with an error where an answer is another one."""
    wanted = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
    for path in _packed(folder):
        found = json.loads(json.dumps(answer(path)))
        if found != wanted[path.name]:
            sys.exit(f"{path.name} answers {found!r:.200}, not {wanted[path.name]!r:.200}")
        print(f"{path.name}: {found[0]!s:.100}")


def answer(path: Path) -> list[Any]:
    """By the Python interface, and by the verbs that such a model has."""
    session = ch.load(path, threads=1)
    found: list[Any] = [inspected(path)]
    if session.card.kind == "language-modeling":
        words = ["generate", path, "--prompt", TEXTS[0], "--max-new-tokens", "12", "--threads", "1", "--json"]
        return [session.generate(TEXTS[0], 12), verb(words)["text"], *found]
    if session.card.kind == "embedding":
        return [session.embed(TEXTS).tolist(), *found]
    if session.card.kind == "text-classification":
        return [session.classify(TEXTS), *found]
    return [[[asdict(entity) for entity in entities] for entities in session.entities(TEXTS)], *found]


def inspected(path: Path) -> Any:
    """What inspect says, times apart."""
    return verb(["inspect", path, "--no-time", "--json"]) | {"model": path.name}


def verb(words: list[Any]) -> dict[str, Any]:
    """The JSON of a command in a process of its own."""
    command = [sys.executable, "-m", "chinchilla_lm", *map(str, words)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def _tiny(folder: Path) -> list[tuple[str, Path, str]]:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.conftest import byte_level_tokenizer, word_piece_tokenizer
    from tests.models.tiny import build

    made = []
    for name, family, kind, tokenizer in (
        ("tagger", "bert", "token-classification", word_piece_tokenizer()),
        ("classifier", "bert", "text-classification", word_piece_tokenizer()),
        ("writer", "llama-gqa", "language-modeling", byte_level_tokenizer()),
    ):
        model = build(family, kind, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        made.append((name, folder / name, kind))
    return made


def _brought(models: dict[str, str | None]) -> list[tuple[str, Path, str]]:
    kinds = {"all-MiniLM-L6-v2": "embedding", "SmolLM2-135M-Instruct": "language-modeling"}
    return [(name, Path(path), kinds[name]) for name, path in models.items() if path is not None]


def _packed(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/program.bin"))


if __name__ == "__main__":
    {"pack": pack, "run": run}[sys.argv[1]](Path(sys.argv[2]))
