"""data/time_slices.py: calendars, slices counted back from the end, and what is refused."""

import numpy as np
import pytest

from fedemb.data.cells import parse_time
from fedemb.data.time_slices import DAY, prolonged, slice_of, time_slices
from fedemb.errors import SettingError


def at(text: str) -> int:
    return parse_time("time", text)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ("month", ["1969-11-01", "1969-12-01", "1970-01-01", "1970-02-01", "1970-03-01"]),
        ("2 months", ["1969-11-01", "1970-01-01", "1970-03-01"]),
        ("quarter", ["1969-10-01", "1970-01-01", "1970-04-01"]),
        ("year", ["1969-01-01", "1970-01-01", "1971-01-01"]),
        ("decade", ["1960-01-01", "1970-01-01", "1980-01-01"]),
        ("50 days", ["1969-11-07", "1969-12-27", "1970-02-15"]),
        ("week", None),
        ("Week", None),
    ],
)
def test_slices_cover_the_span_and_the_last_is_whole(length: str, expected: list[str] | None) -> None:
    first, last = at("1969-11-20 12:00:00"), at("1970-02-14 08:00:00")
    bounds = time_slices((first, last), length)
    assert bounds[0] <= first < bounds[1]
    assert bounds[-2] <= last < bounds[-1]
    if expected is None:
        assert set(np.diff(bounds)) == {7 * DAY}
        assert bounds[-1] == at("1970-02-15")
    else:
        assert bounds.tolist() == [at(text) for text in expected]


@pytest.mark.parametrize(
    "length", ["fortnight", "0 days", "-1 day", "", "3", "99999999999999999999 years", "1001 days"]
)
def test_no_such_length(length: str) -> None:
    with pytest.raises(SettingError, match=r"task\.slice must be day, week"):
        time_slices((0, DAY), length)


def test_too_many_slices() -> None:
    with pytest.raises(SettingError, match="at most 10,000 slices"):
        time_slices((0, 20_000 * DAY), "day")


def test_one_moment_is_one_slice() -> None:
    assert len(time_slices((5, 5), "day")) == 2
    assert slice_of(np.array([5]), time_slices((5, 5), "year")).tolist() == [0]


@pytest.mark.parametrize(
    "length", ["day", "3 days", "week", "month", "2 months", "quarter", "year", "decade"]
)
@pytest.mark.parametrize("later", [0, 1, 13, 400])
def test_slices_of_a_run_that_goes_on_stay_and_follow_each_other(length: str, later: int) -> None:
    first, last = at("1969-11-20 12:00:00"), at("1970-02-14 08:00:00")
    bounds, newest = time_slices((first, last), length), last + later * DAY
    longer = prolonged(bounds, newest, length)
    assert longer[: len(bounds)].tolist() == bounds.tolist()
    assert longer[-2] <= newest < longer[-1] or len(longer) == len(bounds)
    if length in ("month", "2 months", "quarter", "year", "decade"):
        assert longer.tolist() == time_slices((first, newest), length).tolist()
    else:
        assert len(set(np.diff(longer))) == 1


def test_slices_that_end_at_an_event_go_on_with_it() -> None:
    """The end of the last slice is the beginning of the next."""
    bounds = time_slices((0, 3 * DAY - 1), "day")
    assert prolonged(bounds, 3 * DAY - 1, "day").tolist() == bounds.tolist()
    assert prolonged(bounds, 3 * DAY, "day").tolist() == [*bounds, 4 * DAY]
    with pytest.raises(SettingError, match="at most 10,000 slices"):
        prolonged(bounds, 20_000 * DAY, "day")
