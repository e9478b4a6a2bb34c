"""A GGUF file is packed once; what comes of the kept copy is what comes of the file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import pre_tokenizers

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.plain_tokenizer import SPECIALS
from chinchilla_lm.runtime import keeping, kept, loading
from chinchilla_lm.runtime.kept import NOTE, Place
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.native import engine_module
from chinchilla_lm.runtime.packed import PROGRAM, read_packed
from chinchilla_lm.runtime.session import Session
from tests.models.test_gguf import NAMES, add_config
from tests.models.tiny import build

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")

MERGES = ["\u0120 t", "h e", "\u0120t he", "i n", "\u0120 \u0120"]
TOKENS = [
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *(merge.replace(" ", "") for merge in MERGES),
    *("<|bos|>", "<|im_end|>", "<|end_of_text|>", "<think>"),
]
TEXTS = ["", "in the  end <think>\n\n5", "na\u00efve \u4f60\u597d \U0001f642<|im_end|>", "the" * 20]
TEMPLATE = "{{ bos_token }}\r\n{% for m in messages %}<{{ m['content'] }}>\n{% endfor %}"


def write_model(path: Path, seed: int = 0, tokens: list[str] = TOKENS) -> Path:
    """A tiny Qwen 3 in Q8_0 with a byte-level tokenizer, a chat template and several stop tokens."""
    model = build("qwen3", vocab_size=len(tokens), eos_token_id=None, bos_token_id=None)
    with torch.no_grad():
        model.model.embed_tokens.weight += seed
    config, writer = model.config, GGUFWriter(path, "qwen3")
    add_config(writer, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 4) + [3, 3, 3, 4])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(tokens.index("<|bos|>"))
    writer.add_eos_token_id(tokens.index("<|end_of_text|>"))
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        module, part = name.rsplit(".", 1)
        block = module.removeprefix("model.layers.").split(".", 1)
        ours = NAMES | {"post_attention_layernorm": "ffn_norm"}
        full = f"blk.{block[0]}.{ours[block[1]]}" if module.startswith("model.layers.") else ours[module]
        values = tensor.numpy()
        whole = values.ndim == 2 and values.shape[1] % 32 == 0
        kind = GGMLQuantizationType.Q8_0 if whole else GGMLQuantizationType.F32
        writer.add_tensor(f"{full}.{part}", np.ascontiguousarray(quantize(values, kind)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are kept: of files as young as they are, and however quickly they were made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CHINCHILLA_KEEP", "1")
    monkeypatch.setattr(loading, "WORTH", 0.0)
    monkeypatch.setattr(keeping, "PAUSE", 0.0)
    monkeypatch.setattr(kept.time, "time_ns", lambda: 2**62)
    return tmp_path / "cache" / "chinchilla" / "programs"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formats of what was made from a file, and not taken from a copy."""
    forms: list[str] = []
    real = loading.compile_file

    def counting(path: Any, form: str, task: str | None = None) -> Any:
        forms.append(form)
        return real(path, form, task)

    monkeypatch.setattr(loading, "compile_file", counting)
    return forms


def loaded(path: Path, dtype: str = "float32", **more: Any) -> Session:
    """A session, when its copy has been written."""
    session = load(path, "native", dtype=dtype, threads=1, **more)
    for thread in threading.enumerate():
        if thread.name == keeping.NAME:
            thread.join()
    return session


def program_of(session: Session) -> Any:
    assert isinstance(session.runner, loading.NativeBackend)
    return session.runner.model.program


