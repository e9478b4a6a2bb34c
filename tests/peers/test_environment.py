"""Environments of peers: what is installed, by whom, for how long, and what is left when it fails."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.peers import environment
from chinchilla_lm.peers.environment import LOCKS, interpreter
from chinchilla_lm.peers.table import PEERS, Peer

QUIET = Console(quiet=True)
PROBE = Peer("x.py", {}, ("tiny-probe==1.0",))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Lock files for this Python, wherever the tests run, in a folder of their own."""
    monkeypatch.setattr(environment, "LOCKS", tmp_path)
    machine = (sys.version_info[:2], environment.platform.system(), environment.platform.machine())
    monkeypatch.setattr(environment, "LOCKED", machine)
    return tmp_path


def wheel(folder: Path) -> str:
    """A package with nothing in it; its SHA-256."""
    path = folder / "tiny_probe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_probe.py", "")
        file.writestr("tiny_probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-probe\nVersion: 1.0\n")
        file.writestr(
            "tiny_probe-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("tiny_probe-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_file_of_the_lock_is_installed(here: Path, monkeypatch: pytest.MonkeyPatch):
    digest = wheel(here)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(here))
    lock, home = here / "probe.txt", here / "home"
    lock.write_text(f"tiny-probe==1.0 --hash=sha256:{digest}\n")
    python = Path(interpreter("probe", PROBE, home, QUIET))
    assert list(python.parent.parent.glob("lib/python*/site-packages/tiny_probe.py"))
    monkeypatch.setattr(environment, "_build", lambda *_: pytest.fail("it was made already"))
    assert interpreter("probe", PROBE, home, QUIET) == str(python)
    lock.write_text(f"tiny-probe==1.0 --hash=sha256:{'0' * 64}\n")
    (step,) = environment._steps("probe", PROBE)
    status, _ = environment._run(
        "probe", [str(python), "-m", "pip", *step, "--force-reinstall"], {}, time.monotonic() + 99
    )
    assert status != 0, "another file than that of the lock"
    assert interpreter("ours", Peer("x.py", {}), home, QUIET) == sys.executable


def test_every_peer_has_a_lock_of_hashed_files():
    named = {f"{name}.txt": peer.requirements for name, peer in PEERS.items() if peer.requirements}
    named |= {f"{name}-tools.txt": peer.tools for name, peer in PEERS.items() if peer.tools}
    assert set(named) == {file.name for file in LOCKS.iterdir()}
    for file, requirements in named.items():
        text = (LOCKS / file).read_text(encoding="utf-8")
        packages = re.findall(r"^([\w.-]+==[\w.]+) \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
        assert len(packages) == len(text.splitlines()[1:]) // 2, file
        locked = {package.lower().replace("_", "-") for package in packages}
        assert {one.lower() for one in requirements} <= locked, file


def test_elsewhere_versions_are_pinned_and_it_is_said(here: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (here / "probe.txt").write_text("")
    (here / "probe-tools.txt").write_text("")
    peer = Peer("x.py", {}, ("a==1",), build=("a",), tools=("cmake==2",))
    tools, own = environment._steps("probe", peer)
    assert tools[-3:] == ["--require-hashes", "-r", str(here / "probe-tools.txt")]
    assert own[-4:] == ["--no-deps", "--require-hashes", "-r", str(here / "probe.txt")]
    assert {"--no-build-isolation", "--no-binary"} <= set(own), "built with the tools of the lock, of the locked source"
    monkeypatch.setattr(environment, "LOCKED", ((3, 99), "Linux", "x86_64"))
    tools, own = environment._steps("probe", peer)
    assert (tools[-1], own[-1]) == ("cmake==2", "a==1")
    assert "--require-hashes" not in own
    monkeypatch.setattr(environment, "_build", lambda name, peer, place, steps: place.mkdir())
    interpreter("probe", peer, here / "home", Console())
    assert "no hash is checked" in " ".join(capsys.readouterr().err.split())


def test_one_builds_and_the_others_wait(here: Path, monkeypatch: pytest.MonkeyPatch):
    built: list[Path] = []

    def build(name: str, peer: Peer, place: Path, steps: object) -> None:
        built.append(place)
        time.sleep(0.3)
        place.mkdir()

    monkeypatch.setattr(environment, "_build", build)
    monkeypatch.setattr(environment, "_LOOK_S", 0.01)
    found: list[str] = []
    both = [threading.Thread(target=lambda: found.append(interpreter("p", PROBE, here / "h", QUIET))) for _ in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(built) == 1
    assert found == [str(built[0] / "bin" / "python")] * 2


def test_who_waits_does_not_wait_for_ever(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "BUILD_LIMIT_S", 0.1)
    monkeypatch.setattr(environment, "_LOOK_S", 0.01)
    with (
        environment._alone(here / "lock", "probe", QUIET),
        pytest.raises(InputError, match=r"another process has been making its environment for 0\.1 s"),
        environment._alone(here / "lock", "probe", QUIET),
    ):
        pass
    with environment._alone(here / "lock", "probe", QUIET):
        pass


@pytest.mark.parametrize("error", [InputError("no room"), KeyboardInterrupt()])
def test_what_is_broken_off_is_removed(here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    def build(name: str, peer: Peer, place: Path, steps: object) -> None:
        place.mkdir()
        (place / "half").write_text("")
        raise error

    monkeypatch.setattr(environment, "_build", build)
    with pytest.raises(type(error)):
        interpreter("probe", PROBE, here / "home", QUIET)
    assert not list((here / "home").glob("probe-*"))


def test_a_build_out_of_time_ends_with_all_that_it_started(here: Path):
    mark = here / "pid"
    command = ["sh", "-c", f"sleep 60 & echo $! > {mark}.part; mv {mark}.part {mark}; wait"]
    with pytest.raises(InputError, match="was not made within"):
        environment._run("probe", command, {}, time.monotonic() + 1.0)
    compiler = int(mark.read_text())
    for _ in range(200):
        if not Path(f"/proc/{compiler}").exists() or "Z" in Path(f"/proc/{compiler}/stat").read_text().split()[2]:
            return
        time.sleep(0.02)
    os.kill(compiler, 9)
    pytest.fail("it lives on")


def test_no_place_for_environments_is_one_line(here: Path):
    (here / "file").write_text("")
    with pytest.raises(InputError, match="pass another --peers-home"):
        interpreter("probe", PROBE, here / "file" / "home", QUIET)
