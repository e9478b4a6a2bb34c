"""Whether there can be a GPU, asked of the kernel instead of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chinchilla_lm.runtime import gpus, loading
from chinchilla_lm.runtime.engine.native import engine_module

NODES = ["nvidia0", "nvidiactl", "nvhost-ctrl", "nvmap", "dxg", "kfd"]


@pytest.mark.parametrize("node", NODES)
def test_a_driver_may_have_a_gpu(node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setattr(gpus.sys, "platform", "linux")
    for other in ("null", "nvme0", "nvram", "dri", "kvm"):
        (tmp_path / other).write_text("")
    assert not gpus.may_have_gpu()
    (tmp_path / node).write_text("")
    assert gpus.may_have_gpu()


@pytest.mark.parametrize(("platform", "may"), [("win32", True), ("darwin", False)])
def test_elsewhere_the_system_says(platform: str, may: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus.sys, "platform", platform)
    assert gpus.may_have_gpu() == may


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
@pytest.mark.parametrize("may", [True, False])
def test_torch_is_asked_where_there_may_be_one(may: bool):
    code = (
        "import sys; from chinchilla_lm.runtime import loading; "
        f"loading.may_have_gpu = lambda: {may}; assert 'torch' not in sys.modules; loading.engine_serves('auto'); "
        f"assert ('torch' in sys.modules) == {may}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_torch_that_is_there_is_asked_in_any_case(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(loading, "may_have_gpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not loading.engine_serves("auto")
