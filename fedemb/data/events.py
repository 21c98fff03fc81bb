"""Reading: rows of a file become integer-coded lines, and every row that is left out is counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.data.cells import NO_TIME, look_like_years, parse_numbers, parse_time, parse_times
from fedemb.data.columns import column_names
from fedemb.data.partition import Natural, partitioned
from fedemb.data.shards import Shards
from fedemb.data.store import ShardBuilder
from fedemb.data.tabular import locate, read_columns
from fedemb.data.vocabulary import Vocabulary, VocabularyBuilder
from fedemb.errors import DataError, SettingError
from fedemb.types import Int64, Partition

logger = logging.getLogger("fedemb")

Mask = npt.NDArray[np.bool_]
NEVER = np.iinfo(np.int64).max
LABEL = "partition"  # the role of a column that only the partition wants


@dataclass(frozen=True)
class Events:
    """Lines by client, before anything is known about splits.

    Attributes:
        shards: Id columns as codes of ``names`` (int32), ``time`` int64, numbers float32; the lines
            of a client in the order of the file.
        names: Per entity, names in the order of their codes.
        clients: Names of the clients; None where a partition gave them none.
    """

    shards: Shards
    names: Mapping[str, pa.Array]
    clients: pa.Array | None


@dataclass(frozen=True)
class Reading:
    """How to read a file of events.

    Attributes:
        path: The file.
        columns: Column name per role; roles that are absent are not read.
        entity_of: Entity of each role that holds names.
        numbers: Per role that holds numbers, whether zero and more are asked for (else any number).
        drop: Regular expression per column; a row whose cell starts with a match is dropped.
        positive: Columns that must be above zero.
        time_format: Of the times, where they are neither ISO 8601 nor epoch numbers.
        delimiter: Between cells.
        memory_bytes: Budget for lines in memory.
        window: What lies in between is read; see ``window_of``.
    """

    path: str
    columns: Mapping[str, str]
    entity_of: Mapping[str, str]
    numbers: Mapping[str, bool] = field(default_factory=dict)
    drop: Mapping[str, str] = field(default_factory=dict)
    positive: Sequence[str] = ()
    time_format: str | None = None
    delimiter: str | None = None
    memory_bytes: int = 1 << 30
    window: tuple[int, int] | None = None


def window_of(since: str | None, until: str | None) -> tuple[int, int] | None:
    """First epoch second that is read, and the first that is not any more; None: everything is.

    Raises:
        SettingError: If one of them is no time, or nothing can lie between them.
    """
    if since is None and until is None:
        return None
    first = -NEVER if since is None else parse_time("data.since", since)
    end = NEVER if until is None else parse_time("data.until", until)
    if first >= end:
        raise SettingError(f"data.since must be before data.until, got {since} and {until}")
    return first, end


def check_patterns(setting: str, patterns: Mapping[str, str]) -> None:
    """Refuses what is no regular expression.

    Raises:
        SettingError: If there is such a pattern.
    """
    for column, pattern in patterns.items():
        try:
            pc.match_substring_regex(pa.array([""]), str(pattern))
        except pa.ArrowInvalid as error:
            raise SettingError(
                f"{setting}.{column} must be a regular expression, got {pattern!r}: {error}"
            ) from None


# Batches by role, and the file of each, given the column of each role, the roles that a row must have, and counts.
Rows = Callable[
    [Mapping[str, str | None], frozenset[str], MutableMapping[str, int]], Iterator[tuple[str, pa.RecordBatch]]
]
# Further columns of a batch, and which rows have anything in them.
Derive = Callable[[pa.RecordBatch], tuple[Mapping[str, npt.NDArray[Any]], Mask]]


def read_events(
    reading: Reading,
    partition: Partition,
    seed: int,
    counts: MutableMapping[str, int],
    rows: Rows | None = None,
    derive: Derive | None = None,
) -> Events:
    """All usable rows of a file, by client.

    Args:
        reading: What to read.
        partition: Makes clients where there is no client column.
        seed: Of the partition.
        counts: Is added, besides what ``read_columns`` counts: ``rows_cancelled``,
            ``rows_not_positive``, ``rows_bad_<role>``, ``rows_before_since``, ``rows_after_until`` and
            ``rows_used``.
        rows: Reads the rows where they stand in other than one file.
        derive: Makes further columns of the rows that have a good time.

    Raises:
        DataError: If the file cannot be read, or no row is usable.
        SettingError: If the partition does not suit the data.
    """
    present = column_names(reading.path, reading.delimiter) if rows is None else []
    if reading.window is not None and present and "time" not in reading.columns:
        raise DataError(
            "data.columns.time must name a column where data.since or data.until is set, got none"
        )
    label = _label_column(reading, partition, present)
    ids = [*reading.entity_of, *([LABEL] if label else [])]
    rules = _rules(reading, present)
    roles: dict[str, str | None] = {**reading.columns, **{f"rule {column}": column for _, column, _ in rules}}
    required = {*reading.columns} - {"session"}
    if label:
        roles[LABEL] = label
        required.add(LABEL)
    counts.update({key: 0 for key, _, _ in rules})
    coded: dict[str, VocabularyBuilder] = {}
    for role in ids:
        coded.setdefault(reading.entity_of.get(role, role), VocabularyBuilder())
    clients = VocabularyBuilder()
    builder = ShardBuilder(memory_bytes=reading.memory_bytes)
    counts["rows_used"] = 0
    for path, batch in (rows or _rows_of(reading))(roles, frozenset(required), counts):
        batch = _obeying(batch, rules, counts)
        columns, good = _values(batch, replace(reading, path=path), counts)
        if reading.window is not None:
            good &= _within(columns["time"], good, reading.window, counts)
        batch = batch.filter(pa.array(good))
        columns = {role: column[good] for role, column in columns.items()}
        if derive is not None:
            more, good = derive(batch)
            batch = batch.filter(pa.array(good))
            columns = {role: column[good] for role, column in {**columns, **more}.items()}
        for role in ids:
            codes = _encode(coded[reading.entity_of.get(role, role)], batch, role, roles, path)
            columns[role] = codes.astype(np.int32)
        owners = np.zeros(batch.num_rows, dtype=np.int64)
        if "client" in reading.columns:
            owners = _encode(clients, batch, "client", roles, path)
        builder.append(columns, owners)
        counts["rows_used"] += batch.num_rows
    if not builder.num_examples:
        hint = "; set data.time_format" if counts.get("rows_bad_time") else ""
        raise DataError(
            f"data file {reading.path} must have usable rows, found none: {show_counts(counts)}{hint}"
        )
    names = {entity: known.names() for entity, known in coded.items() if entity != LABEL}
    if "client" in reading.columns:
        if not isinstance(partition, Natural):
            logger.warning("data.columns.client decides the clients; the partition is not used")
        return Events(builder.finish(len(clients)), names, clients.names())
    lines = dict(builder.finish(1).columns)
    known_names = {role: Vocabulary(names[entity]) for role, entity in reading.entity_of.items()}
    labels = {}
    if label:
        labels[label] = lines.pop(LABEL)
        known_names[label] = Vocabulary(coded[LABEL].names())
    shards, owners_names = partitioned(partition, lines, seed, labels=labels, vocabularies=known_names)
    return Events(shards, names, None if owners_names is None else owners_names.names)


def _rows_of(reading: Reading) -> Rows:
    """The rows of the one file."""

    def rows(
        roles: Mapping[str, str | None], required: frozenset[str], counts: MutableMapping[str, int]
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        for batch in read_columns(
            reading.path, roles, delimiter=reading.delimiter, counts=counts, required=required
        ):
            yield reading.path, batch

    return rows


def _label_column(reading: Reading, partition: Partition, present: Sequence[str]) -> str | None:
    """The file's column that a partition goes by, unless it goes by a role."""
    column = getattr(partition, "column", None)
    if column is None or "client" in reading.columns or column in reading.columns:
        return None
    _check_present("partition.column", column, reading.path, present)
    return str(column)


