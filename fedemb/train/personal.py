"""Personal tables: rows that stay with their client, round after round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedemb.train.initial import initial_rows
from fedemb.types import Int64, Table


@dataclass(frozen=True)
class PersonalRows:
    """One personal table of the clients ``first .. first + len(known) - 1`` of a node.

    A client's rows come into being when it first takes part; memory that nobody touched is never
    committed by the operating system.

    Attributes:
        table: Its shape; ``num_rows`` counts the rows of one client.
        first: The first client.
        points: ``(clients * num_rows, coordinates)``.
        known: ``(clients,)`` bool: whether the client's rows exist yet.
        touched: ``(clients * num_rows,)`` bool: rows that were ever trained, of tables with slices of time; else None.
    """

    table: Table
    first: int
    points: Tensor
    known: Tensor
    touched: Tensor | None = None

    @staticmethod
    def empty(table: Table, first: int, num_clients: int) -> PersonalRows:
        shape = (num_clients * table.num_rows, table.manifold.num_coordinates(table.dim))
        points = torch.zeros(shape, dtype=table.manifold.dtype)
        touched = torch.zeros(len(points), dtype=torch.bool) if table.num_slices > 1 else None
        return PersonalRows(table, first, points, torch.zeros(num_clients, dtype=torch.bool), touched)

    @staticmethod
    def at_origin(table: Table, first: int, num_clients: int) -> PersonalRows:
        """Storage in which every client's rows exist, and lie at the origin of their space."""
        rows = PersonalRows.empty(table, first, num_clients)
        origin = table.manifold.origin(table.dim)
        if origin.any():  # zeros are there already, and memory that nobody touches is not committed
            rows.points[:] = origin
        rows.known[:] = True
        return rows

    def _create(self, clients: Int64, seed: int) -> None:
        missing = clients[~self.known.numpy()[clients - self.first]]
        if len(missing):
            keys = (missing[:, None] * self.table.num_rows + np.arange(self.table.num_rows)).ravel()
            at = torch.from_numpy(keys - self.first * self.table.num_rows)
            self.points[at] = initial_rows(self.table, seed, keys)
            self.known[torch.from_numpy(missing - self.first)] = True

    def gather(self, keys: Tensor, seed: int) -> Tensor:
        """Points ``(keys, coordinates)`` of keys ``client * num_rows + row``."""
        if self.table.num_rows:
            self._create(np.unique(keys.numpy() // self.table.num_rows), seed)
        return self.points.index_select(0, keys - self.first * self.table.num_rows)

    def alone(self, client: int) -> PersonalRows:
        """A copy of one client's rows."""
        at = client - self.first
        rows = slice(at * self.table.num_rows, (at + 1) * self.table.num_rows)
        return PersonalRows(self.table, client, self.points[rows].clone(), self.known[at : at + 1].clone())

    def put(self, keys: Tensor, points: Tensor) -> None:
        """Stores points back under their keys."""
        at = keys - self.first * self.table.num_rows
        self.points[at] = points
        if self.touched is not None:
            self.touched[at] = True

    def of(self, clients: Int64, seed: int) -> Tensor:
        """All rows ``(clients, num_rows, coordinates)`` of these clients."""
        rows = np.arange(self.table.num_rows, dtype=np.int64)
        keys = torch.from_numpy((clients[:, None] * self.table.num_rows + rows).ravel())
        return self.gather(keys, seed).view(len(clients), self.table.num_rows, -1)


def personal_rows(tables: tuple[Table, ...], first: int, num_clients: int) -> dict[str, PersonalRows]:
    """Empty storage for every personal table of a task."""
    return {t.name: PersonalRows.empty(t, first, num_clients) for t in tables if not t.shared}


def rows_of(
    personal: Mapping[str, PersonalRows], clients: Int64, seed: int, beside: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``(clients, num_rows, coordinates)`` of every personal table, on the device of the tables that they go with."""
    device = next((table.device for table in beside.values()), torch.device("cpu"))
    return {name: rows.of(clients, seed).to(device) for name, rows in personal.items()}
