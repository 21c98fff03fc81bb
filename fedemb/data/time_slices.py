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
    found = re.fullmatch(r"\s*(\d{0,6})\s*([a-z]+?)s?\s*", str(length).lower())
    unit = found[2] if found else ""
    count = int(found[1] or 1) if found else 0
    if unit not in {**_MONTHS, **_DAYS} or not 1 <= count <= _MOST:
        raise SettingError(
            f"task.slice must be {', '.join([*_DAYS, *_MONTHS])}, or up to {_MOST:,} of them (10 days), got {length!r}"
        )
    first, last = span
    if unit in _DAYS:
        step = count * _DAYS[unit] * DAY
        end = (last // DAY + 1) * DAY
        bounds = end - step * np.arange((end - first + step - 1) // step, -1, -1, dtype=np.int64)
    else:
        months = count * _MONTHS[unit]
        begin, end = (np.datetime64(t, "s").astype("datetime64[M]").astype(np.int64) for t in (first, last))
        starts = np.arange(begin // months, end // months + 2) * months
        bounds = starts.astype("datetime64[M]").astype("datetime64[s]").astype(np.int64)
    if len(bounds) > _MOST_SLICES:
        raise SettingError(
            f"task.slice must make at most {_MOST_SLICES:,} slices of {show_time(first)} to {show_time(last)}, "
            f"got {len(bounds) - 1:,}; take longer ones than {length!r}"
        )
    return bounds


def slice_of(times: Int64, bounds: Int64) -> Int64:
    """The slice that each time lies in; the first or the last for what lies outside.

    >>> slice_of(np.array([-5, 0, 9, 10, 99]), np.array([0, 10, 20])).tolist()
    [0, 0, 0, 1, 1]
    """
    return np.clip(np.searchsorted(bounds, times, side="right") - 1, 0, len(bounds) - 2)