def _check_present(setting: str, column: str, path: str, present: Sequence[str]) -> None:
    if present and column not in present:
        there = ", ".join(repr(name) for name in present)
        raise DataError(f"{setting} must name a column of {path}, got {column!r}; there are {there}")


Rule = tuple[str, str, Callable[[pa.Array], Mask]]


def _rules(reading: Reading, present: Sequence[str]) -> list[Rule]:
    """What a row must obey: the count of those that do not, the column, and the test."""

    def free_of(pattern: str) -> Callable[[pa.Array], Mask]:
        def test(cells: pa.Array) -> Mask:
            found = pc.match_substring_regex(cells.cast(pa.string()), f"^(?:{pattern})")
            return ~np.asarray(pc.fill_null(found, False))

        return test

    def above_zero(cells: pa.Array) -> Mask:
        return np.asarray(parse_numbers(cells) > 0)

    for setting, columns in (("data.drop", reading.drop), ("data.positive", reading.positive)):
        for column in columns:
            _check_present(setting, column, reading.path, present)
    rules: list[Rule] = [("rows_cancelled", c, free_of(pattern)) for c, pattern in reading.drop.items()]
    return rules + [("rows_not_positive", column, above_zero) for column in reading.positive]


def _obeying(batch: pa.RecordBatch, rules: Sequence[Rule], counts: MutableMapping[str, int]) -> Any:
    for key, column, test in rules:
        good = test(batch.column(f"rule {column}"))
        counts[key] += int(len(good) - good.sum())
        batch = batch.filter(pa.array(good))
    return batch


