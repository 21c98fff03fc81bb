"""Slices of time: where each begins, and which one a point in time lies in."""

from __future__ import annotations

import re

import numpy as np

from fedemb.data.cells import show_time
from fedemb.errors import SettingError
from fedemb.types import Int64

DAY = 86_400
_MONTHS = {"month": 1, "quarter": 3, "year": 12, "decade": 120}
_DAYS = {"day": 1, "week": 7}
_MOST_SLICES = 10_000
_MOST = 1_000  # units in a slice: a thousand decades are more than dates hold


def time_slices(span: tuple[int, int], length: str) -> Int64:
    """Ascending epoch seconds ``(slices + 1,)``: where each slice begins, and the end of the last.

    Months, quarters, years and decades are those of the calendar (UTC). Days and weeks are counted back from the
    midnight after the last event, so that the last slice is whole: it is what the future is judged by.

    Args:
        span: First and last time of all events, in epoch seconds.
        length: ``day``, ``week``, ``month``, ``quarter``, ``year`` or ``decade``, or so many of them: ``10 days``.

    Raises:
        SettingError: If there is no such length, or it makes too many slices.

    >>> [show_time(int(t))[:10] for t in time_slices((0, 40 * DAY), "month")]
    ['1970-01-01', '1970-02-01', '1970-03-01']
    """
    first, last = span
    days, months = _days_and_months(length)
    if days:
        step, end = days * DAY, (last // DAY + 1) * DAY
        bounds = end - step * np.arange((end - first + step - 1) // step, -1, -1, dtype=np.int64)
    else:
        begin, end = (np.datetime64(t, "s").astype("datetime64[M]").astype(np.int64) for t in (first, last))
        bounds = _seconds(np.arange(begin // months, end // months + 2) * months)
    return _not_too_many(bounds, length)


def prolonged(bounds: Int64, last: int, length: str) -> Int64:
    """The slices of a run that goes on: those that it has, and as many more as it takes to reach ``last``.

    Args:
        bounds: What ``time_slices`` made of the run's first data with the same ``length``.
        last: Time of the newest event, in epoch seconds.
        length: As of ``time_slices``.

    Raises:
        SettingError: If there is no such length, or it makes too many slices.

    >>> prolonged(np.array([0, DAY]), 2 * DAY, "day").tolist() == [0, DAY, 2 * DAY, 3 * DAY]
    True
    """
    days, months = _days_and_months(length)
    end = int(bounds[-1])
    if last < end:
        return bounds
    if days:
        more = end + days * DAY * np.arange(1, (last - end) // (days * DAY) + 2, dtype=np.int64)
    else:
        begin, newest = (np.datetime64(t, "s").astype("datetime64[M]").astype(np.int64) for t in (end, last))
        more = _seconds(begin + months * np.arange(1, (newest - begin) // months + 2))
    return _not_too_many(np.concatenate((bounds, more)), length)


def _days_and_months(length: str) -> tuple[int, int]:
    """Of a slice; one of the two is 0."""
    found = re.fullmatch(r"\s*(\d{0,6})\s*([a-z]+?)s?\s*", str(length).lower())
    unit = found[2] if found else ""
    count = int(found[1] or 1) if found else 0
    if unit not in {**_MONTHS, **_DAYS} or not 1 <= count <= _MOST:
        raise SettingError(
            f"task.slice must be {', '.join([*_DAYS, *_MONTHS])}, or up to {_MOST:,} of them (10 days), got {length!r}"
        )
    return count * _DAYS.get(unit, 0), count * _MONTHS.get(unit, 0)


def _seconds(months: Int64) -> Int64:
    return months.astype("datetime64[M]").astype("datetime64[s]").astype(np.int64)


def _not_too_many(bounds: Int64, length: str) -> Int64:
    if len(bounds) > _MOST_SLICES:
        raise SettingError(
            f"task.slice must make at most {_MOST_SLICES:,} slices of {show_time(int(bounds[0]))} to "
            f"{show_time(int(bounds[-1]))}, got {len(bounds) - 1:,}; take longer ones than {length!r}"
        )
    return bounds


def slice_of(times: Int64, bounds: Int64) -> Int64:
    """The slice that each time lies in; the first or the last for what lies outside.

    >>> slice_of(np.array([-5, 0, 9, 10, 99]), np.array([0, 10, 20])).tolist()
    [0, 0, 0, 1, 1]
    """
    return np.clip(np.searchsorted(bounds, times, side="right") - 1, 0, len(bounds) - 2)
