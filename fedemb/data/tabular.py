"""Named columns of CSV, TSV, Parquet and JSON Lines files, batch by batch, with bad rows counted and located."""

from __future__ import annotations

import csv
import difflib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from fedemb.data.json_lines import JSON_SUFFIXES, as_cell, find_json_line, json_batches, json_keys
from fedemb.errors import DataError, SettingError

logger = logging.getLogger("fedemb")

PARQUET_SUFFIXES = (".parquet", ".pq")
TAB_SUFFIXES = (".tsv", ".tab")
COMPRESSIONS = (".gz", ".bz2", ".zst")


def read_columns(
    path: str | Path,
    columns: Mapping[str, str | None],
    optional: frozenset[str] = frozenset(),
    delimiter: str | None = None,
    batch_bytes: int = 1 << 24,
    counts: MutableMapping[str, int] | None = None,
    required: frozenset[str] = frozenset(),
    names: Sequence[str] | None = None,
    quoted: bool = True,
    lists: frozenset[str] = frozenset(),
) -> Iterator[pa.RecordBatch]:
    """Batches whose columns are named by role; strings from text, native types from Parquet.

    An empty cell is null. JSON Lines (``.jsonl``, ``.ndjson``, ``.json``) are read as ``json_batches`` says. Other
    text is UTF-8 with a header line, quoted as RFC 4180 has it, and may be
    compressed (``.gz``, ``.bz2``, ``.zst``). Blank lines do not count as rows. File, header and
    columns are checked at the call, rows while they are read.

    Args:
        path: A text file, JSON Lines, or Parquet (``.parquet``, ``.pq``).
        columns: Column name of each role; a role without a name is left out.
        optional: Roles that are left out as well where the file has no such column.
        delimiter: Between cells; None: a tab in ``.tsv`` and ``.tab``, else a comma.
        batch_bytes: Text that is parsed at once, and so the longest row that can be read.
        counts: Is added ``rows_read`` (all data rows), ``rows_malformed`` (wrong number of cells)
            and ``rows_missing_<role>`` for each required role.
        required: Roles without which a row is dropped; the first one is logged with its line.
        names: Column names of a text file that has no header line.
        quoted: Whether quotes in a text file enclose a cell; else they are characters like others.
        lists: Roles whose cells may be lists of plain values: columns of lists from JSON Lines.

    Raises:
        DataError: If the file is missing, empty, without rows, not readable, or lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else f"nothing there (working folder: {Path.cwd()})"
        raise DataError(f"data file {path} must be an existing file, found {found}")
    counts = {} if counts is None else counts
    for key in ["rows_read", "rows_malformed", *(f"rows_missing_{role}" for role in sorted(required))]:
        counts.setdefault(key, 0)
    parquet = path.suffix.lower() in PARQUET_SUFFIXES
    json = is_json(path)
    delimiter = None if parquet or json else delimiter or _usual_delimiter(path)
    present = list(names or names_in(path, delimiter, quoted))
    wanted = _wanted(path, columns, optional, required, present, delimiter)
    if parquet:
        batches = _parquet_batches(path, wanted, batch_bytes, counts)
    elif json:
        batches = guarded(path, json_batches(path, wanted, batch_bytes, counts, lists))
    else:
        batches = _text_batches(
            path, wanted, present, names is None, str(delimiter), batch_bytes, counts, quoted
        )
    return _complete(path, batches, required, counts, wanted, delimiter, names, quoted)


def locate(
    path: str | Path,
    name: str,
    value: str,
    delimiter: str | None = None,
    names: Sequence[str] | None = None,
    quoted: bool = True,
) -> str:
    """``file, line 7``: where a text file or JSON Lines first have this value in the column ``name``.

    For messages about a bad cell; reads the file anew. Only the file where that finds nothing.
    """
    path = Path(path)
    if path.suffix.lower() in PARQUET_SUFFIXES:
        return str(path)
    if is_json(path):
        line = find_json_line(path, lambda row: (as_cell(row.get(name)) or "") == value)
        return f"{path}, line {line}" if line else str(path)
    delimiter = delimiter or _usual_delimiter(path)
    header = list(names or _header(path, delimiter, quoted))
    at = header.index(name)
    line = _find_line(path, delimiter, lambda row: len(row) == len(header) and row[at] == value, quoted)
    return f"{path}, line {line}" if line else str(path)


def kind_of(path: Path) -> str:
    """The suffix that says what is in a file, in lower case and without that of its compression.

    >>> kind_of(Path("log.JSONL.gz")), kind_of(Path("ann"))
    ('.jsonl', '')
    """
    stem = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return stem.suffix.lower()


def is_json(path: Path) -> bool:
    """Whether a file holds JSON Lines, by its name."""
    return kind_of(path) in JSON_SUFFIXES


def names_in(path: Path, delimiter: str | None = None, quoted: bool = True) -> list[str]:
    """Names of a file's columns: of Parquet, the keys of JSON Lines, or the cells of a text's first line.

    Raises:
        DataError: If the file cannot be read, or is empty.
    """
    if path.suffix.lower() in PARQUET_SUFFIXES:
        return _parquet_names(path)
    if is_json(path):
        with _as_data_error(path):
            return json_keys(path)
    return _header(path, delimiter or _usual_delimiter(path), quoted)


def _usual_delimiter(path: Path) -> str:
    return "\t" if kind_of(path) in TAB_SUFFIXES else ","


def _text(path: Path) -> IO[str]:
    stream = pa.input_stream(str(path), compression="detect")
    return io.TextIOWrapper(cast(IO[bytes], stream), encoding="utf-8-sig", errors="replace", newline="")


def _rows(file: IO[str], delimiter: str, quoted: bool) -> Any:
    if len(delimiter) != 1:
        raise SettingError(f"data.delimiter must be one character, got {delimiter!r}")
    return csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def _header(path: Path, delimiter: str, quoted: bool = True) -> list[str]:
    with _as_data_error(path), _text(path) as file:
        header: list[str] | None = next((row for row in _rows(file, delimiter, quoted) if row), None)
    if header is None:
        raise DataError(f"data file {path} must have a header line and rows, found an empty file")
    return header


def _parquet_names(path: Path) -> list[str]:
    with _as_data_error(path):
        return [str(name) for name in pq.read_schema(path).names]


def _wanted(
    path: Path,
    columns: Mapping[str, str | None],
    optional: frozenset[str],
    required: frozenset[str],
    present: Sequence[str],
    delimiter: str | None,
) -> dict[str, str]:
    """The column of each role that is to be read."""
    there = ", ".join(repr(name) for name in present)
    wanted = {}
    for role, name in columns.items():
        if name is None and role in required:
            raise DataError(f"data.columns.{role} must name a column of {path}, got null; there are {there}")
        if name is None or (name not in present and role in optional):
            continue
        if present.count(name) > 1:
            raise DataError(
                f"data.columns.{role} must name one column of {path}, but {name!r} stands there twice"
            )
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            other = next((mark for mark in ";\t|" if len(present) == 1 and mark in present[0]), None)
            hint = f"; the cells seem to be separated by {other!r}, not {delimiter!r}" if other else hint
            raise DataError(
                f"data.columns.{role} must name a column of {path}, got {name!r}; there are {there}{hint}"
            )
        wanted[role] = name
    return wanted


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    """Turns what Arrow says about a broken file into one line that names the file."""
    try:
        yield
    except (csv.Error, pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        if "UTF8" in reason:
            reason = f"it must be UTF-8, and {_first_bad_bytes(path)} is not; convert it with iconv -t utf-8"
        elif "straddling" in reason or "unexpected end of data" in reason:
            reason = "a quote is left open, or a row is longer than a batch"
        raise DataError(f"data file {path} cannot be read: {reason}") from None


def guarded(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """These batches; what Arrow says about a broken file becomes one line that names it."""
    while True:
        with _as_data_error(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _first_bad_bytes(path: Path) -> str:
    with pa.input_stream(str(path), compression="detect") as stream:
        for number, line in enumerate(io.BufferedReader(cast(Any, stream)), start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number}"
    return "a line"


def _find_line(
    path: Path, delimiter: str, wrong: Callable[[list[str]], bool], quoted: bool = True
) -> int | None:
    """Number of the line on which the first such row ends; Arrow counts rows, editors count lines."""
    with _text(path) as file:
        reader = _rows(file, delimiter, quoted)
        try:
            return next((reader.line_num for row in reader if row and wrong(row)), None)
        except csv.Error:
            return None


def _text_batches(
    path: Path,
    wanted: Mapping[str, str],
    present: Sequence[str],
    has_header: bool,
    delimiter: str,
    batch_bytes: int,
    counts: MutableMapping[str, int],
    quoted: bool,
) -> Iterator[pa.RecordBatch]:
    malformed: list[int] = []

    def skip(row: Any) -> str:
        malformed.append(row.actual_columns)
        return "skip"

    chosen = list(dict.fromkeys(wanted.values()))
    num_rows, last = 0, None
    with _as_data_error(path):
        reader = pacsv.open_csv(
            pa.input_stream(str(path), compression="detect"),
            read_options=pacsv.ReadOptions(
                use_threads=False, block_size=batch_bytes, column_names=None if has_header else list(present)
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=skip,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in chosen},
                include_columns=chosen,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    while True:
        with _as_data_error(path):
            batch = next(iter(reader), None)
        if batch is None:
            break
        if batch.num_rows:
            num_rows, last = num_rows + batch.num_rows, batch
            yield pa.record_batch([batch.column(name) for name in wanted.values()], names=list(wanted))
    counts["rows_read"] += num_rows + len(malformed)
    counts["rows_malformed"] += len(malformed)
    if not num_rows:
        found = f"{len(malformed)} malformed ones only" if malformed else "none"
        raise DataError(f"data file {path} must have rows, found {found}")
    if quoted:
        _refuse_open_quote(path, last, delimiter)
    if malformed:
        line = _find_line(path, delimiter, lambda row: len(row) != len(present), quoted)
        logger.warning(
            "%s, line %s: expected %d cells, got %d; %d such rows were left out",
            *(path, line or "unknown", len(present), malformed[0], len(malformed)),
        )


def _refuse_open_quote(path: Path, last: Any, delimiter: str) -> None:
    """A quote that nobody closes swallows the rest of the file into one cell of the last row."""
    cells = [str(column[-1].as_py()) for column in last.columns]
    if not any("\n" in cell for cell in cells):
        return
    with _as_data_error(path), _text(path) as file:
        for _ in csv.reader(file, delimiter=delimiter, strict=True):
            pass


def _parquet_batches(
    path: Path, wanted: Mapping[str, str], batch_bytes: int, counts: MutableMapping[str, int]
) -> Iterator[pa.RecordBatch]:
    with _as_data_error(path), pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        batch_size = max(1, min(1 << 20, batch_bytes * file.metadata.num_rows // max(1, size)))
        if not file.metadata.num_rows:
            raise DataError(f"data file {path} must have rows, found none")
        for batch in file.iter_batches(batch_size, columns=list(dict.fromkeys(wanted.values()))):
            counts["rows_read"] += batch.num_rows
            cells = [_plain(batch.column(name)) for name in wanted.values()]
            yield pa.record_batch(cells, names=list(wanted))


def _plain(column: pa.Array) -> pa.Array:
    """Categories as their values, and an empty string as null, as in text files."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    return column


def _complete(
    path: Path,
    batches: Iterator[pa.RecordBatch],
    required: frozenset[str],
    counts: MutableMapping[str, int],
    wanted: Mapping[str, str],
    delimiter: str | None,
    names: Sequence[str] | None,
    quoted: bool,
) -> Iterator[pa.RecordBatch]:
    """Only rows that have a value in every required role."""
    dropped = dict.fromkeys(sorted(required), 0)
    num_kept = 0
    for batch in batches:
        keep = np.ones(batch.num_rows, dtype=bool)
        for role in dropped:
            missing = keep & np.asarray(pc.is_null(batch.column(role)))
            dropped[role] += int(missing.sum())
            keep &= ~missing
        num_kept += int(keep.sum())
        if keep.any():
            yield batch if keep.all() else batch.filter(pa.array(keep))
    for role, number in dropped.items():
        counts[f"rows_missing_{role}"] += number
        if number:
            where = locate(path, wanted[role], "", delimiter, names, quoted)
            logger.warning(
                "%s: no %s in column %r; %d such rows were left out", where, role, wanted[role], number
            )
    if not num_kept:
        raise DataError(f"data file {path} must have rows with {', '.join(dropped)}, found none")
