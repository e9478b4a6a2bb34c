"""GGUF files whose metadata are of a wrong type or size, and models in several files."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.models.tokenizer import load_tokenizer
from tests.models.test_gguf import write_gguf
from tests.models.tiny import VOCAB, batch, build

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
FORMS = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q", 12: "<d", 0: "<B", 1: "<b", 2: "<H", 3: "<h", 11: "<q"}


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def value_of(code: int, value: Any) -> bytes:
    """A metadata value with its type in front."""
    if code == STRING:
        return struct.pack("<I", code) + text(value)
    if code == ARRAY:
        inner, items = value
        body = b"".join(text(one) if inner == STRING else struct.pack(FORMS[inner], one) for one in items)
        return struct.pack("<IIQ", code, inner, len(items)) + body
    return struct.pack("<I", code) + struct.pack(FORMS[code], value)


# What a value may be replaced by. A fuzz of all pairs: none may end in anything but success or one line.
WRONG: dict[str, bytes] = {
    "text": value_of(STRING, b"seven"),
    "empty text": value_of(STRING, b""),
    "number": value_of(U32, 7),
    "zero": value_of(U32, 0),
    "largest": value_of(U64, 2**64 - 1),
    "large": value_of(U32, 2**31),
    "negative": value_of(I32, -3),
    "fraction": value_of(F32, 0.5),
    "nan": value_of(F32, float("nan")),
    "infinite": value_of(F32, float("inf")),
    "flag": value_of(BOOL, True),
    "numbers": value_of(ARRAY, (U32, [1, 2, 3])),
    "no numbers": value_of(ARRAY, (I32, [])),
    "texts": value_of(ARRAY, (STRING, [b"a", b"b"])),
    "fractions": value_of(ARRAY, (F32, [0.5, float("nan")])),
    "nested": struct.pack("<IIQ", ARRAY, ARRAY, 1) + struct.pack("<IQ", U32, 0),
    "text too long": struct.pack("<IQ", STRING, 2**62) + b"x",
    "list too long": struct.pack("<IIQ", ARRAY, U32, 2**62) + b"x",
    "texts too many": struct.pack("<IIQ", ARRAY, STRING, 2**61) + b"x",
    "not UTF-8": value_of(STRING, b"\xff\xfe"),
    "texts not UTF-8": value_of(ARRAY, (STRING, [b"a", b"\xc3"])),
    "unknown type": struct.pack("<II", 13, 1),
}


def entries(path: Path) -> tuple[dict[str, bytes], bytes, bytes]:
    """A file's metadata as raw values by key, its tensor table, and the tensors' bytes."""
    data, at = path.read_bytes(), 24
    tensors, pairs = struct.unpack_from("<QQ", data, 8)
    found = {}

    def string(at: int) -> tuple[bytes, int]:
        size = struct.unpack_from("<Q", data, at)[0]
        return data[at + 8 : at + 8 + size], at + 8 + size

    def past(code: int, at: int) -> int:
        if code == STRING:
            return string(at)[1]
        if code == ARRAY:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            for _ in range(count):
                at = past(inner, at)
            return at
        return at + struct.calcsize(FORMS[code])

    for _ in range(pairs):
        key, at = string(at)
        end = past(struct.unpack_from("<I", data, at)[0], at + 4)
        found[key.decode()], at = data[at:end], end
    start = at
    for _ in range(tensors):
        _, at = string(at)
        at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 12
    return found, data[start:at], data[-(-at // 32) * 32 :]


def assembled(path: Path, metadata: list[tuple[str, bytes]], table: bytes, body: bytes, version: int = 3) -> Path:
    count = 0
    at = 0
    while at < len(table):
        size = struct.unpack_from("<Q", table, at)[0]
        at += 8 + size
        at += 4 + 8 * struct.unpack_from("<I", table, at)[0] + 12
        count += 1
    head = b"GGUF" + struct.pack("<IQQ", version, count, len(metadata))
    head += b"".join(text(key.encode()) + value for key, value in metadata) + table
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", build("llama-gqa"), "llama")


def outcome(path: Path) -> str:
    """`""` where the file can be read, else the one line."""
    said = ""
    try:
        load(path)
        load_tokenizer(path)
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 600
    return said


def test_the_file_taken_apart_and_put_together_is_the_same(whole: Path, tmp_path: Path):
    metadata, table, body = entries(whole)
    assert assembled(tmp_path / "m.gguf", list(metadata.items()), table, body).read_bytes() == whole.read_bytes()
    assert outcome(whole) == ""


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama"])
@pytest.mark.parametrize("wrong", WRONG)
def test_every_key_of_every_wrong_type_is_one_line_or_nothing(wrong: str, tokenizer: str, whole: Path, tmp_path: Path):
    metadata, table, body = entries(whole)
    if tokenizer == "llama":
        metadata["tokenizer.ggml.scores"] = value_of(ARRAY, (F32, [-float(one) for one in range(VOCAB)]))
        metadata["tokenizer.ggml.model"] = value_of(STRING, b"llama")
    more = {
        "llama.rope.scaling.type": value_of(STRING, b"none"),
        "general.alignment": value_of(U32, 32),
        "tokenizer.ggml.bos_token_id": value_of(U32, 3),
        "tokenizer.ggml.eos_token_id": value_of(U32, 4),
        "tokenizer.ggml.eot_token_id": value_of(U32, 4),
        "tokenizer.ggml.add_bos_token": value_of(BOOL, True),
        "tokenizer.chat_template": value_of(STRING, b"{{ messages }}"),
        "split.count": value_of(U32, 1),
        "split.no": value_of(U32, 0),
        "llama.expert_count": value_of(U32, 0),
    }
    good = metadata | more
    assert outcome(assembled(tmp_path / "m.gguf", list(good.items()), table, body)) == ""
    read = []
    for key in good:
        changed = good | {key: WRONG[wrong]}
        said = outcome(assembled(tmp_path / "m.gguf", list(changed.items()), table, body))
        if not said:
            read.append(key)
    needed = {"general.architecture", "llama.block_count", "llama.embedding_length", "tokenizer.ggml.tokens"}
    assert not needed & set(read)


@pytest.mark.parametrize(
    "missing", ["general.architecture", "llama.block_count", "llama.context_length", "llama.attention.head_count"]
)
def test_a_missing_key_is_named(missing: str, whole: Path, tmp_path: Path):
    metadata, table, body = entries(whole)
    del metadata[missing]
    said = outcome(assembled(tmp_path / "m.gguf", list(metadata.items()), table, body))
    assert missing.split(".")[-1] in said


def test_a_key_that_stands_twice_is_refused(whole: Path, tmp_path: Path):
    metadata, table, body = entries(whole)
    twice = [*metadata.items(), ("llama.block_count", value_of(U32, 3))]
    assert "key 'llama.block_count' stands twice" in outcome(assembled(tmp_path / "m.gguf", twice, table, body))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (1, "has version 1, not 2 or 3; convert the model"),
        (9, "has version 9, not 2 or 3"),
        (0x03000000, "is big-endian; convert the model to GGUF anew, little-endian"),
        (0x02000000, "is big-endian"),
    ],
)
def test_other_versions_and_byte_orders_are_refused(version: int, message: str, whole: Path, tmp_path: Path):
    metadata, table, body = entries(whole)
    assert message in outcome(assembled(tmp_path / "m.gguf", list(metadata.items()), table, body, version))


def test_an_unknown_type_of_weights_names_the_tensor(whole: Path, tmp_path: Path):
    metadata, table, body = entries(whole)
    size = struct.unpack_from("<Q", table, 0)[0]
    dimensions = struct.unpack_from("<I", table, 8 + size)[0]
    at = 8 + size + 4 + 8 * dimensions
    changed = table[:at] + struct.pack("<I", 99) + table[at + 4 :]
    said = outcome(assembled(tmp_path / "m.gguf", list(metadata.items()), changed, body))
    assert "has type 99, which is not known; use Q8_0" in said


def test_ids_that_are_no_tokens_are_left_out(whole: Path, tmp_path: Path):
    metadata, table, body = entries(whole)
    metadata["tokenizer.ggml.padding_token_id"] = value_of(U32, 2**32 - 1)
    path = assembled(tmp_path / "m.gguf", list(metadata.items()), table, body)
    assert outcome(path) == ""
    assert load(path).hf_config["pad_token_id"] is None
    assert load_tokenizer(path).pad_token is None


def test_random_damage_is_one_line_or_nothing(whole: Path, tmp_path: Path):
    data, draw = whole.read_bytes(), random.Random(0)
    header = len(data) - len(entries(whole)[2])
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 3))):
            changed[draw.randrange(header)] = draw.randrange(256)
        path = tmp_path / "m.gguf"
        path.write_bytes(changed)
        outcome(path)


def shards(whole: Path, folder: Path, count: int, stem: str = "m") -> list[Path]:
    """A file cut as llama-gguf-split cuts it: metadata in the first, tensors in order."""
    reader = GGUFReader(whole)
    metadata, _, _ = entries(whole)
    paths = []
    folder.mkdir(exist_ok=True)
    share = -(-len(reader.tensors) // count)
    for number in range(count):
        path = folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number * share : (number + 1) * share]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=GGMLQuantizationType(tensor.tensor_type))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if number == 0:  # the writer knows no raw values
            own, table, body = entries(path)
            assembled(path, [*(metadata | own).items()], table, body)
        paths.append(path)
    return paths


@pytest.mark.parametrize("count", [2, 5])
def test_any_shard_and_their_folder_are_the_model(count: int, whole: Path, tmp_path: Path):
    paths = shards(whole, tmp_path / "shards", count)
    wanted = load(whole)
    data = batch(padded=True)
    with torch.no_grad():
        expected = wanted.model(data)
        for source in (*paths, tmp_path / "shards"):
            found = load(source)
            assert torch.equal(found.model(data), expected)
            assert found.tokenizer("a b")["input_ids"] == wanted.tokenizer("a b")["input_ids"]
            assert found.files == tuple(paths)
            assert found.sha256 == load(paths[0]).sha256 != wanted.sha256


def test_a_missing_shard_is_named(whole: Path, tmp_path: Path):
    paths = shards(whole, tmp_path / "shards", 3)
    paths[1].unlink()
    for source in (paths[0], paths[2], tmp_path / "shards"):
        with pytest.raises(
            InputError, match=r"is shard [13] of 3 of a model, but m-00002-of-00003\.gguf is not beside it"
        ):
            load(source)
    paths[2].unlink()
    with pytest.raises(InputError, match=r"m-00002-of-00003\.gguf and 1 more are not beside it"):
        load(paths[0])


def test_shards_of_another_model_are_refused(whole: Path, tmp_path: Path):
    paths, others = shards(whole, tmp_path / "two", 2), shards(whole, tmp_path / "three", 3)
    shutil.copyfile(others[1], paths[1])
    with pytest.raises(InputError, match="says that it is shard number 1 from 0 of 3; its name is another's"):
        load(paths[0])
    shutil.copyfile(paths[0], paths[1])
    with pytest.raises(InputError, match="says that it is shard number 0 from 0 of 2; its name is another's"):
        load(paths[0])
    alone = tmp_path / "renamed.gguf"
    shutil.copyfile(paths[0], alone)
    with pytest.raises(InputError, match="is a shard of a model in 2 files, but is not named as one"):
        load(alone)


def test_the_shadows_that_macos_keeps_are_no_models(whole: Path, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copyfile(whole, folder / "m.gguf")
    (folder / "._m.gguf").write_bytes(b"\0\5\x16\7" + bytes(99))
    assert load(folder).files == (folder / "m.gguf",)


def test_several_models_in_a_folder_ask_for_one(whole: Path, tmp_path: Path):
    paths = shards(whole, tmp_path / "many", 2)
    shutil.copyfile(whole, tmp_path / "many" / "other.gguf")
    with pytest.raises(InputError, match=r"holds 2 GGUF models; pass one of them, such as .*m-00001-of-00002"):
        load(tmp_path / "many")
    assert load(tmp_path / "many" / "other.gguf").files == (tmp_path / "many" / "other.gguf",)
    assert load(paths[1]).files == tuple(paths)
