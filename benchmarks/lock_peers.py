"""Write the lock files of `bench --peers`: what pip resolves here for each peer, with the hash of every file.

    python benchmarks/lock_peers.py                  # all of chinchilla_lm/peers/locks
    python benchmarks/lock_peers.py llama.cpp

Nothing is installed. The files hold for this Python on this system (peers/environment.py says which that has to be). Of
torch it is the CPU build that is wanted: run this where pip finds that first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from chinchilla_lm.peers.environment import LOCKS
from chinchilla_lm.peers.table import PEERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "peers", nargs="*", metavar="PEER", default=[n for n, peer in PEERS.items() if peer.requirements]
    )
    for name in parser.parse_args().peers:
        for what, requirements in ((name, PEERS[name].requirements), (f"{name}-tools", PEERS[name].tools)):
            if requirements:
                text = lock_text(what, _report(requirements), PEERS[name].without)
                (LOCKS / f"{what}.txt").write_text(text, encoding="utf-8")
                print(f"{what}: {text.count('--hash')} packages")


def _report(requirements: tuple[str, ...]) -> dict[str, Any]:
    """What pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), *requirements], check=True)
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found


def lock_text(name: str, report: dict[str, Any], without: tuple[str, ...]) -> str:
    """A requirements file: a version's local label (+cpu) is left to the hash."""
    lines = [f"# Of {name}: Python 3.11, Linux x86-64. Made by benchmarks/lock_peers.py."]
    for one in sorted(report["install"], key=lambda one: one["metadata"]["name"].lower()):
        if one["metadata"]["name"] in without:
            continue
        version = one["metadata"]["version"].partition("+")[0]
        digest = one["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{one['metadata']['name']}=={version} \\\n    --hash=sha256:{digest}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
