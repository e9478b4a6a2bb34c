"""A GGUF file is packed once; what comes of the kept copy is what comes of the file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.plain_tokenizer import SPECIALS
from chinchilla_lm.runtime import loading
from chinchilla_lm.runtime.engine import kept
from chinchilla_lm.runtime.engine.kept import NOTE, Place
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.packed import PROGRAM, read_packed
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.session import Session
from tests.runtime.small_gguf import TEMPLATE, TOKENS, loaded, write_model

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")

TEXTS = ["", "in the  end <think>\n\n5", "na\u00efve \u4f60\u597d \U0001f642<|im_end|>", "the" * 20]


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
