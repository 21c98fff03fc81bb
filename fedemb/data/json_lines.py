"""Named columns of JSON Lines files: an object on each line, its values as the text that a CSV file would hold."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedemb.data.lines import LONGEST_LINE, numbered_lines
from fedemb.errors import DataError

logger = logging.getLogger("fedemb")

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_LINES_FOR_KEYS = 1000

Row = Mapping[str, Any]
Cell = str | list[str] | None


def json_keys(path: Path) -> list[str]:
    """Keys of the objects on the first thousand lines, in the order in which they come; later ones do not count.

    Raises:
        DataError: If the file holds no object, or cannot be read as lines of UTF-8.
    """
    keys: dict[str, None] = {}
    for number, _, line in numbered_lines(path, LONGEST_LINE):
        row = _object(line)
        keys.update(dict.fromkeys(row or {}))
        if number >= _LINES_FOR_KEYS and keys:
            return list(keys)
        if line.startswith("[") and not keys:
            raise DataError(
                f"data file {path} must hold an object on each line, found a list; jq -c '.[]' makes lines of it"
            )
    if not keys:
        raise DataError(f"data file {path} must hold an object on each line, found none")
    return list(keys)


def json_batches(
    path: Path,
    wanted: Mapping[str, str],
    batch_bytes: int,
    counts: MutableMapping[str, int],
    lists: frozenset[str] = frozenset(),
) -> Iterator[pa.RecordBatch]:
    """Batches of strings, named by role; what is absent, null or empty is null.

    A line that holds no object, or a list or an object in a wanted place, is left out and counted as malformed.

    Args:
        path: The file, which may be compressed.
        wanted: Key of each role.
        batch_bytes: Text that is parsed at once, and the longest line that can be read.
        counts: ``rows_read`` and ``rows_malformed`` are added to.
        lists: Roles that may hold a list of plain values; their columns are lists of strings.

    Raises:
        DataError: If the file cannot be read, or has no row.
    """
    rows: list[tuple[Cell, ...]] = []
    num_good, size, malformed, first = 0, 0, 0, 0
    for number, num_bytes, line in numbered_lines(path, batch_bytes):
        row = _object(line)
        cells = None if row is None else _cells(row, wanted, lists)
        if cells is None:
            malformed, first = malformed + 1, first or number
            continue
        rows.append(cells)
        num_good, size = num_good + 1, size + num_bytes
        if size >= batch_bytes:
            yield _batch(rows, wanted, lists)
            rows, size = [], 0
    if rows:
        yield _batch(rows, wanted, lists)
    counts["rows_read"] += num_good + malformed
    counts["rows_malformed"] += malformed
    if not num_good:
        found = f"{malformed} malformed ones only" if malformed else "none"
        raise DataError(f"data file {path} must have rows, found {found}")
    if malformed:
        logger.warning(
            "%s, line %d: expected an object with plain values; %d such rows were left out",
            *(path, first, malformed),
        )


def find_json_line(path: Path, wrong: Callable[[Row], bool]) -> int | None:
    """Number of the first line whose object is so."""
    for number, _, line in numbered_lines(path, LONGEST_LINE):
        row = _object(line)
        if row is not None and wrong(row):
            return number
    return None


def as_cell(value: Any) -> str | None:
    """A value as CSV would hold it; None for null and empty text.

    >>> as_cell(1890), as_cell(True), as_cell(""), as_cell("a")
    ('1890', 'true', None, 'a')
    """
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _object(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _cells(row: Row, wanted: Mapping[str, str], lists: frozenset[str]) -> tuple[Cell, ...] | None:
    cells: list[Cell] = []
    for role, key in wanted.items():
        value = row.get(key)
        several = value if isinstance(value, list) and role in lists else [value]
        if any(isinstance(one, list | dict) for one in several):
            return None
        if role in lists:
            plain = [cell for one in several if (cell := as_cell(one)) is not None]
            cells.append(plain or None)
        else:
            cells.append(as_cell(value))
    return tuple(cells)


def _batch(rows: list[tuple[Cell, ...]], wanted: Mapping[str, str], lists: frozenset[str]) -> pa.RecordBatch:
    columns = zip(wanted, zip(*rows, strict=True), strict=True)
    arrays = [_lists(cells) if role in lists else _strings(cells) for role, cells in columns]
    return pa.record_batch(arrays, names=list(wanted))


def _strings(cells: Sequence[Cell]) -> pa.Array:
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError:  # half a surrogate pair, as an escape in the file
        return pa.array([_whole(cell) if isinstance(cell, str) else None for cell in cells], pa.string())


def _lists(cells: Sequence[Cell]) -> pa.Array:
    try:
        return pa.array(cells, pa.list_(pa.string()))
    except UnicodeEncodeError:
        whole = [None if cell is None else [_whole(one) for one in cell] for cell in cells]
        return pa.array(whole, pa.list_(pa.string()))


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
