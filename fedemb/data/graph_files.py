"""Files of a knowledge graph, with its published splits: which there are, and their triples as codes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.data.columns import column_names, find_columns, resolve_columns
from fedemb.data.tabular import COMPRESSIONS, PARQUET_SUFFIXES, TAB_SUFFIXES, read_columns
from fedemb.data.vocabulary import Vocabulary, VocabularyBuilder
from fedemb.errors import DataError
from fedemb.types import Int64

logger = logging.getLogger("fedemb")

TRIPLE = ("head", "relation", "tail")
ROLES = (*TRIPLE, "client")
ENTITY_OF = {"head": "entity", "relation": "relation", "tail": "entity"}

# The parts of a graph, and what their files are called before the suffix.
PARTS: Mapping[str, Sequence[str]] = {
    "training": ("train", "training"),
    "validation": ("valid", "validation", "val", "dev"),
    "test": ("test",),
    "validation_negatives": ("valid_negatives", "validation_negatives", "val_negatives", "dev_negatives"),
    "test_negatives": ("test_negatives",),
}
FORMATS = (".txt", *TAB_SUFFIXES, ".csv", *PARQUET_SUFFIXES)
UNPACKED = ("Release", "text")  # where FB15k-237.2.zip, and some copies of WN18RR, hold their files


@dataclass(frozen=True)
class GraphReading:
    """How to read the files.

    Attributes:
        columns: Column name per role; null: a usual name; an empty name: none.
        names: Column names of text files without a header line; null: see ``Triples``.
        delimiter: Between cells; null: a tab in ``.txt`` and ``.tsv``, else a comma.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    names: Sequence[str] | None = None
    delimiter: str | None = None


@dataclass(frozen=True)
class Lines:
    """Triples of all parts, one part after another, each in the order of its file.

    Attributes:
        columns: ``(lines,)`` int64 per role: ids of ``names``; ``client``, where files say whose a triple is.
        part: ``(lines,)`` position in ``PARTS``.
        names: All names that occur in a file, in alphabetical order: ``entity``, ``relation``, ``client``.
    """

    columns: Mapping[str, Int64]
    part: npt.NDArray[np.int8]
    names: Mapping[str, Vocabulary]

    def where(self, keep: npt.NDArray[np.bool_]) -> Lines:
        """Some of the lines."""
        columns = {role: column[keep] for role, column in self.columns.items()}
        return Lines(columns, self.part[keep], self.names)


