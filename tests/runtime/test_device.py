from __future__ import annotations

import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.device import resolve_device


@pytest.fixture
def gpus(monkeypatch):
    """Make torch see this many GPUs."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


def test_the_gpu_is_taken_where_there_is_one(gpus):
    gpus(2)
    found = [resolve_device(name) for name in ("auto", "cpu", "cuda", "cuda:1")]
    assert found == [torch.device(name) for name in ("cuda", "cpu", "cuda", "cuda:1")]
    gpus(0)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["mps", "meta", "xpu:0", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "cuda:0000", "CUDA", ""]
)
def test_what_torch_may_know_and_we_do_not_run_on_is_refused(gpus, name):
    gpus(1)
    with pytest.raises(InputError, match=f"device {name!r} is not one of auto, cpu, cuda, cuda:0; pass"):
        resolve_device(name)


@pytest.mark.parametrize(("count", "name"), [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1")])
def test_a_gpu_that_is_not_there_is_refused(gpus, count, name):
    gpus(count)
    with pytest.raises(InputError, match=f"device {name!r} is not there, {count} GPUs are; pass"):
        resolve_device(name)
