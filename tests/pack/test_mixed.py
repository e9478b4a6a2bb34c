"""Formats by name of the matrix."""

import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.mixed import mixed

MATRICES = [
    *(f"{block}.{link}.{place}" for block in range(12) for link in ("attn", "mlp") for place in ("first", "second"))
]
MATRICES.append("head")


@pytest.mark.parametrize(
    ("text", "matrix", "name"),
    [
        ("int4", "head", "int4"),
        ("int4,head=int8", "head", "int8"),
        ("int4,head=int8", "3.mlp.first", "int4"),
        ("int4,*.second=int8", "11.attn.second", "int8"),
        ("int4,1.*=bf16", "1.mlp.second", "bf16"),
        ("int4,1.*=bf16", "11.mlp.second", "int4"),
        ("int4,5.mlp=bf16", "5.mlp.second", "bf16"),
        ("int4,5.mlp=bf16", "5.attn.second", "int4"),
        ("int4,*=bf16,5.mlp=int8", "5.mlp.first", "int8"),
        ("int4,5.mlp=int8,*=bf16", "5.mlp.first", "bf16"),
        ("int8, head = int4".replace(" = ", "="), "head", "int4"),
    ],
)
def test_the_last_pattern_that_names_a_matrix_counts(text, matrix, name):
    found = mixed(text)
    found.check(MATRICES)
    assert found.of(matrix).name == name
    assert mixed(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int4,head", r"'head' in format 'int4,head' is not MATRIX=FORMAT"),
        ("int4,head=int4,head=int8", "'head' stands twice in format 'int4,head=int4,head=int8'; leave one away"),
        ("int4,=int8", "is not MATRIX=FORMAT"),
        ("int4,head=int5", "format 'int5' is not one of"),
        ("head=int8", "format 'head=int8' is not one of"),
        ("", "format '' is not one of"),
    ],
)
def test_what_says_nothing_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        mixed(text)


@pytest.mark.parametrize("pattern", ["12.mlp", "heads", "mlp", "3.mlp.third"])
def test_a_pattern_that_names_no_matrix_is_refused(pattern):
    with pytest.raises(InputError, match=r"names no matrix of this model, whose matrices are 0\.attn\.first … head"):
        mixed(f"int4,{pattern}=int8").check(MATRICES)
