"""Times and numbers from cells, whatever they are written in."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.errors import SettingError
from fedemb.types import Int64

NO_TIME = np.iinfo(np.int64).min

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?\s*$"


def parse_numbers(cells: pa.Array) -> npt.NDArray[np.float64]:
    """Numbers ``(cells,)``; NaN where a cell is empty or holds none.

    >>> parse_numbers(pa.array(["1", " -2.5e1 ", "three", None])).tolist()
    [1.0, -25.0, nan, nan]
    """
    if pa.types.is_string(cells.type):
        numeric = pc.match_substring_regex(cells, _NUMBER)
        cells = pc.utf8_trim_whitespace(pc.if_else(numeric, cells, pa.scalar(None, pa.string())))
        cells = pc.replace_substring_regex(cells, r"^\+", "")
    try:
        cells = cells.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.full(len(cells), np.nan)
    return np.asarray(pc.fill_null(cells, float("nan")), dtype=np.float64)


def parse_times(cells: pa.Array, time_format: str | None = None) -> Int64:
    """Seconds since 1970 ``(cells,)``, rounded down; ``NO_TIME`` where a cell holds no time.

    A cell is ISO 8601 (without a zone: UTC) or a number: seconds, or milliseconds from 1e11 on, or
    microseconds from 1e14 on, or nanoseconds from 1e17 on (seconds would lie after the year 5000).

    Args:
        cells: Strings, numbers, dates or timestamps.
        time_format: As for ``strptime``, for other strings, and for whole numbers: with ``%Y`` 1890 is a year.

    >>> parse_times(pa.array(["1970-01-01 00:01:00", "1970-01-02", "1e3", "noon"])).tolist()[:3]
    [60, 86400, 1000]
    >>> parse_times(pa.array([1890, 1970]), "%Y").tolist()
    [-2524521600, 0]
    """
    if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
        return _seconds(cells)
    if time_format is not None and (pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type)):
        numbers = parse_numbers(cells)
        whole = pa.array(numbers, mask=~np.isfinite(numbers) | (numbers != np.floor(numbers)))
        cells = whole.cast(pa.int64(), safe=False).cast(pa.string())
    if not pa.types.is_string(cells.type):
        return _from_numbers(parse_numbers(cells))
    if time_format is not None:
        if "." not in time_format:  # pandas writes a column of years with gaps as 1890.0
            cells = pc.replace_substring_regex(cells, r"^(\d+)\.0$", r"\1")
        return _each(cells, lambda cell: datetime.strptime(cell, time_format))
    for zone in (None, "UTC"):
        try:
            return _seconds(cells.cast(pa.timestamp("us", tz=zone)))
        except pa.ArrowInvalid:
            continue
    numbers = parse_numbers(cells)
    if np.isfinite(numbers).all():
        return _from_numbers(numbers)
    return np.where(np.isfinite(numbers), _from_numbers(numbers), _each(cells, datetime.fromisoformat))


def parse_time(setting: str, value: str | int | float) -> int:
    """Seconds since 1970 of one time in the settings; four digits are a year, as ISO 8601 has it.

    Raises:
        SettingError: If it is none.
    """
    year = re.fullmatch(r"\s*\d{4}\s*", str(value))
    seconds = int(parse_times(pa.array([str(value)]), "%Y" if year else None)[0])
    if seconds == NO_TIME:
        raise SettingError(f"{setting} must be an ISO 8601 time such as 2011-10-01, got {value!r}")
    return seconds


def look_like_years(seconds: Int64) -> bool:
    """Whether all these numbers, read as seconds, are years rather: 1000 to 2999, all on 1970-01-01."""
    return bool(len(seconds) and (seconds >= 1000).all() and (seconds < 3000).all())


def show_time(seconds: int) -> str:
    """The time as people write it, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _seconds(cells: pa.Array) -> Int64:
    micros = np.asarray(pc.fill_null(cells.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), NO_TIME))
    return np.where(micros == NO_TIME, NO_TIME, micros // 1_000_000).astype(np.int64)


def _from_numbers(numbers: npt.NDArray[np.float64]) -> Int64:
    size = np.abs(numbers)
    scale = np.select([size >= 1e17, size >= 1e14, size >= 1e11], [1e9, 1e6, 1e3], 1.0)
    good = size < 1e20
    return np.where(good, np.floor(np.where(good, numbers, 0) / scale), NO_TIME).astype(np.int64)


def _each(cells: pa.Array, read: Any) -> Int64:
    """One by one, each different cell once: the slow way for what Arrow does not read."""
    encoded = pc.dictionary_encode(cells)
    known = np.full(len(encoded.dictionary) + 1, NO_TIME, dtype=np.int64)
    for position, cell in enumerate(encoded.dictionary.to_pylist()):
        try:
            moment = read(cell.strip())
        except (ValueError, OverflowError):
            continue
        known[position] = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)
    return known[np.asarray(pc.fill_null(encoded.indices, -1), dtype=np.int64)]
