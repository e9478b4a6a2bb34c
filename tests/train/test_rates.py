import pytest

from chinchilla_lm.train.rates import peak_rate


@pytest.mark.parametrize(
    ("width", "rate"), [(768, 1e-4), (576, 1e-4 * 16 / 9), (384, 4e-4), (64, 4e-4), (1024, 7.5e-5), (3072, 2.5e-5)]
)
def test_the_rate_goes_by_the_width(width: int, rate: float):
    assert peak_rate(None, 1e-4, width) == pytest.approx(rate)


def test_a_rate_that_is_asked_for_is_taken():
    assert peak_rate(3e-3, 1e-4, 384) == 3e-3
