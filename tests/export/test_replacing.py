"""What `chinchilla export --force` replaces: an earlier export, and nothing that would be lost with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chinchilla_lm.cli import main


def export(model: Path, out: Path, *more: str) -> int:
    return main(["export", str(model), "--to", "hf", "-o", str(out), *more])


def test_force_replaces_an_earlier_export(capsys, model_folder, tmp_path):
    model = shutil.copytree(model_folder(), tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    for name in ("rag.jinja", "rag.py"):
        (model / "additional_chat_templates" / name).write_text("{{ messages }}")
    assert export(model, tmp_path / "out") == 0
    assert [path.name for path in (tmp_path / "out" / "additional_chat_templates").iterdir()] == ["rag.jinja"]
    (tmp_path / "out" / "merges.txt").write_text("of another tokenizer")
    assert export(model_folder(), tmp_path / "out") == 2
    assert export(model_folder(), tmp_path / "out", "--force") == 0
    assert not (tmp_path / "out" / "merges.txt").exists()


@pytest.mark.parametrize("name", ["thesis.txt", "chinchilla.json", "data/config.json", ".git/HEAD", "model.gguf"])
def test_force_leaves_a_folder_alone_that_holds_anything_else(capsys, model_folder, tmp_path, name):
    out = shutil.copytree(model_folder(), tmp_path / "out")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("years of work")
    before = (out / "config.json").stat().st_mtime_ns
    assert export(model_folder(), out, "--force") == 2
    assert f"holds {name}, which no export writes: not ours to replace; pass another -o" in capsys.readouterr().err
    assert (out / name).read_text() == "years of work"
    assert (out / "config.json").stat().st_mtime_ns == before


def test_force_does_not_replace_the_model_itself(capsys, model_folder, tmp_path):
    run = tmp_path / "run"
    model = shutil.copytree(model_folder(), run / "model")
    (tmp_path / "link").symlink_to(model, target_is_directory=True)
    before = (model / "config.json").stat().st_mtime_ns
    for source, out in ((model, model), (model, tmp_path / "link"), (run, model)):
        assert export(source, out, "--force") == 2
        assert f"{out} is MODEL itself; pass another -o" in capsys.readouterr().err
    assert (model / "config.json").stat().st_mtime_ns == before
