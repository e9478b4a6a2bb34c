"""Plain text for language modelling: files, folders and zip archives of them, cut into documents.

The cut follows what the text itself says, tried in this order: the ` = Title = ` headings of WikiText, the `<doc …>` of
WikiExtractor, `<|endoftext|>`. Ten or more files without such marks are one document each. Fewer are cut at paragraphs
into pieces of about 2,000 characters. Those are no documents of their own, for each goes on where the one before it
ends: splits are made of contiguous stretches, and a bootstrap draws blocks of them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from chinchilla_lm.data.binary import kind_of
from chinchilla_lm.data.decode import decode, inner_suffix, read_bytes
from chinchilla_lm.data.records import Reading, Text
from chinchilla_lm.errors import InputError

SUFFIXES = (".txt", ".utf8", ".raw", ".tokens", ".text")
ARCHIVE = ".zip"
PIECE_CHARACTERS = 2000  # a few paragraphs, about 500 tokens: a document of usual size
# Unpacked bytes of an archive, as its entries claim. Assumption: twice WikiText-103's 0.54 GB is as much as one wants
# in memory at once.
UNPACKED_UP_TO = 1 << 30
NAMED = 5  # files of which a note says how they were decoded
MANY_FILES = 10  # in one folder or archive: from here on a file is a document; fewer could not be split three ways
# Not data, though they end in .txt.
PAPERS = ("readme", "license", "licence", "copying", "notice", "changelog", "requirements")

_TITLE = re.compile(r"= (?!=)(.*[^ =]) =")  # ` = Title = `, but not ` = = Section = = `
_BLANK_START = re.compile(r"\A(?:[ \t]*\n)+")  # the space before a title stays
_DOC = re.compile(r"^<doc [^>\n]*>\n", re.MULTILINE)
_END_OF_TEXT = "<|endoftext|>"


def is_paper(name: str) -> bool:
    """Whether a file name is that of a README, a licence or the like."""
    return Path(name).name.lower().split(".")[0] in PAPERS


def _is_hidden(name: str) -> bool:
    """Whether an entry of an archive is one of those that macOS adds: `__MACOSX/data/._a.txt`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def read_text(paths: Sequence[Path], encoding: str | None = None) -> Reading:
    """The documents of text files and zip archives of text files, in order, as Text records.

    Raises:
        InputError: a file is missing, empty or damaged, or an archive holds no text.
    """
    reading = Reading(", ".join(path.name for path in paths), has_documents=True)
    loose = [path for path in paths if inner_suffix(path) != ARCHIVE]
    folders = [[(path.name, read_bytes(path)) for path in loose]] if loose else []
    for path in paths:
        if path not in loose:
            files, notes = _unzip(path)
            folders.append(files)
            reading.notes.extend(notes)
    guessed: list[str] = []
    for files in folders:
        for name, data in files:
            text, notes = decode(data, name, encoding)
            guessed += notes
            reading.records.extend(_documents(name, text, whole=len(files) >= MANY_FILES))
    reading.notes.extend(guessed[:NAMED])
    if len(guessed) > NAMED:
        reading.notes.append(f"the encoding of {len(guessed) - NAMED} more files was guessed")
    return reading


def _documents(name: str, text: str, whole: bool) -> list[Text]:
    """The documents of one file; `whole`: it is one document unless it marks several."""
    documents = articles(text)
    cut = False
    if documents is None:
        documents = marked_documents(text)
        if documents is None:
            documents, cut = ([text], False) if whole else (pieces(text), True)
        documents = [_BLANK_START.sub("", document).rstrip() for document in documents if document.strip()]
    if not documents:
        raise InputError(f"{name} holds no text between its marks; pass a file with text")
    names = [f"{name}#{i}" for i in range(len(documents))] if len(documents) > 1 else [name]
    return [
        Text(name, name, document, follows=cut and i > 0)
        for i, (name, document) in enumerate(zip(names, documents, strict=True))
    ]


def _unzip(path: Path) -> tuple[list[tuple[str, bytes]], list[str]]:
    """(name, content) of the text files in an archive, by name, less empty and binary ones; notes on the latter."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(
                name
                for name in archive.namelist()
                if name.lower().endswith(SUFFIXES) and not is_paper(name) and not _is_hidden(name)
            )
            unpacked = sum(archive.getinfo(name).file_size for name in names)
            if unpacked > UNPACKED_UP_TO:
                raise InputError(
                    f"{path} unpacks to {unpacked:,} bytes, more than {UNPACKED_UP_TO:,}; unpack it and pass the folder"
                )
            files = [(f"{path.name}/{name}", archive.read(name)) for name in names]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); pass a zip archive of text files") from error
    binary = {name: found[0] for name, data in files if (found := kind_of(data))}
    files = [(name, data) for name, data in files if data.strip() and name not in binary]
    shown = ", ".join(f"{name} ({what})" for name, what in list(binary.items())[:NAMED])
    if not files:
        raise InputError(f"{path} holds no text file; an archive needs files that end in {', '.join(SUFFIXES)}")
    return files, [f"left aside, since they are no text: {shown}"] if binary else []


def articles(text: str) -> list[str] | None:
    """The articles of WikiText, None where the text has no title lines, or has them without WikiText's blanks around.

    Joined by an empty line, they are the text that published perplexities are measured on: the rows of the data set (a
    line with its line end, or nothing for a blank line) joined by an empty line.
    """
    lines = text.removesuffix("\n").split("\n")
    starts = [i for i in range(len(lines)) if _is_title(lines, i)]
    if not starts or not all(lines[i].startswith(" ") and lines[i].endswith(" ") for i in starts):
        return None
    rows = [line + "\n" if line.strip() else "" for line in lines]
    bounds = [0, *starts[1:], len(rows)]  # what stands before the first title goes with it
    return ["\n\n".join(rows[a:b]) for a, b in pairwise(bounds)]


def marked_documents(text: str) -> list[str] | None:
    """The documents that the text marks by titles like WikiText's or by tags; None where it marks none."""
    lines = text.split("\n")
    starts = [i for i in range(len(lines)) if _is_title(lines, i)]
    if starts:
        return ["\n".join(lines[a:b]) for a, b in pairwise([0, *starts[1:], len(lines)])]
    if _DOC.match(text):
        return [part.replace("</doc>", "") for part in _DOC.split(text)[1:]]
    if _END_OF_TEXT in text:
        return text.split(_END_OF_TEXT)
    return None


def _is_title(lines: list[str], i: int) -> bool:
    """A title line stands alone: WikiText has formulas that look like one inside a paragraph."""
    around = lines[max(i - 1, 0) : i] + lines[i + 1 : i + 2]
    return _TITLE.fullmatch(lines[i].strip()) is not None and not any(line.strip() for line in around)


def pieces(text: str, characters: int = PIECE_CHARACTERS) -> list[str]:
    """The text cut between paragraphs (between lines where it has no blank line) into pieces of at least `characters`.

    Every paragraph is in exactly one piece. The last piece may be shorter, and a long paragraph is not cut.
    """
    paragraphs = [part for part in re.split(r"\n[ \t]*(?:\n[ \t]*)+", text) if part.strip()]
    joint = "\n\n"
    if len(paragraphs) == 1:
        paragraphs, joint = [line for line in text.split("\n") if line.strip()], "\n"
    found: list[list[str]] = [[]]
    length = 0
    for paragraph in paragraphs:
        if length >= characters:
            found.append([])
            length = 0
        found[-1].append(paragraph)
        length += len(paragraph) + len(joint)
    return [joint.join(part) for part in found]
