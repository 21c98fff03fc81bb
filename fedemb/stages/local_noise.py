"""Noise that a client adds to its own update, so that not even the server sees it without."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedemb.privacy.noise import Noise
from fedemb.stages.spread import Layout
from fedemb.types import StageContext, Total, Updates


@dataclass(frozen=True)
class LocalNoise:
    """Adds Gaussian noise to every value of the universe, of an update that was clipped and weighted before.

    Attributes:
        layout: The universe.
        deviation: Standard deviation of the noise.
        noise: Where it comes from.
    """

    layout: Layout
    deviation: float
    noise: Noise
    name: str = "local_noise"
    bounded: bool = False

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        whole, clients = self.layout.spread(updates), updates.clients
        tables, dense = {}, {}
        for name, rows in whole.tables.items():
            owner = np.repeat(clients, np.diff(rows.offsets.numpy()))
            found = self.noise.normal(
                f"local/{name}",
                rows.values.shape[1],
                rows.values.dtype,
                context.round,
                owner,
                rows.rows.cpu().numpy(),
            )
            tables[name] = replace(
                rows, values=rows.values + found.to(rows.values.device).mul_(self.deviation)
            )
        for name, value in whole.dense.items():
            width = int(np.prod(value.shape[1:], dtype=np.int64))
            found = self.noise.normal(f"local/{name}", width, value.dtype, context.round, clients)
            dense[name] = value + found.to(value.device).mul_(self.deviation).view(value.shape)
        return replace(whole, tables=tables, dense=dense)

    def on_server(self, total: Total, context: StageContext) -> Total:
        return total
