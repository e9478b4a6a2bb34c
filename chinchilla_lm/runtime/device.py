"""Which device to run on, and which dtype is fast there."""

from __future__ import annotations

import re

import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.cpu import NATIVE_BFLOAT16, cpu_flags


def resolve_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one, else the CPU. Raises InputError for what is not auto, cpu, cuda or cuda:N,
    and for a GPU that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise InputError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0; pass --device auto")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"device {name!r} is not there, {count} GPUs are; pass --device auto")
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if cpu_flags() & NATIVE_BFLOAT16 else torch.float32


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`, `float32` or `bfloat16`."""
    return fast_dtype(device) if name == "auto" else {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
