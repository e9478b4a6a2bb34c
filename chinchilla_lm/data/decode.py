"""From a file's bytes to text: gzip, xz, and the two encodings that data sets come in."""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path

from chinchilla_lm.errors import InputError

COMPRESSED = (".gz", ".xz")


def inner_suffix(path: Path) -> str:
    """The extension in lower case, compression set aside: ".jsonl" for `a.jsonl.xz`."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return name.suffix.lower()


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked when its name ends in .gz or .xz.

    Raises:
        InputError: the file is missing, not readable, empty, or damaged.
    """
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
        elif path.suffix.lower() == ".xz":
            data = lzma.decompress(data)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); pass a file that exists and is whole") from error
    if not data.strip():
        raise InputError(f"{path} is empty; a data file holds at least one record")
    return data


def decode(data: bytes, where: str) -> tuple[str, list[str]]:
    """Text and notes: UTF-8, else ISO-8859-1, which accepts every byte and so is noted. Line ends become "\\n"."""
    try:
        text, notes = data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        text, notes = data.decode("latin-1"), [f"{where} is not UTF-8 and was read as ISO-8859-1"]
    return text.replace("\r\n", "\n").replace("\r", "\n"), notes


def read_string(path: Path) -> tuple[str, list[str]]:
    """`decode(read_bytes(path))`: the text of a file, and notes about its encoding."""
    return decode(read_bytes(path), path.name)
