"""Programs of codes: codebooks, 3 bits and sparse blocks in the engine, beside what torch makes of the same bytes."""

import numpy as np
import pytest

from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.runtime.engine.native import NativeModel
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.packing import write_packed
from tests.models.tiny import VOCAB

engine = pytest.importorskip("chinchilla_lm.native._engine", reason="the engine is not built")

CODES = [name for name, form in FORMATS.items() if form.kind == "codes"]
# Ten times the first and the second are as much as of a pair that there is.
PAIRS = [(2, 11), (1, 21), (2, 21), (3, 11), (5, 12), (7, 14), (4, 44), (5, 34), (2, 64)]
MIXED = "codebook-2x64,*.second=sparse-50,head=codebook-4x256-row,1.mlp=sparse-75-codebook,0.attn=int3"


@pytest.mark.parametrize("formats", [*CODES, MIXED])
@pytest.mark.parametrize("name", ["llama-gqa", "gemma3", "qwen3_5"])
def test_the_engine_runs_what_torch_unpacks(model_folder, tmp_path, name, formats):
    """Gate and up alternate, gates stand last, the decoder is the embedding; a long text and single tokens."""
    folder = tmp_path / "packed"
    write_packed(str(model_folder(name)), formats, folder)
    ids = np.random.default_rng(0).integers(7, VOCAB, 40).tolist()
    exact = load(folder, "torch").logits(ids)
    # What is rounded to 8 bits are the inputs of products; a memory of random weights makes more of it.
    limit = (0.2 if name == "qwen3_5" else 0.1) * exact.std()
    native = NativeModel(read_packed(folder)[0], 2)
    at_once = native.run([np.array(ids, np.int32)], everywhere=True)
    assert np.sqrt(np.mean((at_once - exact) ** 2)) < limit
    caches = [native.cache(40)]
    one_by_one = np.concatenate([native.run([np.array([one], np.int32)], caches) for one in ids])
    assert np.sqrt(np.mean((one_by_one - exact) ** 2)) < limit


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bits": 5}, "bits and dims are none that this engine knows"),
        ({"dims": 4}, "bits and dims are none that this engine knows"),
        *(({"bits": bits, "dims": dims}, "bits and dims are none that this engine knows") for bits, dims in PAIRS),
        ({"bits": 3, "dims": 11, "kept": 16}, "bits and dims are none that this engine knows"),
        ({"group": 32}, "group is not 64 or 128"),
        ({"kept": 32}, "kept is none that this engine knows"),
        ({"row_scales": 1}, "row_scales has a value of the wrong type"),
        ({"outputs": 48}, "points outside the program's bytes"),
    ],
)
def test_a_header_of_codes_that_lies_is_refused(changed, said):
    form = FORMATS["codebook-2x64"]
    room = np.zeros(form.bytes(32, 64) + 64, np.uint8)
    start = -room.ctypes.data % 64
    packed = room[start : start + form.bytes(32, 64)]
    form.pack_into(np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32), packed)
    header = {"format": "codes", "outputs": 32, "inputs": 64, "offset": 0, "bias": None, **form.options}
    x = np.zeros((1, 64), np.float32)
    assert engine.multiply("portable", header, packed, x).shape == (1, 32)
    with pytest.raises(ValueError, match=said):
        engine.multiply("portable", header | changed, packed, x)


def test_any_mask_is_read_within_its_block():
    """What a damaged file says is kept is never more than the bytes that are there."""
    random = np.random.default_rng(1)
    for name in ("sparse-50", "sparse-50-codebook", "sparse-75-codebook"):
        form = FORMATS[name]
        room = np.zeros(form.bytes(16, 64) + 64, np.uint8)
        start = -room.ctypes.data % 64
        packed = room[start : start + form.bytes(16, 64)]
        header = {"format": "codes", "outputs": 16, "inputs": 64, "offset": 0, "bias": None, **form.options}
        packed[:] = random.integers(0, 256, packed.size)
        packed[form.front : form.front + 64] = 0  # scales that are numbers
        packed[form.front + 64 : form.front + 192] = 255  # every mask keeps all
        for isa in engine.kernel_names():
            for rows in (1, 9):
                assert np.isfinite(engine.multiply(isa, header, packed, np.ones((rows, 64), np.float32))).all()
