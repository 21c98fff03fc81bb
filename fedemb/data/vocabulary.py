"""Names of rows: which entity has which id."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.errors import DataError
from fedemb.types import Int64

OUT_OF_VOCABULARY = -1


@dataclass(frozen=True)
class Vocabulary:
    """Names in the order of their ids.

    Attributes:
        names: Arrow strings, one per id.
        counts: ``(size,)`` occurrences in the training data; None where nobody counted.
    """

    names: pa.Array
    counts: Int64 | None = field(default=None, compare=False)

    @staticmethod
    def of(names: Sequence[str], counts: Int64 | None = None) -> Vocabulary:
        """A vocabulary of these names, which must differ.

        Raises:
            DataError: If a name stands twice.
        """
        array = pa.array(names, type=pa.string())
        if pc.count_distinct(array).as_py() != len(array):
            repeated = pc.value_counts(array)
            name = next(v["values"] for v in repeated.to_pylist() if v["counts"] > 1)
            raise DataError(f"a vocabulary must name each entity once, but {name!r} stands twice")
        return Vocabulary(array, counts)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return str(self.names[index].as_py())

    def to_list(self) -> list[str]:
        return [str(name) for name in self.names.to_pylist()]

    def index(self, names: Any) -> Int64:
        """Ids of names (any Arrow-convertible strings); -1 for a name that is not known."""
        if not isinstance(names, pa.Array | pa.ChunkedArray):
            names = pa.array(names, type=pa.string())
        found = pc.index_in(names, value_set=self.names)
        return np.asarray(pc.fill_null(found, OUT_OF_VOCABULARY), dtype=np.int64)

    @cached_property
    def digest(self) -> str:
        """Hex digest of names and order: equal digests mean equal ids."""
        state = hashlib.sha256(str(len(self)).encode())
        for start in range(0, len(self), 100_000):
            part = self.names[start : start + 100_000].to_pylist()
            state.update("\n".join(part).encode())
            state.update(b"\n")
        return state.hexdigest()[:16]


@final
class VocabularyBuilder:
    """Numbers names as they come, batch by batch: memory follows the different names, not the lines.

    >>> builder = VocabularyBuilder()
    >>> builder.encode(pa.array(["b", "a", None])).tolist(), builder.encode(pa.array(["c", "b"])).tolist()
    ([0, 1, -1], [2, 0])
    >>> builder.names().to_pylist()
    ['b', 'a', 'c']
    """

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def encode(self, names: pa.Array) -> Int64:
        """Ids ``(names,)`` in the order of first appearance; -1 for null."""
        if not pa.types.is_string(names.type):
            names = names.cast(pa.string())
        encoded = pc.dictionary_encode(names)
        ids = self._ids
        known = np.fromiter(
            (ids.setdefault(name, len(ids)) for name in encoded.dictionary.to_pylist()),
            dtype=np.int64,
            count=len(encoded.dictionary),
        )
        codes = np.asarray(pc.fill_null(encoded.indices, -1), dtype=np.int64)
        return np.append(known, OUT_OF_VOCABULARY)[codes]

    def names(self) -> pa.Array:
        """All names in the order of their ids."""
        return pa.array(self._ids, type=pa.string(), size=len(self._ids))
