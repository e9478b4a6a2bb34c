"""What a stopped solver left of codebooks and masks: found again as it was, and not where it is damaged."""

from dataclasses import replace

import numpy as np
import pytest

from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.unfinished import Unfinished

NAMES = ["int3", "codebook-2x64", "codebook-4x256-row", "sparse-50", "sparse-50-codebook"]


def rounded(name: str):
    how = FORMATS[name].rounding
    assert how is not None
    return how, how.round(np.random.default_rng(0).standard_normal((33, 100)).astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_is_found_as_it_was(tmp_path, name):
    (how, made), kept = rounded(name), Unfinished(tmp_path, "one")
    kept.put("0.attn.first", made)
    found = kept.get("0.attn.first", 33, 100, how)
    assert found is not None
    assert (found.values() == made.values()).all()
    assert kept.get("0.attn.first", 33, 120, how) is None
    assert kept.get("0.attn.second", 33, 100, how) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sparse-50", {"mask_NK": np.ones((33, 100), np.bool_)}),
        ("sparse-50-codebook", {"codebook_ED": np.full((16, 1), 3, np.int8)}),
        ("codebook-2x64", {"codebook_ED": np.full((64, 2), -128, np.int8)}),
        ("codebook-2x64", {"codes_NV": np.full((33, 52), 64, np.uint8)}),
        ("int3", {"codebook_ED": np.full((8, 1), 3, np.int8)}),
    ],
)
def test_what_does_not_fit_the_format_is_not_found(tmp_path, name, change):
    (how, made), kept = rounded(name), Unfinished(tmp_path, "one")
    kept.put("head", replace(made, **change))
    assert kept.get("head", 33, 100, how) is None
