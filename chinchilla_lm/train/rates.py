"""The peak step size where none is asked for: narrow models take larger steps than wide ones.

The taggers of benchmarks/ner.py, in steps of 1,024 to 1,536 tokens: MiniLM, 384 wide, is fine-tuned at 2e-4 and
recovered at 4e-4; SmolLM2-135M, 576 wide, at 1.2e-4 and 2e-4; MPNet, 768 wide, at 6e-5 and 1e-4. The square of the
width comes within 30 % of all six, up to MOST times the base's rate. Above BASE_WIDTH nothing was measured: there the
rate goes by the width itself, as for Adam's hidden layers in Yang et al., "Tensor Programs V" (2022).
"""

BASE_WIDTH = 768
MOST = 4.0


def peak_rate(asked: float | None, at_base: float, width: int) -> float:
    """`asked`, or what a model `width` wide takes where one BASE_WIDTH wide takes `at_base`."""
    if asked is not None:
        return asked
    ratio = BASE_WIDTH / width
    return at_base * min(MOST, ratio**2 if ratio > 1 else ratio)
