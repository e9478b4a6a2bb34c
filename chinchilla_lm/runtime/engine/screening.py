"""A screen for a program's decoder: made of the program itself and of texts that it writes, whatever packed it.

The texts only decide how much the screen saves, not what is chosen: they show along which axes the states are long.
They are drawn as the model draws them, for the states of text that it writes are those that greedy choice will see.

V words, K inputs of the decoder, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.bf16 import lay
from chinchilla_lm.pack.formats import Format, format_of
from chinchilla_lm.pack.panels import LANES, Bytes, Floats, rows_of
from chinchilla_lm.pack.screen import AXES_FORMAT, LEAD_FORMAT, REST_FORMAT, Doubles, Screen, exact, screen
from chinchilla_lm.runtime.engine.native import NativeModel
from chinchilla_lm.runtime.engine.program import Header, Laid, Parts, Program
from chinchilla_lm.runtime.sampling import Sampler

TEXTS = 32  # that are written together
LEAST_TOKENS, TOKENS_A_FEATURE = 2048, 8  # as many states as say where the axes lie


@dataclass(frozen=True, slots=True)
class _Behind:
    """A program's data, and a draft's behind it."""

    header: Header
    program: Program
    parts: Parts

    @property
    def size(self) -> int:
        return self.program.size + self.parts.size

    def blocks(self) -> Iterator[Bytes]:
        yield self.program.data
        yield from self.parts.blocks()


def check_screened(header: Header) -> None:
    """Raises InputError for a program whose head has no use for a screen."""
    head = header["head"]
    output, remedy = head["output"], "leave --screen-head away"
    if not header["causal"] or output is None or head["pooling"] != "none":
        raise InputError(f"a screen is of the head of a model that writes text; {remedy}")
    if output["format"] in ("int4", "codes"):
        raise InputError(
            f"a head in 4 bits or fewer is as small as its screen; {remedy}, or put head=int8 behind the format"
        )
    if head["softcap"]:
        raise InputError(f"a screen's bound does not go through the soft cap of this model's logits; {remedy}")
    if not 1e-3 <= head["scale"] <= 1e3:
        raise InputError(f"logits times {head['scale']} are out of a screen's range, 0.001 to 1000; {remedy}")


def with_screen(program: Program, moments_KK: Doubles) -> Laid:
    """The same program with a screen for its decoder; its data is laid out behind that of the program.

    moments_KK: of the decoder's inputs. Raises InputError for a program whose head has no use for a screen, and for
    moments that are not finite numbers.
    """
    check_screened(program.header)
    parts = Parts()
    head = program.header["head"] | {"screen": _laid(_screen_of(program, moments_KK), program, parts)}
    clean = {key: value for key, value in program.header.items() if key not in ("version", "bytes", "sha256")}
    return _Behind(clean | {"head": head}, program, parts)


def moments(model: NativeModel, seed: int = 0) -> Doubles:
    """Σ x xᵀ [K, K] of the decoder's inputs over texts that the model writes."""
    inputs = model.program.header["head"]["output"]["inputs"]
    total = np.zeros((inputs, inputs))
    for text in own_texts(model, seed):
        states_TK = model.states([text]).astype(np.float64)
        total += states_TK.T @ states_TK
    return total


def own_texts(model: NativeModel, seed: int = 0) -> list[np.ndarray]:
    """Token ids, int32, of texts that the model draws at temperature 1, each behind a token drawn evenly from all."""
    header = model.program.header
    inputs, positions = header["head"]["output"]["inputs"], header["max_positions"]
    wanted = max(LEAST_TOKENS, TOKENS_A_FEATURE * inputs)
    length = min(-(-wanted // TEXTS), positions)
    random = np.random.default_rng(seed)
    rows = [np.array([first], np.int32) for first in random.integers(0, header["vocabulary"], TEXTS)]
    texts, caches = rows, [model.cache(length) for _ in rows]
    samplers = [Sampler(temperature=1.0, seed=seed + index) for index in range(TEXTS)]
    for _ in range(length - 1):
        logits = model.run(rows, caches)
        drawn = [draw(one) for draw, one in zip(samplers, logits, strict=True)]
        rows = [np.array([one], np.int32) for one in drawn]
        texts = [np.append(text, row) for text, row in zip(texts, rows, strict=True)]
    return texts


def _screen_of(program: Program, moments_KK: Doubles) -> Screen:
    """The screen of a program's decoder for inputs with such moments."""
    part = program.header["head"]["output"]
    outputs, inputs = part["outputs"], part["inputs"]
    form = format_of(part)
    packed = program.data[part["offset"] : part["offset"] + form.bytes(outputs, inputs)]
    bias = None
    if part["bias"] is not None:
        bias = program.data[part["bias"] : part["bias"] + 4 * outputs].view(np.float32)
    return screen(lambda rows: _rows(form, packed, outputs, inputs, rows), outputs, moments_KK, bias)


def _rows(form: Format, packed: Bytes, outputs: int, inputs: int, rows: slice) -> Doubles:
    """Rows of a packed matrix, exact; they begin with a panel."""
    flat = rows_of(packed, outputs)[rows.start // LANES : -(-rows.stop // LANES)].reshape(-1)
    count = rows.stop - rows.start
    if form.rounding is None:
        return form.unpack(flat, count, inputs).astype(np.float64)
    return exact(form.rounded(flat, count, inputs))


def _laid(made: Screen, program: Program, parts: Parts) -> Header:
    """What the header says of a screen; its data goes to parts, whose places are behind the program's data."""
    output = program.header["head"]["output"]
    outputs, inputs, base = output["outputs"], output["inputs"], program.size

    def add(data: Bytes) -> int:
        return base + parts.add(data.size, lambda room: np.copyto(room, data))

    def vector(values: Floats) -> int:
        return base + parts.vector(values)

    def matrix(form: Format, data: Bytes, rows: int, columns: int, bias: int | None = None) -> Header:
        return {
            "format": form.kind,
            "outputs": rows,
            "inputs": columns,
            "offset": add(data),
            "bias": bias,
            **form.options,
        }

    lead = made.lead_inputs
    return {
        "axes": matrix(AXES_FORMAT, lay(made.axes_JK), inputs, inputs),
        "lead": matrix(LEAD_FORMAT, made.lead, outputs, lead, output["bias"]),
        "rest": None if made.rest is None else matrix(REST_FORMAT, made.rest, outputs, inputs - lead),
        "center": vector(made.center_K),
        "metric": vector(made.metric_J),
        "sizes": vector(made.sizes_V),
        **{name: getattr(made, name) for name in ("residual", "length", "stray", "stretch", "largest", "bias")},
    }
