"""Bytes that are text in one of many encodings, and bytes that are none."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import sqlite3
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from chinchilla_lm.data.binary import HEAD, kind_of
from chinchilla_lm.data.decode import decode
from chinchilla_lm.data.load import load_dataset
from chinchilla_lm.errors import InputError

TEXTS = ["text,label\ngood,1\nbad,0\n", "中文,标签\n好,1\n", "café ☕, naïve\n", "Привет, мир\n", "a\n" * 50_000]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(text, encoding):
    assert decode(text.encode(encoding), "a") == (text, [])


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_without_a_mark_the_nuls_tell(text, encoding):
    assert decode(text.encode(encoding), "a") == (
        text,
        [f"a has no byte-order mark and was read as {encoding.upper()}"],
    )


def test_what_is_not_utf8_is_windows_1252():
    text = "“don’t buy” – it costs 5 €, naïve café\n"
    assert decode(text.encode("cp1252"), "a") == (text, ["a is not UTF-8 and was read as Windows-1252"])
    every = bytes(range(0x80, 0x100))
    expected = "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in every)
    assert decode(b"one per line\n" + b"\n".join(every[i : i + 1] for i in range(128)), "a")[0].split("\n")[1:] == list(
        expected
    )


def test_a_few_damaged_bytes_do_not_spoil_the_rest():
    data = "né à Orléans\nGrüße\n".encode() + b"caf\xe9 5 \x80\n"
    note = "a: 2 bytes are not UTF-8 and were read as Windows-1252, the first in line 3"
    assert decode(data, "a") == ("né à Orléans\nGrüße\ncafé 5 €\n", [note])


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("你好世界,1\n", "gb18030"),
        ("こんにちは世界,1\n", "shift-jis"),
        ("Привет мир,1\n", "cp1251"),
        ("안녕하세요,1\n", "euc-kr"),
    ],
)
def test_other_encodings_are_refused_until_they_are_named(text, encoding, tmp_path):
    data = text.encode(encoding) * 20
    with pytest.raises(InputError, match=r"not UTF-8, nor Western text: \d\d% .* --encoding"):
        decode(data, "a")
    assert decode(data, "a", encoding) == (text * 20, [])
    path = tmp_path / "test.csv"
    path.write_bytes(f"text,label\n{text}".encode(encoding))
    read = load_dataset(path, "text-classification", encoding=encoding).splits["test"]
    assert (read[0].text, read[0].label) == (text.split(",")[0], "1")


@pytest.mark.parametrize("name", ["utf-8", "UTF8", "utf_16", "utf-16le", "U32"])
def test_a_mark_is_taken_away_where_the_encoding_is_named_too(name):
    mark = "" if name in ("utf_16", "U32") else "\ufeff"  # Python writes these with one
    assert decode(f"{mark}text\n".encode(name), "a", name) == ("text\n", [])


def test_a_wrong_or_unknown_encoding(write):
    path = write("test.csv", "text,label\n你好,1\n")
    with pytest.raises(InputError, match=r"test.csv is not in (the encoding )?ascii .*--encoding"):
        load_dataset(path, "text-classification", encoding="ascii")
    for name in ("klingon", "hex", "base64"):
        with pytest.raises(InputError, match=f"encoding '{name}' is not known"):
            load_dataset(path, "text-classification", encoding=name)
    with pytest.raises(InputError, match="has no use for the hub data set"):
        load_dataset("owner/name", "text-classification", encoding="utf-8")


def zipped(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_xml", ".xml"), text)
    return out.getvalue()


def sqlite_file(path) -> bytes:
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("create table a(b)")
    connection.commit()
    connection.close()
    return path.read_bytes()


def bytes_of(kind, tmp_path) -> bytes:
    out = io.BytesIO()
    if kind == "torch":
        torch.save({"a": torch.zeros(2)}, out)
    elif kind == "npy":
        np.save(out, np.zeros(2))
    made = {
        "docx": zipped(_rels="x", word__document_xml="hello"),
        "xlsx": zipped(_rels="x", xl__workbook_xml="hello"),
        "zip": zipped(a="hello"),
        "sqlite": sqlite_file(tmp_path / "made.db"),
        "gz": gzip.compress(b"text"),
        "pickle": pickle.dumps([{"text": "a"}], 4),
        "pickle 2": pickle.dumps({"text": "a"}, 2),
        "safetensors": save({"a": torch.zeros(2)}),
        "pdf": b"%PDF-1.7\n1 0 obj << >> endobj\n",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(30),
        "parquet": b"PAR1" + bytes(30),
        "arrow": b"ARROW1\0\0" + bytes(30),
        "gguf": b"GGUF\3\0\0\0" + bytes(30),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "noise": random.Random(0).randbytes(4000),
        "noise without NUL": bytes(random.Random(0).choices(range(1, 256), k=4000)),
    }
    return made.get(kind) or out.getvalue()


NAMES = {
    "docx": "a Word document", "xlsx": "an Excel workbook", "zip": "a zip archive", "sqlite": "a SQLite database",
    "gz": "gzip-compressed", "pickle": "a Python pickle", "pickle 2": "a Python pickle", "torch": "arrays",
    "npy": "a NumPy array", "safetensors": "a safetensors file", "pdf": "a PDF document", "png": "a picture",
    "parquet": "a Parquet table", "arrow": "an Arrow table", "gguf": "a GGUF model", "pointer": "a Git LFS pointer",
    "noise": "NUL bytes", "noise without NUL": "control characters",
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_what_is_no_text_is_refused_by_name_for_every_task(kind, tmp_path):
    data = bytes_of(kind, tmp_path)
    for name, task in (
        ("train.csv", "text-classification"),
        ("train.txt", "text-classification"),
        ("train.jsonl", "text-classification"),
        ("pairs.tsv", "ranking"),
        ("train.conll", "token-classification"),
        ("train.json", "token-classification"),
        ("book.txt", "language-modeling"),
        ("book.csv", "language-modeling"),
        ("book", "language-modeling"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{name} is .*{NAMES[kind]}"):
            load_dataset(path, task)


@pytest.mark.parametrize("text", ["PKs and", "GIF of the day,1", "ORCHIDS are", "MZ is", "BZh is a prefix", "PAR is"])
def test_texts_that_begin_like_a_format_are_texts(text):
    assert kind_of(f"{text} text\n".encode() * HEAD) is None


def test_binary_files_beside_good_ones_are_left_aside(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)))
    (tmp_path / "train.xlsx").write_bytes(bytes_of("xlsx", tmp_path))
    (tmp_path / "test.csv").write_bytes(bytes_of("parquet", tmp_path))
    (tmp_path / "made.db").unlink()
    data = load_dataset(tmp_path, "text-classification")
    assert sum(map(len, data.splits.values())) == 40
    assert data.notes[0] == (
        f"left aside in {tmp_path.name}, since they are no text: "
        "test.csv (a Parquet table), train.xlsx (an Excel workbook)"
    )
    (tmp_path / "train.csv").unlink()
    with pytest.raises(InputError, match=r"but test.csv \(a Parquet table\), train.xlsx \(an Excel workbook\)"):
        load_dataset(tmp_path, "text-classification")


def test_what_macos_and_windows_leave_in_a_folder_is_no_data(tmp_path):
    inner = tmp_path / "set"
    (tmp_path / "__MACOSX" / "set").mkdir(parents=True)
    inner.mkdir()
    (inner / "train.csv").write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)))
    for path in (inner / "._train.csv", tmp_path / "__MACOSX" / "set" / "._train.csv", inner / "Thumbs.db"):
        path.write_bytes(b"\x00\x05\x16\x07" + bytes(20))
    (inner / ".DS_Store").write_bytes(bytes(9))
    (inner / "desktop.ini").write_text("[x]")
    data = load_dataset(tmp_path, "text-classification")
    assert sum(map(len, data.splits.values())) == 40
    assert not [note for note in data.notes if "left aside" in note]


def test_what_macos_leaves_in_an_archive_is_no_text(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (
            ("set/a.txt", b"hello\n"),
            ("set/b.txt", b"%PDF-1.4\n"),
            ("set/._a.txt", bytes(9)),
            ("__MACOSX/set/._a.txt", bytes(9)),
        ):
            archive.writestr(name, content)
    data = load_dataset(path, "language-modeling")
    assert [record.text for record in data.splits["train"]] == ["hello"]
    assert data.notes[0] == "left aside, since they are no text: a.zip/set/b.txt (a PDF document)"
