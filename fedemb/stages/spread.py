"""An update as a vector over the whole public universe, in which a row that was not touched is a row like any other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedemb.types import Dense, RowUpdates, Table, Updates


@dataclass(frozen=True)
class Layout:
    """What each client sends where nothing may tell which rows it touched.

    Attributes:
        tables: The shared tables.
        rows: Per table, whether each row ``(num_rows,)`` is in the universe; tables that are not there: all are.
    """

    tables: tuple[Table, ...]
    rows: Mapping[str, Tensor]

    def ids(self, table: Table) -> Tensor:
        """Rows of the universe, ascending."""
        if table.name in self.rows:
            return torch.nonzero(self.rows[table.name]).view(-1)
        return torch.arange(table.num_rows)

    def num_values(self, dense: tuple[Dense, ...]) -> int:
        """Numbers in a client's whole update, these dense parameters included."""
        own = sum(len(self.ids(table)) * table.dim for table in self.tables)
        return own + sum(math.prod(part.shape) for part in dense)

    def spread(self, updates: Updates) -> Updates:
        """The same updates times their weights, zero wherever a client touched nothing; weights are then ones."""
        num_clients, tables = len(updates.clients), {}
        for table in self.tables:
            rows, ids = updates.tables[table.name], self.ids(table)
            size, values = len(ids), rows.values
            client = torch.repeat_interleave(rows.offsets.diff()).to(values.device)
            ids = ids.to(values.device)
            position = torch.searchsorted(ids, rows.rows) + client * size
            whole = values.new_zeros((num_clients * size, values.shape[1]))
            whole[position] = values * updates.weights.to(values)[client, None]
            offsets = torch.arange(num_clients + 1, dtype=torch.int64) * size
            counts = torch.ones(len(whole), dtype=values.dtype, device=values.device)
            tables[table.name] = RowUpdates(ids.repeat(num_clients), whole, counts, offsets)
        dense = {
            name: value * updates.weights.to(value).view(-1, *(1,) * (value.dim() - 1))
            for name, value in updates.dense.items()
        }
        return replace(updates, tables=tables, dense=dense, weights=torch.ones_like(updates.weights))
