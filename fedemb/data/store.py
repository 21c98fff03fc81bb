"""Shards from batches of lines, on disk where memory does not hold them."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, final

import numpy as np
from numpy.lib import format as npy

from fedemb.data.shards import Column, Shards, group_by_client, offsets_of
from fedemb.errors import RunError
from fedemb.types import Int64

CLIENT = "__client__"  # the spool's own column


@final
class ShardBuilder:
    """Collects lines in any order, then hands them out by client.

    In memory it equals ``group_by_client``. Past ``memory_bytes`` the lines go to ``.npy`` files
    that are mapped into memory; lines that came sorted by client are not moved again, others are
    put in place by a counting sort, chunk by chunk.

        append -> batches -> (budget exceeded) -> *.part files -> counting sort -> column_*.npy
    """

    def __init__(self, folder: Path | None = None, memory_bytes: int = 1 << 30) -> None:
        """An empty store.

        Args:
            folder: Where files go, in the form that ``Shards.open`` reads; always on disk then. None:
                a temporary folder, once it is needed, that vanishes together with the shards.
            memory_bytes: Budget for lines that wait in memory, and for a chunk of the sort.
        """
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._batches: list[dict[str, Column]] = []
        self._batch_bytes = 0
        self._files: dict[str, BinaryIO] = {}
        self._where: Path | None = None
        self._empty: dict[str, Column] = {}
        self._sizes = np.zeros(0, dtype=np.int64)
        self._last = -1
        self._sorted = True

    @property
    def num_examples(self) -> int:
        return int(self._sizes.sum())

    def append(self, columns: Mapping[str, Column], clients: Int64) -> None:
        """Adds lines; the arrays must not be changed afterwards. A client's lines keep their order.

        Args:
            columns: ``(lines, ...)`` per name: the same names, types and trailing shapes each time.
            clients: ``(lines,)`` owners, from 0 on.

        Raises:
            ValueError: If the columns are not those of the first batch.
            RunError: If the disk refuses.
        """
        batch = {**columns, CLIENT: np.asarray(clients, dtype=np.int64)}
        if not self._empty:
            self._empty = {name: column[:0].copy() for name, column in batch.items()}
        for name in batch.keys() | self._empty.keys():
            kind = [(c.dtype, c.shape[1:]) for c in (batch.get(name), self._empty.get(name)) if c is not None]
            if len(kind) != 2 or kind[0] != kind[1] or len(batch[name]) != len(clients):
                raise ValueError(f"every batch must have the same columns and as many lines, {name} has not")
        if len(clients):
            self._count(batch[CLIENT])
            self._batches.append(batch)
            self._batch_bytes += sum(column.nbytes for column in batch.values())
        if self._batch_bytes > (0 if self._folder else self._memory_bytes):
            self._spill()

    def _count(self, clients: Int64) -> None:
        first, top = int(clients.min()), int(clients.max()) + 1
        if top > len(self._sizes):
            self._sizes = np.concatenate([self._sizes, np.zeros(2 * top - len(self._sizes), dtype=np.int64)])
        self._sizes[first:top] += np.bincount(clients - first)
        self._sorted &= clients[0] >= self._last and bool((clients[1:] >= clients[:-1]).all())
        self._last = int(clients[-1])

    def _spill(self) -> None:
        with self._writing() as folder:
            if not self._files:
                for name, column in self._empty.items():
                    self._files[name] = (folder / f"column_{name}.part").open("wb+")
                    _write_header(self._files[name], column, 0)
            for batch in self._batches:
                for name, column in batch.items():
                    np.ascontiguousarray(column).tofile(self._files[name])
            self._batches, self._batch_bytes = [], 0

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        try:
            if self._where is None:
                self._where = self._folder or Path(tempfile.mkdtemp(prefix="fedemb-shards-"))
                self._where.mkdir(parents=True, exist_ok=True)
                if self._folder is None:
                    weakref.finalize(self, shutil.rmtree, self._where, ignore_errors=True)
            yield self._where
        except OSError as error:
            where = self._where or self._folder or tempfile.gettempdir()
            for file in self._files.values():
                file.close()
                Path(file.name).unlink(missing_ok=True)
            raise RunError(
                f"shards must be written to {where}, got {error.strerror}; make room there"
            ) from error

    def finish(self, num_clients: int) -> Shards:
        """All lines by client; the builder is spent. Clients without a line get an empty shard.

        Raises:
            ValueError: If nothing was ever appended, or an owner is not below ``num_clients``.
            RunError: If the disk refuses.
        """
        if not self._empty:
            raise ValueError("a shard builder must be given a batch, if an empty one, before it can finish")
        if self._sizes[num_clients:].any():
            raise ValueError(f"clients must be below {num_clients}, got one that is not")
        sizes = np.zeros(num_clients, dtype=np.int64)
        sizes[: len(self._sizes)] = self._sizes[:num_clients]
        if self._folder is None and not self._files:
            return self._in_memory(sizes)
        self._spill()
        with self._writing() as folder:
            for name, file in self._files.items():
                file.flush()
                file.seek(0)
                _write_header(file, self._empty[name], int(sizes.sum()))
                file.close()
            offsets = offsets_of(sizes)
            if not self._sorted:
                _scatter(folder, self._empty, offsets, self._memory_bytes)
            (folder / f"column_{CLIENT}.part").unlink()
            names = sorted(self._empty.keys() - {CLIENT})
            for name in names:
                (folder / f"column_{name}.part").replace(folder / f"column_{name}.npy")
            np.save(folder / "offsets.npy", offsets, allow_pickle=False)
            (folder / "shards.json").write_text(json.dumps({"columns": names}))
            shards = Shards.open(folder)
            if self._folder is None:
                shutil.rmtree(folder, ignore_errors=True)  # mapped files live on without their names
        return shards

    def _in_memory(self, sizes: Int64) -> Shards:
        batches, self._batches = self._batches, []
        columns = {
            name: np.concatenate([batch.pop(name) for batch in batches]) if batches else empty
            for name, empty in self._empty.items()
        }
        clients = columns.pop(CLIENT)
        if self._sorted:
            return Shards(columns, offsets_of(sizes))
        return group_by_client(columns, clients, len(sizes))


def _write_header(file: BinaryIO, column: Column, length: int) -> None:
    """NumPy pads the header so that its length does not depend on the number of lines."""
    npy.write_array_header_1_0(
        file,
        {
            "descr": npy.dtype_to_descr(column.dtype),
            "fortran_order": False,
            "shape": (length, *column.shape[1:]),
        },
    )


def _scatter(folder: Path, empty: Mapping[str, Column], offsets: Int64, memory_bytes: int) -> None:
    """Stable counting sort by client of all ``.part`` files, a chunk of lines at a time."""
    clients = np.load(folder / f"column_{CLIENT}.part", mmap_mode="r", allow_pickle=False)
    width = max(int(column.dtype.itemsize * np.prod(column.shape[1:])) for column in empty.values())
    chunk = max(1, memory_bytes // (4 * 8 + 2 * width))
    for name in empty.keys() - {CLIENT}:
        source = np.load(folder / f"column_{name}.part", mmap_mode="r", allow_pickle=False)
        target = npy.open_memmap(
            folder / f"column_{name}.sorted", mode="w+", dtype=source.dtype, shape=source.shape
        )
        free = offsets[:-1].copy()
        for start in range(0, len(clients), chunk):
            owner = clients[start : start + chunk]
            order = np.argsort(owner, kind="stable")
            owner = owner[order]
            first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
            sizes = np.diff(np.append(first, len(owner)))
            target[np.repeat(free[owner[first]] - first, sizes) + np.arange(len(owner))] = source[
                start : start + chunk
            ][order]
            free[owner[first]] += sizes
        target.flush()
        del target, source
        (folder / f"column_{name}.sorted").replace(folder / f"column_{name}.part")
