"""data/cells.py: times and numbers in the forms in which files hold them."""

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedemb.data.cells import NO_TIME, look_like_years, parse_numbers, parse_time, parse_times, show_time
from fedemb.errors import SettingError

DAY = 86_400
MOMENT = int(datetime(2011, 10, 1, 8, 26, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["2011-10-01 08:26:00", "2011-10-01T08:26:00.75"], [MOMENT, MOMENT]),
        (["2011-10-01", None], [MOMENT // DAY * DAY, NO_TIME]),
        (["2011-10-01T10:26:00+02:00", "2011-10-01T08:26:00Z"], [MOMENT, MOMENT]),
        (
            ["2011-10-01 08:26", "2011-10-01T08:26:00Z", "soon", "2011-13-01"],
            [MOMENT, MOMENT] + [NO_TIME] * 2,
        ),
        (["1317457560", "1317457560000", "1317457560.9"], [MOMENT] * 3),
        (["1317457560", "2011-10-01 08:26", ""], [MOMENT, MOMENT, NO_TIME]),
        ([1317457560, None], [MOMENT, NO_TIME]),
        ([1317457560.9, 1317457560999.0, 1317457560999999.0, 1.317457560999999e18], [MOMENT] * 4),
        ([float("nan"), float("inf"), -0.5], [NO_TIME, NO_TIME, -1]),
        ([date(2011, 10, 1)], [MOMENT // DAY * DAY]),
        ([datetime(2011, 10, 1, 8, 26, 0, 999), None], [MOMENT, NO_TIME]),
        ([datetime(2011, 10, 1, 10, 26, tzinfo=timezone(timedelta(hours=2)))], [MOMENT]),
        (["1969-12-31 23:59:59.5"], [-1]),
    ],
)
def test_times(cells: list[object], expected: list[int]) -> None:
    assert parse_times(pa.array(cells)).tolist() == expected


def test_own_format() -> None:
    cells = pa.array(["10/1/2011 8:26", None, "x"])
    assert parse_times(cells, "%m/%d/%Y %H:%M").tolist() == [MOMENT, NO_TIME, NO_TIME]
    assert parse_times(cells).tolist() == [NO_TIME] * 3


@pytest.mark.parametrize(
    "cells",
    [
        ["1890", "2001", None],
        ["1890.0", "2001.0", ""],
        [1890, 2001, None],
        [1890.0, 2001.0, None],
        [1890.0, 2001.0, float("nan")],
    ],
)
def test_years_are_years_with_their_format_and_seconds_without(cells: list[object]) -> None:
    years = [int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (1890, 2001)]
    assert parse_times(pa.array(cells), "%Y").tolist() == [*years, NO_TIME]
    assert parse_times(pa.array(cells)).tolist() == [1890, 2001, NO_TIME]
    assert (
        parse_times(pa.array(["12.0"]), "%H.%M").tolist()
        == parse_times(pa.array(["12:00"]), "%H:%M").tolist()
    )
    assert look_like_years(np.array([1890, 2001]))
    assert not look_like_years(np.array([1890, 3600]))
    assert not look_like_years(np.zeros(0, dtype=np.int64))
    assert parse_times(pa.array([1890.5]), "%Y").tolist() == [NO_TIME]


def test_a_year_in_the_settings_is_a_year() -> None:
    assert parse_time("data.test_from", 1950) == parse_time("data.test_from", "1950-01-01") < 0
    assert parse_time("data.test_from", "19500") == 19500


@given(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), min_size=1))
def test_iso_times_agree_with_the_standard_library(moments: list[datetime]) -> None:
    expected = [int(moment.replace(tzinfo=UTC).timestamp() // 1) for moment in moments]
    assert parse_times(pa.array([moment.isoformat() for moment in moments])).tolist() == expected
    mixed = pa.array([*(moment.isoformat(sep=" ") for moment in moments), "bad"])
    assert parse_times(mixed).tolist() == [*expected, NO_TIME]


def test_numbers() -> None:
    cells = pa.array(["1", "+2", " 3.5 ", "-.5", "1e2", "1e", "0x1", "nan", "inf", "", None, "1,5"])
    np.testing.assert_array_equal(parse_numbers(cells), [1, 2, 3.5, -0.5, 100] + [np.nan] * 7)
    np.testing.assert_array_equal(parse_numbers(pa.array([1, None])), [1, np.nan])
    assert np.isnan(parse_numbers(pa.array([[1]]))).all()


def test_time_in_the_settings() -> None:
    assert parse_time("data.test_from", "2011-10-01T08:26:00") == MOMENT
    assert show_time(MOMENT) == "2011-10-01 08:26:00"
    with pytest.raises(SettingError, match=r"data.test_from must be an ISO 8601 time .* got 'October'"):
        parse_time("data.test_from", "October")
