"""What goes with an update and would tell of a client's data: hidden where a claim of privacy stands."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedemb.types import StageContext, Total, Updates


@dataclass(frozen=True)
class Silent:
    """Makes ones of how often each row was looked up, and zeros of what was measured.

    Attributes:
        counts: Whether counts are hidden.
        metrics: Whether what was measured is.
        keep: Metrics that the mechanism itself needs and accounts for.
    """

    counts: bool = True
    metrics: bool = True
    keep: tuple[str, ...] = ()
    name: str = "silent"
    bounded: bool = False

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        tables, metrics = dict(updates.tables), dict(updates.metrics)
        if self.counts:
            tables = {
                name: replace(rows, counts=torch.ones_like(rows.counts)) for name, rows in tables.items()
            }
        if self.metrics:
            metrics = {
                n: value if n in self.keep else torch.zeros_like(value) for n, value in metrics.items()
            }
        return replace(updates, tables=tables, metrics=metrics)

    def on_server(self, total: Total, context: StageContext) -> Total:
        return total
