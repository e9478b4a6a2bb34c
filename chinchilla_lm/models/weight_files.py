"""Which files hold a model folder's weights: one of safetensors, or shards that an index lists. Read without torch."""

from __future__ import annotations

from pathlib import Path

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder. Raises InputError where there are none, or the index is damaged."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    if pickles:
        raise InputError(
            f"{folder} holds {pickles[0]} but no {SINGLE}; pickle files can run code and are not read, "
            "convert the model with save_pretrained(…, safe_serialization=True)"
        )
    raise InputError(f"{folder} holds no {SINGLE} and no {INDEX}; pass the folder of a model")


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    table = read_json(index, "weight index")
    places = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(places, dict) or not places:
        raise InputError(f"weight index {index} has no weight_map; download the model again")
    found = []
    for name in dict.fromkeys(places.values()):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"weight index {index} names {name!r}, not a .safetensors file beside it; do not use it")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is named by the weight index but is not there; download the model again")
        found.append(folder / name)
    return found