def _values(
    batch: pa.RecordBatch, reading: Reading, counts: MutableMapping[str, int]
) -> tuple[dict[str, npt.NDArray[Any]], Mask]:
    """Times and numbers of all rows, and which rows have them all."""
    columns: dict[str, npt.NDArray[Any]] = {}
    good = np.ones(batch.num_rows, dtype=np.bool_)
    for role in ("time", *reading.numbers):
        if role not in reading.columns:
            continue
        cells = batch.column(role)
        if role == "time":
            columns[role] = parse_times(cells, reading.time_format)
            fine = columns[role] != NO_TIME
            if f"rows_bad_{role}" not in counts:
                warn_of_years(reading.path, cells, columns[role])
        else:
            columns[role] = parse_numbers(cells).astype(np.float32)
            fine = np.isfinite(columns[role]) & ((columns[role] >= 0) | (not reading.numbers[role]))
        bad = good & ~fine
        known = counts.setdefault(f"rows_bad_{role}", 0)
        counts[f"rows_bad_{role}"] += int(bad.sum())
        if bad.any() and not known:
            cell = str(cells[int(bad.argmax())].as_py())
            where = locate(reading.path, reading.columns[role], cell, reading.delimiter)
            logger.warning("%s: %r is no %s; such rows are left out and counted", where, cell, role)
        good &= fine
    return columns, good


def warn_of_years(path: str, cells: pa.Array, seconds: Int64) -> None:
    """Logs that times seem to be years, which were read as seconds."""
    fine = seconds != NO_TIME
    if look_like_years(seconds[fine]):
        logger.warning(
            "%s: times such as %r are read as seconds since 1970; if they are years, set data.time_format=%%Y",
            *(path, cells[int(fine.argmax())].as_py()),
        )


def _within(time: Int64, good: Mask, window: tuple[int, int], counts: MutableMapping[str, int]) -> Mask:
    """Which rows lie in a window of time; those that are good and do not are counted."""
    early, late = time < window[0], time >= window[1]
    for name, out in (("rows_before_since", early), ("rows_after_until", late)):
        counts[name] = counts.get(name, 0) + int((good & out).sum())
    return ~(early | late)


def _encode(
    known: VocabularyBuilder, batch: pa.RecordBatch, role: str, roles: Mapping[str, str | None], path: str
) -> npt.NDArray[np.int64]:
    try:
        return known.encode(batch.column(role))
    except pa.ArrowException:
        raise DataError(
            f"column {roles[role]!r} of {path} must hold names, got values of type {batch.column(role).type}"
        ) from None


def show_counts(counts: Mapping[str, int]) -> str:
    """Counts that are not 0, for a message."""
    return ", ".join(f"{key} {value:,}" for key, value in counts.items() if value)
