"""The sum of integer updates in the ring: all that a server learns where updates are added up securely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedemb.aggregate.secure.ring import Ring
from fedemb.stages.spread import Layout
from fedemb.types import RowTotal, Total, Updates


@dataclass
class RingSum:
    """Adds integers up over the whole universe, and gives nothing away of a round with too few clients.

    Attributes:
        layout: The universe.
        ring: Where they are added.
        grid: What an integer stands for.
        divisor: What the sum is divided by, a public number.
        min_clients: Clients whose shares of noise are enough; with fewer the round is aborted.
    """

    layout: Layout
    ring: Ring
    grid: float
    divisor: float
    min_clients: int
    _sums: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _cohort: int = 0

    def add(self, updates: Updates, tables: Mapping[str, Tensor]) -> None:
        """Adds a part of the cohort.

        Args:
            updates: Checked updates, integers of every row of the universe.
            tables: Not asked.

        Raises:
            ValueError: If an update does not cover the universe.
        """
        num_clients = len(updates.clients)
        for table in self.layout.tables:
            rows, ids = updates.tables[table.name], self.layout.ids(table)
            if not torch.equal(rows.rows.cpu(), ids.repeat(num_clients)):
                raise ValueError(f"an update must hold all {len(ids)} rows of {table.name}'s universe")
            self._add(table.name, rows.values.view(num_clients, len(ids), -1))
        for name, value in updates.dense.items():
            self._add(name, value)
        self._cohort += num_clients

    def _add(self, name: str, values: Tensor) -> None:
        own = values.long().sum(0)
        self._sums[name] = self.ring.lift(self._sums[name] + own if name in self._sums else own)

    def finish(self, tables: Mapping[str, Tensor]) -> Total:
        """The round's total; the next ``add`` starts a new one."""
        sums, cohort = self._sums, self._cohort
        self._sums, self._cohort = {}, 0
        if cohort < self.min_clients:
            return Total({}, {}, cohort, aborted=True)
        scale = self.grid / self.divisor
        totals = {}
        for table in self.layout.tables:
            steps = (sums.pop(table.name).double() * scale).to(table.manifold.dtype)
            totals[table.name] = RowTotal(self.layout.ids(table).to(steps.device), steps)
        dense = {name: (value.double() * scale).float() for name, value in sums.items()}
        return Total(totals, dense, cohort)
