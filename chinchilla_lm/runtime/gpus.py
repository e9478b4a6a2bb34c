"""Whether there can be a GPU at all, by what the kernel shows of it.

Torch would know, but takes a second to import, which a model that the engine runs can do without.
"""

from __future__ import annotations

import sys
from pathlib import Path

DEVICES = Path("/dev")
# What programs talk to: NVIDIA's driver, that of its small boards, Windows' GPU as its Linux sees it, AMD's driver.
NODES = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "dxg", "kfd")


def may_have_gpu() -> bool:
    """False where torch can find none; True leaves it to torch."""
    if sys.platform == "darwin":  # no torch for it has CUDA
        return False
    if sys.platform != "linux":
        return True
    return any(next(DEVICES.glob(name), None) is not None for name in NODES)
