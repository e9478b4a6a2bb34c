from __future__ import annotations

import pytest

from chinchilla_lm.data.times import day_first, to_iso
from chinchilla_lm.errors import InputError


def test_the_column_decides_the_order():
    assert day_first(["6/9/2017", "28-01-2016"], "a.csv")
    assert not day_first(["6/9/2017", "1/28/2016"], "a.csv")
    assert day_first(["6/9/2017", "2020-12-31"], "a.csv")
    with pytest.raises(InputError, match="'13/1/2020' is day first, '1/13/2020' month first"):
        day_first(["1/13/2020", "13/1/2020"], "a.csv")


@pytest.mark.parametrize(
    ("value", "iso"),
    [
        ("6/9/2017", "2017-09-06"),
        ("06.09.2017 7:30", "2017-09-06T07:30:00"),
        ("2020-01-01", "2020-01-01"),
        ("2020-01-01 10:00", "2020-01-01T10:00:00"),
        ("2020-01-01T10:00:00+02:00", "2020-01-01T08:00:00"),
        ("2020-01-01T10:00:00Z", "2020-01-01T10:00:00"),
        ("2019-05", "2019-05"),
        ("2019", "2019"),
        ("964982703", "2000-07-30T18:45:03"),  # MovieLens
        ("1577836800000", "2020-01-01T00:00:00"),
        ("0201-04-27", None),
        ("31/2/2020", None),
        ("soon", None),
        ("", None),
    ],
)
def test_to_iso(value, iso):
    assert to_iso(value, days_first=True) == iso


def test_month_first():
    assert to_iso("6/9/2017", days_first=False) == "2017-06-09"
