"""Documents from a table, a text or a folder with a file for each client."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from fedemb.data.columns import resolve_columns
from fedemb.data.events import Rows
from fedemb.data.json_lines import JSON_SUFFIXES
from fedemb.data.lines import numbered_lines
from fedemb.data.tabular import COMPRESSIONS, PARQUET_SUFFIXES, TAB_SUFFIXES, guarded, kind_of, read_columns
from fedemb.errors import DataError

logger = logging.getLogger("fedemb")

TEXT_SUFFIXES = (".txt", ".text")
FORMATS = (*TEXT_SUFFIXES, ".csv", *TAB_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES)
FILE_NAME = "the name of its file"  # stands for the column of clients

_DOCUMENTS_PER_BATCH = 4096
_BATCH_BYTES = 1 << 22


@dataclass(frozen=True)
class Documents:
    """Where documents stand.

    Attributes:
        path: The file or folder.
        files: The files, by name; a file named ``ann.csv.gz`` is client ``ann``'s.
        columns: Column of each role; ``FILE_NAME`` for clients who have a file each.
        whole_files: Whether a ``.txt`` file is a document; else each of its lines is one.
        delimiter: Between cells.
    """

    path: str
    files: tuple[Path, ...]
    columns: Mapping[str, str]
    whole_files: bool
    delimiter: str | None

    @property
    def is_table(self) -> bool:
        """Whether all is in one table, which needs nothing of what stands here."""
        return (
            len(self.files) == 1
            and str(self.files[0]) == str(Path(self.path))
            and not _is_text(self.files[0])
        )

    def rows(self) -> Rows:
        """The rows of all files, one file after another."""

        def read(
            roles: Mapping[str, str | None], required: frozenset[str], counts: MutableMapping[str, int]
        ) -> Iterator[tuple[str, pa.RecordBatch]]:
            named = roles.get("client") == FILE_NAME
            inside = {role: name for role, name in roles.items() if not (named and role == "client")}
            counts.update({key: counts.get(key, 0) for key in ("rows_read", "rows_malformed")})
            for file in self.files:
                if _is_text(file):
                    batches = guarded(file, _texts(file, self.whole_files, counts))
                else:
                    batches = read_columns(
                        file,
                        inside,
                        delimiter=self.delimiter,
                        counts=counts,
                        required=required & inside.keys(),
                    )
                for batch in batches:
                    if named:
                        client = pa.array([client_of(file)] * batch.num_rows, pa.string())
                        batch = pa.record_batch(
                            [*batch.columns, client], names=[*batch.schema.names, "client"]
                        )
                    yield str(file), batch

        return read


def find_documents(
    path: str,
    columns: Mapping[str, str | None],
    roles: tuple[str, ...],
    whole_files: bool,
    delimiter: str | None,
    counts: MutableMapping[str, int],
) -> Documents:
    """The files with documents and the columns of those that are tables.

    Args:
        path: A file; or a folder, of whose files those of a known kind are read, and none of its folders.
        columns: As for ``resolve_columns``. In a folder the files are the clients unless ``client`` names a column.
        roles: As for ``resolve_columns``.
        whole_files: Whether a ``.txt`` file is a document.
        delimiter: Between cells.
        counts: Of a folder, is added ``files_read``, ``files_empty`` and ``files_ignored``.

    Raises:
        DataError: If there is no such file, or a column is missing.
    """
    place = Path(path)
    found = Documents(path, (place,), {}, whole_files, delimiter)
    if place.is_dir():
        found = replace(found, files=_files_in(place, counts))
        if not columns.get("client"):
            columns = {**columns, "client": ""}
    elif not place.is_file():
        raise DataError(
            f"data.path must be a file or a folder, got {path}, found nothing there (working folder: {Path.cwd()})"
        )
    texts = [file for file in found.files if _is_text(file)]
    table = next((file for file in found.files if not _is_text(file)), None)
    chosen = {"text": "text"}
    if table is not None:
        chosen = resolve_columns(table, columns, roles, ("text",), delimiter)
    else:
        chosen |= {role: name for role in roles if role != "text" and (name := columns.get(role))}
    inside = chosen.keys() - {"text"}
    if texts and inside:
        role = min(inside)
        raise DataError(
            f"data.columns.{role} must be '' where there are texts without columns such as {texts[0]}, "
            f"got {chosen[role]!r}; or bring {role}s in tables"
        )
    if place.is_dir() and "client" not in chosen:
        chosen["client"] = FILE_NAME
    return replace(found, columns=chosen)


def client_of(file: Path) -> str:
    """The client whose file it is: its name without what says how it is written.

    >>> client_of(Path("notes/dr. who.csv.gz")), client_of(Path("ann.txt"))
    ('dr. who', 'ann')
    """
    stem = file.with_suffix("") if file.suffix.lower() in COMPRESSIONS else file
    return stem.stem


def _is_text(file: Path) -> bool:
    return kind_of(file) in TEXT_SUFFIXES


def _files_in(folder: Path, counts: MutableMapping[str, int]) -> tuple[Path, ...]:
    there = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    known = [file for file in there if kind_of(file) in FORMATS]
    files = [file for file in known if file.stat().st_size]
    counts["files_read"], counts["files_empty"] = len(files), len(known) - len(files)
    counts["files_ignored"] = len(there) - len(known)
    if not files:
        other = next((file for file in there if file not in known), None)
        what = "empty files only" if known else f"{other.name}" if other else "no files"
        raise DataError(
            f"folder {folder} must hold a file for each client ({', '.join(FORMATS)}, also with .gz), found {what}"
        )
    if len(known) < len(there):
        ignored = next(file.name for file in there if file not in known)
        logger.warning(
            "%s: %s is no kind of text; %d such files are ignored", folder, ignored, len(there) - len(known)
        )
    if len(files) < len(known):
        logger.warning("%s: %d files are empty; their clients take no part", folder, len(known) - len(files))
    return tuple(files)


def _texts(file: Path, whole: bool, counts: MutableMapping[str, int]) -> Iterator[pa.RecordBatch]:
    """The lines of a text that are not blank, or all of it at once, as batches of one column."""
    lines: Iterator[str] = (text for _, _, text in numbered_lines(file))
    if whole:
        lines = iter(["\n".join(lines)])
    batch: list[str] = []
    size = 0
    for text in lines:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_BYTES or len(batch) >= _DOCUMENTS_PER_BATCH:
            counts["rows_read"] += len(batch)
            yield pa.record_batch([pa.array(batch, pa.string())], names=["text"])
            batch, size = [], 0
    if batch:
        counts["rows_read"] += len(batch)
        yield pa.record_batch([pa.array(batch, pa.string())], names=["text"])
