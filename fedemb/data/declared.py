"""Vocabularies that a file declares, instead of the training data."""

from __future__ import annotations

from pathlib import Path

from fedemb.data.columns import column_names
from fedemb.data.tabular import read_columns
from fedemb.data.vocabulary import Vocabulary, VocabularyBuilder
from fedemb.errors import DataError

TEXT_SUFFIXES = ("", ".txt", ".text", ".lst")


def read_vocabulary(path: str | Path, column: str | None = None) -> Vocabulary:
    """The names in a file, in its order; a table may repeat them (the data file itself, say).

    Args:
        path: Text with a name on each line (``.txt``), or a CSV, TSV or Parquet file with a header.
        column: Of a table: the column of names; its first column where it has none of that name.

    Raises:
        DataError: If the file is missing or empty, or a name stands twice in a text.
    """
    path = Path(path)
    if path.suffix.lower() in TEXT_SUFFIXES and path.is_file():
        try:
            names = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        except UnicodeDecodeError:
            raise DataError(f"vocabulary file {path} must be UTF-8; convert it with iconv -t utf-8") from None
        names = [name.rstrip("\r") for name in names]
    else:
        present = column_names(path)
        chosen = column if column in present else (present or ["name"])[0]
        known = VocabularyBuilder()
        for batch in read_columns(path, {"name": chosen}, required=frozenset({"name"})):
            known.encode(batch.column("name"))
        return Vocabulary(known.names())
    if not names:
        raise DataError(f"vocabulary file {path} must hold names, found none")
    try:
        return Vocabulary.of(names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
