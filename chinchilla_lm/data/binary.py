"""What a file is whose bytes are no text, by its first bytes, and what to do with it instead.

A file name proves nothing: a workbook renamed to .csv, a page saved as .txt. The first bytes do.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from chinchilla_lm.errors import InputError

HEAD = 4096  # bytes that are enough to name a file

_TABLE = "export it as CSV or JSON lines"
_WORDS = "save it as plain text"
_UNPACK = "unpack it and pass the files"
_PICTURE = "pass text, not pictures"
_WEIGHTS = "pass data here, and the model as the model"

# (first bytes as a pattern, what it is, what to do).
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive", "unpack it and pass the folder"),
    (rb"PAR1|PARE", "a Parquet table", _TABLE),
    (rb"ARROW1|\xff\xff\xff\xff.{2}\x00\x00\x10\x00\x00\x00|FEA1", "an Arrow table", _TABLE),
    (rb"ORC(?=.{0,99}\x00)", "an ORC table", _TABLE),
    (rb"Obj\x01", "an Avro file", _TABLE),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", _TABLE),
    (rb"SQLite format 3\x00", "a SQLite database", _TABLE),
    (rb"\x93NUMPY", "a NumPy array", _TABLE),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office document", "save it as CSV or plain text"),
    (rb"%PDF-", "a PDF document", _WORDS),
    (rb"\{\\rtf", "a Rich Text document", _WORDS),
    (rb"GGUF", "a GGUF model", _WEIGHTS),
    (rb".{6}\x00\x00\{ *\"", "a safetensors file", _WEIGHTS),
    (rb"\x80[\x02-\x05](?:\x95|[\]}(cX]|K|U)", "a Python pickle", _TABLE),
    (rb"\x1f\x8b", "gzip-compressed", "let its name end in .gz"),
    (rb"\xfd7zXZ\x00", "xz-compressed", "let its name end in .xz"),
    (rb"BZh[1-9]1AY&SY", "bzip2-compressed", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "zstd-compressed", _UNPACK),
    (rb"\x04\x22\x4d\x18", "lz4-compressed", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (rb".{257}ustar", "a tar archive", _UNPACK),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|II\*\x00|MM\x00\*|RIFF.{4}WEBP", "a picture", _PICTURE),
    (rb"\x7fELF|MZ.{0,9}\x00|\xcf\xfa\xed\xfe", "a program", "pass text"),
    (rb"\x00\x05\x16\x07|\x00\x05\x16\x00", "the shadow that macOS keeps of a file", "pass the file without ._"),
    (rb"bplist00", "a binary property list", "pass text"),
    (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer, not the data", "run git lfs pull"),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL), what, remedy) for pattern, what, remedy in _MAGIC)

# An entry of a zip archive -> what the archive is.
_ZIPPED: tuple[tuple[str, str, str], ...] = (
    ("word/", "a Word document", _WORDS),
    ("xl/", "an Excel workbook", "save its sheet as CSV UTF-8"),
    ("ppt/", "a PowerPoint document", _WORDS),
    ("META-INF/container.xml", "an EPUB book", _WORDS),
    ("content.xml", "an OpenDocument file", "save it as CSV or plain text"),
)


def kind_of(data: bytes, path: Path | None = None) -> tuple[str, str] | None:
    """(what it is, what to do) of bytes that are known to be no text; None where they may be text.

    `data`: a file's first HEAD bytes, or all of them; `path`: the file, where documents that are zip archives are to be
    told apart by it.
    """
    for pattern, what, remedy in _PATTERNS:
        if pattern.match(data):
            return _zipped(data, path) if what == "a zip archive" else (what, remedy)
    return None


def _zipped(data: bytes, path: Path | None) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path or io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # Only its head, or damaged: the entries' names stand in the bytes as well.
        names = [
            match[1].decode("latin-1") for match in re.finditer(rb"PK\x03\x04.{26}([\w./\[\]-]+)", data, re.DOTALL)
        ]
    for start, what, remedy in _ZIPPED:
        if any(name.startswith(start) for name in names):
            return what, remedy
    if any(name.endswith(("/data.pkl", ".npy")) for name in names):
        return "a zip archive of arrays", _WEIGHTS
    return "a zip archive", "unpack it and pass the folder"


def refuse_binary(data: bytes, where: str, path: Path | None = None) -> None:
    """Raises InputError where the bytes are those of a known format that is no text."""
    if found := kind_of(data, path):
        what, remedy = found
        raise InputError(f"{where} is {what}; data files are text: {remedy}")
