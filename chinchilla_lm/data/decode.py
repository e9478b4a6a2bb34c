"""From a file's bytes to text: gzip, xz, and the encodings that data sets come in.

Tried in this order: what the caller names; a byte-order mark; UTF-8; UTF-16 and UTF-32 without a mark, which their NULs
give away; UTF-8 with some damaged bytes; Windows-1252, which is what nearly every other Western file is (0x80–0x9F are
curly quotes, dashes and the euro sign there, control characters in ISO-8859-1). What is none of these is refused.
"""

from __future__ import annotations

import codecs
import gzip
import lzma
import re
import unicodedata
import zlib
from pathlib import Path

from chinchilla_lm.data.binary import HEAD, refuse_binary
from chinchilla_lm.errors import InputError

COMPRESSED = (".gz", ".xz")
# UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_SAMPLE = 1 << 16  # bytes that show whether a guess is right; a multiple of four
# In Western text a byte above 0x7F stands among ASCII; in the old encodings of Russian, Greek or Chinese words are made
# of them: runs of four, or in Shift-JIS of three pairs. Where most such bytes stand in runs, and they are _MANY of all,
# or _SOME and in _DISTINCT different runs, the text is not Western. Assumptions, for files that are not UTF-8.
_RUN = re.compile(rb"[\xa1-\xff]{4,}|(?:[\x81-\x84\x88-\x90\x98-\x9f\xe0-\xea][\x40-\x7e\x80-\xfc]){3,}")
_MANY, _SOME, _DISTINCT = 0.4, 0.05, 10
_HIGH = bytes(range(0x80, 0x100))
_CONTROLS = bytes(set(range(0x20)) - set(b"\t\n\v\f\r\x1a\x1b"))  # with ESC of terminals, and the end mark of DOS
_ESCAPED = re.compile("[\udc80-\udcff]")


def inner_suffix(path: Path) -> str:
    """The extension in lower case, compression set aside: ".jsonl" for `a.jsonl.xz`."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return name.suffix.lower()


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked when its name ends in .gz or .xz.

    Raises:
        InputError: the file is missing, not readable, empty, damaged, or known to be no text.
    """
    try:
        if path.suffix.lower() not in COMPRESSED:
            with path.open("rb") as file:
                refuse_binary(file.read(HEAD), path.name, path)  # before gigabytes are read
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


def decode(data: bytes, where: str, encoding: str | None = None) -> tuple[str, list[str]]:
    """Text, and notes where the encoding was guessed. Line ends become "\\n".

    Raises:
        InputError: the bytes are no text, or not in the encoding that the caller names, or in none that is guessed.
    """
    refuse_binary(data, where)
    text, notes = _decode(data, where) if encoding is None else (_decode_as(data, where, encoding), [])
    return text.replace("\r\n", "\n").replace("\r", "\n"), notes


def read_string(path: Path, encoding: str | None = None) -> tuple[str, list[str]]:
    """`decode(read_bytes(path))`: the text of a file, and notes about its encoding."""
    return decode(read_bytes(path), path.name, encoding)


def require_encoding(name: str) -> str:
    """The same name. Raises InputError where Python knows no such text encoding."""
    try:
        "".encode(name)
        b"".decode(name)
    except (LookupError, ValueError, TypeError) as error:
        raise InputError(f"encoding {name!r} is not known; pass utf-8, utf-16, cp1252, gb18030, shift-jis …") from error
    return name


def _decode_as(data: bytes, where: str, encoding: str) -> str:
    name = codecs.lookup(encoding).name
    for mark, marked in _MARKS:
        if data.startswith(mark) and name.startswith(marked.removesuffix("-sig")):
            encoding = marked  # which takes the mark away
            break
    try:
        return data.decode(encoding)
    except UnicodeError as error:
        raise InputError(
            f"{where} is not in the encoding {encoding} ({error}); name the right one by --encoding"
        ) from error


def _decode(data: bytes, where: str) -> tuple[str, list[str]]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decode_as(data, where, encoding), []
    if b"\0" in data:
        return _decode_wide(data, where)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        _refuse_controls(data, where)
        return _decode_western(data, where)
    _refuse_controls(data, where)
    return text, []


def _refuse_controls(data: bytes, where: str) -> None:
    """Compressed or packed bytes hold every value alike; of text, hardly any byte is a control character."""
    sample = data[:_SAMPLE]
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if controls > 0.02 * len(sample):
        raise InputError(
            f"{where} is no text: {controls} of its first {len(sample)} bytes are control characters; pass text"
        )


def _decode_wide(data: bytes, where: str) -> tuple[str, list[str]]:
    """UTF-16 or UTF-32 without a byte-order mark: the one under which a sample is nothing but characters."""
    for encoding in _WIDE:
        width = 4 if "32" in encoding else 2
        if len(data) % width:
            continue
        try:
            sample = data[:_SAMPLE].decode(encoding, "strict" if len(data) <= _SAMPLE else "ignore")
            if _is_plausible(sample):
                name = encoding.upper()
                return data.decode(encoding), [f"{where} has no byte-order mark and was read as {name}"]
        except UnicodeDecodeError:
            continue
    line = data[: data.index(b"\0")].count(b"\n") + 1
    raise InputError(
        f"{where} is no text: it has {data.count(0):,} NUL bytes, the first in line {line}; pass UTF-8 "
        "without them, or UTF-16 with its byte-order mark"
    )


def _is_plausible(text: str) -> bool:
    """Whether the characters are assigned, and some of them blanks, line ends or letters of ASCII, as in every file."""
    kinds = [unicodedata.category(character) for character in set(text) - set("\t\n\v\f\r")]
    return not {"Cc", "Cn", "Co", "Cs"}.intersection(kinds) and any(c in "\n ,\t" or c.isascii() for c in text)


def _decode_western(data: bytes, where: str) -> tuple[str, list[str]]:
    """What is not UTF-8 throughout: UTF-8 with damaged bytes where most of it is sound, else Windows-1252."""
    text = data.decode("utf-8", "surrogateescape")
    damaged = len(_ESCAPED.findall(text))
    sound = sum(not character.isascii() for character in text) - damaged
    if sound > damaged:
        line = text[: _ESCAPED.search(text).start()].count("\n") + 1  # type: ignore[union-attr]  # there is one
        note = f"{where}: {damaged} bytes are not UTF-8 and were read as Windows-1252, the first in line {line}"
        return _ESCAPED.sub(lambda match: _western(bytes([ord(match[0]) - 0xDC00])), text), [note]
    high = len(data) - len(data.translate(None, _HIGH))
    runs = _RUN.findall(data)
    few = _SOME if len(set(runs)) >= _DISTINCT else _MANY
    if high > few * len(data) and sum(map(len, runs)) > high / 2:
        raise InputError(
            f"{where} is not UTF-8, nor Western text: {high / len(data):.0%} of its bytes are above 0x7F; name its "
            "encoding by --encoding, such as gb18030, shift-jis or cp1251"
        )
    return _western(data), [f"{where} is not UTF-8 and was read as Windows-1252"]


def _western(data: bytes) -> str:
    """Windows-1252; the five bytes that it leaves out are the control characters of ISO-8859-1, as on the Web."""
    return data.decode("cp1252", "surrogateescape").translate({0xDC00 + byte: byte for byte in _HIGH})