def find_files(path: str | Path) -> dict[str, Path]:
    """The file of each part that is there; a single file, or one alone in its folder, is ``training``.

    Raises:
        DataError: If there is no such path, or a folder has no training file, two files for one part, or
            negatives to a part that it does not have.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {"training": folder}
    files = _files_in(folder)
    inside = next((folder / name for name in UNPACKED if (folder / name).is_dir()), None)
    if "training" not in files and inside is not None:
        folder, files = inside, _files_in(inside)
    if "training" not in files:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"data folder {folder} must hold a file train ({', '.join(FORMATS)}), found {there}; "
            "rename it, or name a single file in data.path"
        )
    for part, file in files.items():
        if part.endswith("_negatives") and part.removesuffix("_negatives") not in files:
            missing = PARTS[part.removesuffix("_negatives")][0]
            raise DataError(
                f"data folder {folder} must hold {missing}{file.suffix} beside {file.name}, found none"
            )
    return files


def _files_in(folder: Path) -> dict[str, Path]:
    found: dict[str, list[Path]] = {part: [] for part in PARTS}
    for file in sorted(folder.iterdir()):
        stem, suffix = _split_name(file)
        for part, stems in PARTS.items():
            if stem in stems and suffix in FORMATS and file.is_file():
                found[part].append(file)
    for part, files in found.items():
        if len(files) > 1:
            there = ", ".join(file.name for file in files)
            raise DataError(
                f"data folder {folder} must hold one file of {part} triples, found {there}; move others away"
            )
    return {part: files[0] for part, files in found.items() if files}


def _split_name(file: Path) -> tuple[str, str]:
    """``("train", ".csv")`` for ``Train.csv.gz``."""
    plain = Path(file.name.lower())
    plain = plain.with_suffix("") if plain.suffix in COMPRESSIONS else plain
    return plain.stem, plain.suffix


def read_triples(files: Mapping[str, Path], reading: GraphReading, counts: MutableMapping[str, int]) -> Lines:
    """All usable lines of the files.

    Args:
        files: From ``find_files``.
        reading: What to read.
        counts: Is added what ``read_columns`` counts, over all files, and ``<part>_rows_read`` of each.

    Raises:
        DataError: If a file or a column is not as it must be, or only some files say whose a triple is.
    """
    coded = {entity: VocabularyBuilder() for entity in ("entity", "relation", "client")}
    codes: dict[str, list[Int64]] = {role: [] for role in ROLES}
    part: list[npt.NDArray[np.int8]] = []
    owned: dict[str, bool] = {}
    for name, file in files.items():
        before = counts.get("rows_read", 0)
        for batch in _batches(file, reading, counts):
            owned[file.name] = "client" in batch.schema.names
            for role in batch.schema.names:
                codes[role].append(_encode(coded[ENTITY_OF.get(role, role)], batch.column(role), role, file))
            part.append(np.full(batch.num_rows, [*PARTS].index(name), dtype=np.int8))
        counts[f"{name}_rows_read"] = counts["rows_read"] - before
    if len({*owned.values()}) > 1:
        lacking = next(file for file, has_client in owned.items() if not has_client)
        raise DataError(
            f"data.columns.client must name a column of every file, but {lacking} has none; "
            'add it, or set data.columns.client="" to let a partition make the clients'
        )
    names, order = {}, {}
    for entity, known in coded.items():
        unsorted = known.names()
        ranks = np.asarray(pc.sort_indices(unsorted), dtype=np.int64)
        names[entity] = Vocabulary(unsorted.take(pa.array(ranks)))
        order[entity] = np.empty_like(ranks)
        order[entity][ranks] = np.arange(len(ranks))
    columns = {
        role: order[ENTITY_OF.get(role, role)][np.concatenate(batches)]
        for role, batches in codes.items()
        if batches
    }
    return Lines(columns, np.concatenate(part), names)


def _batches(file: Path, reading: GraphReading, counts: MutableMapping[str, int]) -> Iterator[pa.RecordBatch]:
    _, suffix = _split_name(file)
    delimiter = reading.delimiter or ("\t" if suffix in (".txt", *TAB_SUFFIXES) else ",")
    names = _names(file, suffix, reading, delimiter)
    if names is None or reading.names is not None:
        columns = resolve_columns(file, reading.columns, ROLES, TRIPLE, delimiter, names)
    else:
        columns = {role: role for role in names if role in ROLES}
        if reading.columns.get("client") == "":
            columns.pop("client", None)
    return read_columns(
        file,
        columns or {role: role for role in TRIPLE},  # no such file: the reader says so
        delimiter=delimiter,
        counts=counts,
        required=frozenset(columns or TRIPLE),
        names=names,
        quoted=names is None or delimiter != "\t",
    )


def _names(file: Path, suffix: str, reading: GraphReading, delimiter: str) -> Sequence[str] | None:
    """Column names of a file without a header line; None where there is one.

    Published graphs quote nothing, so that a name may begin with a quote.
    """
    if suffix in PARQUET_SUFFIXES or not file.is_file():
        return None
    if reading.names is not None:
        return reading.names
    cells = column_names(file, delimiter, quoted=delimiter != "\t")
    expected = any(reading.columns.get(role) for role in ROLES)
    if expected or len(find_columns(cells, reading.columns, TRIPLE)) >= 2:  # who names two forgot the third
        return None
    if len(cells) < len(TRIPLE):
        raise DataError(
            f"data file {file} must have three cells on a line (head, relation, tail), got {len(cells)} "
            f"where cells are separated by {delimiter!r}; set data.delimiter"
        )
    names = [*ROLES, *(f"column {number + 1}" for number in range(len(ROLES), len(cells)))][: len(cells)]
    logger.info("%s: no header line; the columns are taken as %s", file, ", ".join(names))
    return names


def _encode(known: VocabularyBuilder, cells: pa.Array, role: str, file: Path) -> Int64:
    try:
        return known.encode(cells)
    except pa.ArrowException:
        raise DataError(
            f"data.columns.{role} of {file} must hold names, got values of type {cells.type}"
        ) from None
