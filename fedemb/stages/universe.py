"""The public rows: what a client touched outside of them stays with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedemb.types import RowUpdates, StageContext, Total, Updates


@dataclass(frozen=True)
class Universe:
    """Leaves out rows that are not public, and gives an update that is not finite up for a zero one.

    Attributes:
        rows: Per table, whether each row ``(num_rows,)`` is in its universe; tables that are not there: all are.
        discard: Whether updates with NaN or infinity become zero ones. Else the server refuses them.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    discard: bool = True
    name: str = "universe"
    bounded: bool = False

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        tables = {name: self._inside(name, rows) for name, rows in updates.tables.items()}
        dense = dict(updates.dense)
        if self.discard:
            sound = _sound(tables, dense, len(updates.clients))
            if not bool(sound.all()):
                tables = {name: _zeroed(rows, sound) for name, rows in tables.items()}
                dense = {name: _kept(value, sound) for name, value in dense.items()}
        return replace(updates, tables=tables, dense=dense)

    def on_server(self, total: Total, context: StageContext) -> Total:
        return total

    def _inside(self, name: str, rows: RowUpdates) -> RowUpdates:
        if name not in self.rows:
            return rows
        inside = self.rows[name].to(rows.rows.device)[rows.rows]
        before = torch.cat((inside.new_zeros(1, dtype=torch.int64), inside.long().cumsum(0)))
        offsets = before[rows.offsets.to(before.device)].to(rows.offsets.device)
        return RowUpdates(rows.rows[inside], rows.values[inside], rows.counts[inside], offsets)


def _sound(tables: Mapping[str, RowUpdates], dense: Mapping[str, Tensor], num_clients: int) -> Tensor:
    """Whether all that each client ``(clients,)`` sends is finite."""
    sound = torch.ones(num_clients, dtype=torch.bool)
    for rows in tables.values():
        if not bool(torch.isfinite(rows.values.sum())):
            bad = ~torch.isfinite(rows.values).all(1).cpu()
            sound[torch.repeat_interleave(rows.offsets.diff())[bad]] = False
    for value in dense.values():
        sound &= (
            torch.isfinite(value).flatten(1).all(1).cpu() if value.dim() > 1 else torch.isfinite(value).cpu()
        )
    return sound


def _zeroed(rows: RowUpdates, sound: Tensor) -> RowUpdates:
    own = sound[torch.repeat_interleave(rows.offsets.diff())].to(rows.values.device)
    return replace(rows, values=torch.where(own[:, None], rows.values, 0.0))


def _kept(value: Tensor, sound: Tensor) -> Tensor:
    return torch.where(sound.to(value.device).view(-1, *(1,) * (value.dim() - 1)), value, 0.0)
