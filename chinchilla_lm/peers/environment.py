"""A virtual environment for each peer, made once and kept: what one program needs, another cannot have."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import cache_folder
from chinchilla_lm.peers.table import Peer

VARIABLE = "CHINCHILLA_PEERS"


def home() -> Path:
    """Where environments are kept: $CHINCHILLA_PEERS, or a folder of the user's cache."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else cache_folder() / "peers"


def interpreter(name: str, peer: Peer, folder: Path, console: Console) -> str:
    """The Python that has what the peer needs. Makes its environment where it is missing or of other requirements.

    Raises InputError where pip fails, with the end of what it said.
    """
    if not peer.requirements:
        return sys.executable
    wanted = json.dumps(
        [peer.requirements, peer.build, peer.without, sorted(peer.variables.items()), sys.version_info[:2]]
    )
    place = folder / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python, done = place / "bin" / "python", place / "complete"
    if done.exists():
        return str(python)
    shutil.rmtree(place, ignore_errors=True)
    console.say(f"{name}: making its environment in {place}: {', '.join(peer.requirements)}")
    try:
        venv.create(place, with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise InputError(
            f"{name}: no environment can be made in {place} ({error}); install Python's venv with ensurepip, "
            "or leave it out of --peers"
        ) from error
    command = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    for package in peer.build:
        command += ["--no-binary", package]
    ran = subprocess.run(
        [*command, *peer.requirements], capture_output=True, text=True, env=os.environ | dict(peer.variables)
    )
    if ran.returncode:
        said = [line.strip() for line in (ran.stderr or ran.stdout).splitlines() if line.strip()][-1:]
        raise InputError(f"{name} cannot be installed: {' '.join(said)}; mend that, or leave it out of --peers")
    for package in peer.without:
        subprocess.run([str(python), "-m", "pip", "uninstall", "-y", package], capture_output=True, check=False)
    done.write_text("")
    return str(python)
