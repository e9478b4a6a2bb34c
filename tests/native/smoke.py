"""Whether a wheel that was just installed has an engine that multiplies; what cibuildwheel runs. Needs NumPy alone.

python tests/native/smoke.py
"""

from __future__ import annotations

import sys
from importlib.resources import files

import numpy as np

from chinchilla_lm.native import engine_module
from chinchilla_lm.pack.formats import FORMATS

OUTPUTS, INPUTS, ROWS = 48, 192, 5
# Of the largest result: inputs are rounded too, to as many bits as the kind of the weights has, but to 8 at the least.
ROUNDING = {"f32": 1e-5, "bf16": 1e-2, "int8": 3e-2, "int4": 3e-2}


def main() -> int:
    """0 where every format in every kernel set gives the product of the unpacked weights."""
    engine = engine_module()
    if engine is None:
        print("there is no engine in this installation")
        return 1
    if not files("chinchilla_lm").joinpath("py.typed").is_file():
        print("there is no py.typed in this installation")
        return 1
    random = np.random.default_rng(0)
    weights = random.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
    x = random.standard_normal((ROWS, INPUTS)).astype(np.float32)
    for isa in engine.kernel_names():
        for name, form in FORMATS.items():
            packed = on_64_bytes(form.bytes(OUTPUTS, INPUTS))
            form.pack_into(weights, packed)
            header = {"format": form.kind, "outputs": OUTPUTS, "inputs": INPUTS, "offset": 0, "bias": None}
            found = engine.multiply(isa, header | dict(form.options), packed, x)
            expected = x @ form.unpack(packed, OUTPUTS, INPUTS).T
            error = float(np.abs(found - expected).max() / np.abs(expected).max())
            if not error < ROUNDING[form.kind]:
                print(f"{isa} {name}: off by {error:.1e} of the largest result")
                return 1
        print(f"{isa}: {len(FORMATS)} formats")
    return 0


def on_64_bytes(size: int) -> np.ndarray:
    """Zeros that begin on 64 bytes, as a program's data does."""
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


if __name__ == "__main__":
    sys.exit(main())