def assert_alike(one: Session, other: Session) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(one.logits([5, 200, 17, 33, 7]), other.logits([5, 200, 17, 33, 7]))
    for name in (
        *("kind", "labels", "causal", "vocabulary", "max_positions", "hidden", "meta", "hf_config", "source"),
        *("scores", "sentences", "pad_id", "legal_tags"),
    ):
        assert getattr(one.card, name) == getattr(other.card, name), name
    first, second = one.tokenizer, other.tokenizer
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    for name in ("specials", "chat_template", "cut_left", "split_specials", "others", "ends", *SPECIALS):
        assert getattr(first, name) == getattr(second, name), name
    for text in TEXTS:
        ids = first(text)["input_ids"]
        assert ids == second(text)["input_ids"]
        assert first.decode(ids) == second.decode(ids)
    assert one._stop_ids == other._stop_ids
    assert one.generate("the", 9, chat=True, temperature=1.0, seed=3) == other.generate(
        "the", 9, chat=True, temperature=1.0, seed=3
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", [None, "language-modeling"])
def test_the_copy_is_what_the_file_is(
    dtype: str, task: str | None, copies: Path, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_model(tmp_path / "model.gguf")
    first = loaded(path, dtype, task=task)
    second = loaded(path, dtype, task=task)
    assert len(made) == 1
    assert [program_of(one).path is None for one in (first, second)] == [True, False]
    assert len(second._stop_ids) == 2
    assert second.tokenizer.chat_template == TEMPLATE
    assert_alike(first, second)
    monkeypatch.setenv("CHINCHILLA_KEEP", "0")
    assert_alike(loaded(path, dtype, task=task), second)
    assert len(made) == 2


def test_the_copy_is_a_packed_folder(copies: Path, made: list[str], tmp_path: Path):
    session = loaded(write_model(tmp_path / "model.gguf"))
    [folder] = copies.iterdir()
    packed = Session(loading.NativeBackend(loading.NativeModel(*read_packed(folder)[:1]), session.card), session.card)
    assert_alike(packed, session)
    again = load(folder, "native", threads=1)
    assert again._stop_ids == session._stop_ids
    assert again.generate("in", 5) == session.generate("in", 5)


def test_formats_have_copies_of_their_own(copies: Path, made: list[str], tmp_path: Path):
    path = write_model(tmp_path / "model.gguf")
    for _ in range(2):
        for dtype in ("float32", "bfloat16"):
            loaded(path, dtype)
    assert made == ["f32", "bf16"]
    assert len(list(copies.iterdir())) == 2


def test_a_file_that_changed_is_made_anew(copies: Path, made: list[str], tmp_path: Path):
    path = write_model(tmp_path / "model.gguf")
    first = loaded(path).logits([1, 2])
    stat = path.stat()
    write_model(path, seed=1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # all that a user can set
    assert path.stat().st_size == stat.st_size
    assert not np.array_equal(loaded(path).logits([1, 2]), first)
    os.utime(path)
    loaded(path)
    shutil.copyfile(path, tmp_path / "other.gguf")
    os.replace(tmp_path / "other.gguf", path)
    loaded(path)
    assert len(made) == 4


def test_a_shard_that_changed_is_seen(copies: Path, made: list[str], tmp_path: Path):
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    for path in (first, second):
        path.write_bytes(b"GGUF")
    one, other = Place.of(first, "f32", None), Place.of(second, "f32", None)
    assert one is not None
    assert one == other
    os.utime(second)
    assert Place.of(first, "f32", None) != one


def test_code_that_changed_makes_another_copy(copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_model(tmp_path / "model.gguf")
    before = Place.of(path, "f32", None)
    monkeypatch.setattr(kept, "ROOMS", kept.ROOMS[1:])
    after = Place.of(path, "f32", None)
    assert before is not None
    assert after is not None
    assert before.folder != after.folder


def test_a_file_that_was_just_written_is_not_kept(copies: Path, made: list[str], tmp_path: Path, monkeypatch: Any):
    path = write_model(tmp_path / "model.gguf")
    monkeypatch.setattr(kept.time, "time_ns", lambda: path.stat().st_ctime_ns + 1_900_000_000)
    loaded(path)
    assert not copies.exists()


def test_a_file_that_changes_while_it_is_read_is_not_kept(copies: Path, tmp_path: Path, monkeypatch: Any):
    path, real = write_model(tmp_path / "model.gguf"), loading.compile_file

    def slow(*arguments: Any) -> Any:
        found = real(*arguments)
        os.utime(path)
        return found

    monkeypatch.setattr(loading, "compile_file", slow)
    loaded(path)
    assert not copies.exists()


def test_what_is_made_quickly_is_not_kept(copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "WORTH", 1000.0)
    loaded(write_model(tmp_path / "model.gguf"))
    assert not copies.exists()


def test_a_vocabulary_with_a_token_twice_is_not_kept(copies: Path, tmp_path: Path, capfd: Any):
    """The library would print a warning on standard output as it writes it."""
    tokens = [*TOKENS[:-4], "the", "in", *TOKENS[-4:]]
    loaded(write_model(tmp_path / "model.gguf", tokens=tokens))
    assert list(copies.parent.glob("programs/*")) == []
    assert capfd.readouterr().out == ""


def test_folders_and_other_tasks_have_no_copies(copies: Path, model_folder: Any, tmp_path: Path):
    assert loaded(model_folder()).card.kind == "language-modeling"
    loaded(write_model(tmp_path / "model.gguf"), task="embedding")
    with pytest.raises(InputError, match=r"no trained head|no head"):
        loaded(tmp_path / "model.gguf", task="text-classification")
    assert not copies.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def empty(folder: Path) -> None:
    for one in folder.iterdir():
        one.unlink()


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def replace_by_link(path: Path) -> None:
    """To itself, somewhere else."""
    elsewhere = path.parents[2] / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def replace_by_dead_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "program cut": lambda folder: cut(folder / PROGRAM),
    "program changed": lambda folder: flip(folder / PROGRAM),
    "no program": lambda folder: (folder / PROGRAM).unlink(),
    "tokenizer changed": lambda folder: flip(folder / "tokenizer.json"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "no stop tokens": lambda folder: (folder / "generation_config.json").unlink(),
    "config changed": lambda folder: (folder / "config.json").write_text("{}"),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no note": lambda folder: (folder / NOTE).unlink(),
    "another note": lambda folder: (folder / NOTE).write_bytes(b"\xff" * 9),
    "a file more": lambda folder: (folder / "chinchilla.json").write_text("[]"),
    "a folder within": lambda folder: (folder / "chinchilla.json").mkdir(),
    "empty": empty,
    "a file": replace_by_file,
    "a link": replace_by_link,
    "a dead link": replace_by_dead_link,
    "a link within": lambda folder: replace_by_link(folder / PROGRAM),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_copy_is_replaced(how: str, copies: Path, made: list[str], tmp_path: Path):
    path = write_model(tmp_path / "model.gguf")
    first = loaded(path)
    [folder] = copies.iterdir()
    DAMAGE[how](folder)
    assert_alike(loaded(path), first)
    assert len(made) == 2
    assert list(copies.iterdir()) == [folder]
    assert_alike(loaded(path), first)
    assert len(made) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("what", ["", PROGRAM, "tokenizer.json"])
def test_a_copy_of_another_user_is_replaced(what: str, copies: Path, made: list[str], tmp_path: Path):
    path = write_model(tmp_path / "model.gguf")
    loaded(path)
    [folder] = copies.iterdir()
    os.chown(folder / what, 54321, 54321)
    loaded(path)
    assert len(made) == 2
    assert (folder / what).stat().st_uid == os.geteuid()


def test_a_copy_may_be_removed_while_it_is_used(copies: Path, made: list[str], tmp_path: Path):
    path = write_model(tmp_path / "model.gguf")
    first, second = loaded(path), loaded(path)
    shutil.rmtree(copies)
    assert len(made) == 1
    assert_alike(second, first)


def test_the_copy_not_used_for_the_longest_time_goes_first(
    copies: Path, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    paths = [write_model(tmp_path / f"{number}.gguf", number) for number in range(3)]
    loaded(paths[0])
    [oldest] = copies.iterdir()
    loaded(paths[1])
    [middle] = set(copies.iterdir()) - {oldest}
    size = sum(one.stat().st_size for one in oldest.iterdir())
    monkeypatch.setattr(keeping, "MOST", size * 5 // 2)
    os.utime(oldest, (100, 100))
    os.utime(middle, (200, 200))
    loaded(paths[0])  # used just now
    loaded(paths[2])
    assert len(made) == 3
    assert oldest.exists()
    assert not middle.exists()
    assert len(list(copies.iterdir())) == 2


@pytest.mark.parametrize("why", ["bound", "disk"])
def test_a_copy_without_room_is_not_made_and_none_is_lost(
    why: str, copies: Path, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded(write_model(tmp_path / "small.gguf"))
    before = set(copies.iterdir())
    if why == "bound":
        monkeypatch.setattr(keeping, "MOST", 1000)
    else:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        size = sum(one.stat().st_size for folder in before for one in folder.iterdir())
        assert (1000 + 2 * size) // 2 < 2 * size
        monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage)
        monkeypatch.setattr(kept.Program, "size", property(lambda self: size))
    assert loaded(write_model(tmp_path / "other.gguf", 1)).generate("the", 3, ignore_eos=True)
    assert set(copies.iterdir()) == before


def test_what_a_killed_process_left_is_removed_when_it_is_old(copies: Path, monkeypatch: pytest.MonkeyPatch):
    copies.mkdir(parents=True)
    old, young = (copies / f".{letter * 64}.building-host-1-x" for letter in "ab")
    for one in (old, young):
        one.mkdir()
        (one / PROGRAM).write_bytes(bytes(1000))
    os.utime(old, (100, 100))
    monkeypatch.setattr(keeping, "MOST", 1500)
    keeping.make_room(copies, 400)
    assert [one.name for one in copies.iterdir()] == [young.name]
    with pytest.raises(InputError, match="600 bytes are more than the 1500"):
        keeping.make_room(copies, 600)


def test_turned_off_it_neither_reads_nor_writes(copies: Path, made: list[str], tmp_path: Path, monkeypatch: Any):
    path = write_model(tmp_path / "model.gguf")
    monkeypatch.setenv("CHINCHILLA_KEEP", "0")
    loaded(path)
    assert not copies.exists()
    monkeypatch.setenv("CHINCHILLA_KEEP", "1")
    loaded(path)
    monkeypatch.setenv("CHINCHILLA_KEEP", "0")
    loaded(path)
    assert len(made) == 3
    monkeypatch.setenv("CHINCHILLA_KEEP", "perhaps")
    with pytest.raises(InputError, match="CHINCHILLA_KEEP=perhaps is not 0 or 1; set one of them"):
        loaded(path)


@pytest.mark.parametrize("where", ["a file in the way", "no home", "a full disk"])
def test_without_a_cache_nothing_is_kept_or_said(
    where: str, copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, recwarn: Any
):
    if where == "a file in the way":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    elif where == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    else:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(kept, "write_program", full)
    path = write_model(tmp_path / "model.gguf")
    for _ in range(2):
        assert len(loaded(path).generate("the", 3, ignore_eos=True)) > 0
    assert list(copies.parent.glob("programs/*")) == list(copies.parent.glob("programs/.*")) == []
    assert capfd.readouterr() == ("", "")
    assert [str(one.message) for one in recwarn if "chinchilla" in one.filename] == []


ENDING = """
import os, signal, sys, threading
from chinchilla_lm.runtime import keeping
keeping.PAUSE = 1000.0  # the end of the process does not wait for it

def write(stop):
    how = sys.argv[1]
    if how == 'interrupted':
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(60)
        stop = threading.Event()
        stop.wait(0.3)  # time that cleaning up takes
    print('cleaned up' if how == 'interrupted' else 'written', flush=True)
    raise keeping.Stopped

keeping.Writer(write).start()
if sys.argv[1] == 'forked' and not os.fork():
    sys.exit()
"""


@pytest.mark.parametrize(
    ("how", "said"), [("left alone", "written"), ("interrupted", "cleaned up"), ("forked", "written")]
)
def test_the_process_waits_at_its_end(how: str, said: str):
    if how == "forked" and not hasattr(os, "fork"):
        pytest.skip("nothing forks here")
    done = subprocess.run([sys.executable, "-c", ENDING, how], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, said + "\n", "")


def test_writing_that_is_stopped_leaves_nothing(copies: Path, tmp_path: Path):
    path = write_model(tmp_path / "model.gguf")
    place, stop = Place.of(path, "f32", None), threading.Event()
    assert place is not None
    program, card = loading.compile_file(path, "f32")
    stop.set()
    with pytest.raises(keeping.Stopped):
        place.write(program, card, stop)
    assert list(copies.iterdir()) == []
    stop.clear()
    place.write(program, card, stop)
    assert list(copies.iterdir()) == [place.folder]


SCRIPT = """
import sys
from chinchilla_lm.runtime import kept, loading
loading.WORTH, kept.time.time_ns = 0.0, lambda: 2**62  # the file is as young as the test
session = loading.load(sys.argv[1], threads=1)
print(session.logits([5, 200, 17]).tobytes().hex())
print(session.generate('the', 5, ignore_eos=True).encode().hex())
if sys.argv[2:]:
    assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'
    assert session.runner.model.program.path is not None
"""


def test_processes_at_once_and_one_after_them(copies: Path, tmp_path: Path):
    """Each waits at its end until its copy is written; the next needs no torch."""
    path = write_model(tmp_path / "model.gguf")
    start = [sys.executable, "-c", SCRIPT, str(path)]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert len(list(copies.iterdir())) == 1
    third = subprocess.run([*start, "x"], capture_output=True, text=True, timeout=60)
    assert third.returncode == 0, third.stderr
    assert [one for one, _ in said] == [third.stdout] * 2
    assert third.stderr == said[0][1] == said[1][1] == ""
