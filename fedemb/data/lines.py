"""Lines of text files, with their numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from fedemb.errors import DataError

LONGEST_LINE = 1 << 24


def numbered_lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[tuple[int, int, str]]:
    """Number, bytes and text of each line that is not blank; the file may be compressed.

    Raises:
        DataError: If a line is longer than so many bytes, or not UTF-8.
    """
    with pa.input_stream(str(path), compression="detect") as stream:
        file, number = io.BufferedReader(cast(Any, stream)), 0
        while line := file.readline(longest + 1):
            number += 1
            if len(line) > longest:
                raise DataError(
                    f"data file {path} cannot be read: line {number} is longer than {longest:,} bytes"
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise DataError(
                    f"data file {path} cannot be read: it must be UTF-8, and line {number} is not; "
                    "convert it with iconv -t utf-8"
                ) from None
            if text:
                yield number, len(line), text
