"""The peak step size where none is asked for: narrow models take larger steps than wide ones.

Measured on CoNLL-2003 (benchmarks/ner.py), with batches of 1,024 to 1,536 tokens: 384 wide, MiniLM is fine-tuned at 2e-4
and recovered at 4e-4; 768 wide, MPNet at 6e-5 and 1e-4; SmolLM2-135M, 576 wide, lies between. So below BASE_WIDTH the rate
goes by the square of the width, up to MOST times that of the base; above, by the width itself, as for Adam's hidden
layers in Yang et al., "Tensor Programs V" (2022).
"""

BASE_WIDTH = 768
MOST = 4.0


def peak_rate(asked: float | None, at_base: float, width: int) -> float:
    """`asked`, or what a model `width` wide takes where one BASE_WIDTH wide takes `at_base`."""
    if asked is not None:
        return asked
    ratio = BASE_WIDTH / width
    return at_base * min(MOST, ratio**2 if ratio > 1 else ratio)
