"""All clients' examples as columns sorted by client, plus offsets.

A client is a range of lines, a cohort a slice: a million clients cost one offset array.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedemb.errors import DataError
from fedemb.types import Int64

Column = npt.NDArray[Any]


def ragged_indices(starts: Int64, sizes: Int64) -> Int64:
    """Indices ``starts[i] .. starts[i] + sizes[i] - 1`` of every range, one range after another.

    >>> ragged_indices(np.array([10, 0]), np.array([2, 3])).tolist()
    [10, 11, 0, 1, 2]
    """
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - ends + sizes, sizes)


def offsets_of(sizes: Int64) -> Int64:
    """Offsets ``(n + 1,)`` of ranges with these sizes."""
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


@dataclass(frozen=True)
class Shards:
    """Examples of ``num_clients`` clients.

    Attributes:
        columns: ``(examples, ...)`` per name, sorted by client; may be memory-mapped.
        offsets: ``(num_clients + 1,)``: client ``c`` owns lines ``offsets[c] : offsets[c + 1]``.
    """

    columns: Mapping[str, Column]
    offsets: Int64

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if len(column) != self.num_examples:
                raise ValueError(
                    f"column {name} must have {self.num_examples} lines like the offsets, got {len(column)}"
                )

    @property
    def num_clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_examples(self) -> int:
        return int(self.offsets[-1])

    @property
    def sizes(self) -> Int64:
        """Examples per client ``(num_clients,)``."""
        return np.diff(self.offsets)

    def take(self, clients: Int64) -> Shards:
        """The shards of these clients, in this order."""
        starts, sizes = self.offsets[clients], self.offsets[clients + 1] - self.offsets[clients]
        if len(clients) and np.array_equal(starts[1:], starts[:-1] + sizes[:-1]):
            lines: slice | Int64 = slice(int(starts[0]), int(starts[-1] + sizes[-1]))
        else:
            lines = ragged_indices(starts, sizes)
        return Shards({name: column[lines] for name, column in self.columns.items()}, offsets_of(sizes))

    def owners(self) -> Int64:
        """Position of the client that owns each example ``(examples,)``."""
        return np.repeat(np.arange(self.num_clients, dtype=np.int64), self.sizes)

    def pooled(self) -> Shards:
        """All examples at one client; the column ``owner`` remembers whose each one was."""
        columns = {**self.columns, "owner": self.columns.get("owner", self.owners())}
        return Shards(columns, np.array([0, self.num_examples], dtype=np.int64))

    def save(self, folder: Path) -> None:
        """Writes one ``.npy`` file per column, ``offsets.npy`` and ``shards.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, column in self.columns.items():
            np.save(folder / f"column_{name}.npy", column, allow_pickle=False)
        np.save(folder / "offsets.npy", self.offsets, allow_pickle=False)
        (folder / "shards.json").write_text(json.dumps({"columns": sorted(self.columns)}))

    @staticmethod
    def open(folder: Path) -> Shards:
        """Memory-maps what ``save`` wrote; changes stay in memory (copy on write).

        Raises:
            DataError: If the folder does not hold shards.
        """
        index = folder / "shards.json"
        if not index.is_file():
            raise DataError(f"{folder} holds no shards (shards.json is missing)")
        columns = {
            name: np.load(folder / f"column_{name}.npy", mmap_mode="c", allow_pickle=False)
            for name in json.loads(index.read_text())["columns"]
        }
        return Shards(columns, np.load(folder / "offsets.npy", allow_pickle=False))


def span_of(shards: Shards) -> tuple[int, int] | None:
    """First and last time of all examples, in epoch seconds; None without times."""
    time = shards.columns.get("time")
    return None if time is None or not len(time) else (int(time.min()), int(time.max()))


def group_by_client(columns: Mapping[str, Column], clients: Int64, num_clients: int) -> Shards:
    """Shards from unsorted columns; lines of a client keep their order.

    Args:
        columns: ``(examples, ...)`` per name.
        clients: Client of each line, in ``[0, num_clients)``.
        num_clients: Clients without a line get an empty shard.
    """
    order = np.argsort(clients, kind="stable")
    sizes = np.bincount(clients, minlength=num_clients).astype(np.int64)
    return Shards({name: column[order] for name, column in columns.items()}, offsets_of(sizes))


def join(parts: Sequence[Shards]) -> Shards:
    """Shards of the same clients one after another: each client's lines of the first, then of the second.

    Columns are those that all parts have.

    >>> one = Shards({"item": np.array([1, 2])}, np.array([0, 1, 2]))
    >>> join([one, one]).columns["item"].tolist()
    [1, 1, 2, 2]
    """
    if len(parts) == 1:
        return parts[0]
    names = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in names}
    owners = np.concatenate([part.owners() for part in parts])
    return group_by_client(columns, owners, parts[0].num_clients)
