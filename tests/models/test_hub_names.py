"""Hub models out of a local cache, without a network: names, revisions, and users without a home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import cache_folder, user_path
from chinchilla_lm.models.source import locate
from tests.models.tiny import saved

MAIN, OLD = "a" * 40, "b" * 40
NAMES = [
    "someone/tiny", "someone/tiny@main", "someone/tiny@v1.0", f"someone/tiny@{OLD}", "someone/tiny@refs/pr/3",
    "someone/tiny@v9", "someone/other@main",
]  # fmt: skip
SCRIPT = """
import json, sys
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import load, save
found = {}
for name in json.loads(sys.argv[1]):
    try:
        model = load(name)
        save(model, sys.argv[2])
        found[name] = [dict(model.hub), json.load(open(sys.argv[2] + "/chinchilla.json"))["hub"]]
        found[name] += [load(sys.argv[2]).meta["hub"], model.model.config.hidden_size]
    except InputError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as huggingface_hub lays it out, with two commits of one model."""
    home = tmp_path_factory.mktemp("hf")
    model = home / "hub" / "models--someone--tiny"
    for commit, size in ((MAIN, 32), (OLD, 64)):
        _, folder = saved(home / commit, "llama-gqa", hidden_size=size)
        (model / "snapshots").mkdir(parents=True, exist_ok=True)
        folder.rename(model / "snapshots" / commit)
    for name, commit in (("main", MAIN), ("v1.0", OLD), ("refs/pr/3", OLD)):
        path = model / "refs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    return home


def run(script: str, *arguments: str, **options: Any) -> Any:
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, **options)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_revision_is_a_branch_a_tag_or_a_commit_and_is_kept(cache: Path, tmp_path: Path):
    offline = os.environ | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    offline.pop("HF_HUB_CACHE", None)
    found = run(SCRIPT, json.dumps(NAMES), str(tmp_path / "out"), env=offline, cwd=tmp_path)
    for name, revision, commit, size in (
        ("someone/tiny", "main", MAIN, 32),
        ("someone/tiny@main", "main", MAIN, 32),
        ("someone/tiny@v1.0", "v1.0", OLD, 64),
        (f"someone/tiny@{OLD}", OLD, OLD, 64),
        ("someone/tiny@refs/pr/3", "refs/pr/3", OLD, 64),
    ):
        where = {"model": "someone/tiny", "revision": revision, "commit": commit}
        assert found[name] == [where, where, where, size]
    assert "someone/tiny at v9 is no folder here and the hub cannot be reached" in found["someone/tiny@v9"]
    assert "someone/other at main is no folder here" in found["someone/other@main"]


@pytest.mark.parametrize(
    "revision", ["", "..", "a..b", "-x", "/main", "main/", "a//b", "a b", "v1.", "é~", "a\nb", "@"]
)
def test_what_names_no_revision_is_refused(revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as found:
        locate(f"someone/tiny@{revision}")
    assert "is not a branch, a tag or a commit" in str(found.value) or "does not exist" in str(found.value)


def test_a_folder_with_an_at_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, folder = saved(tmp_path, "llama-gqa")
    folder.rename(tmp_path / "tiny@v1")
    monkeypatch.chdir(tmp_path)
    assert locate("tiny@v1").folder == Path("tiny@v1")


def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's user is who stands in no list of users."""
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def test_without_a_home_the_variable_to_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    homeless(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="someone/tiny cannot be kept, as this user has no home; set HF_HOME to"):
        locate("someone/tiny")
    with pytest.raises(InputError, match="begins with ~, but this user has no home; set HOME"):
        user_path("~/model")
    with pytest.raises(InputError, match="no home to keep a cache in; set XDG_CACHE_HOME"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which means nothing, says its specification
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "chinchilla"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied", "/nobody/hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be kept in /nobody/hub: Permission denied; set HF_HOME to a folder"):
        locate("someone/tiny")
