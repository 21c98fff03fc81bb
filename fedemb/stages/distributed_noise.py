"""Integers with a share of the noise: what clients send where only the noisy sum of all may be seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedemb.aggregate.secure.ring import Ring, rounded
from fedemb.data.shards import offsets_of
from fedemb.privacy.noise import Noise
from fedemb.privacy.skellam import skellam_of
from fedemb.stages.spread import Layout
from fedemb.types import Int64, StageContext, Total, Updates

_BLOCK_VALUES = 1 << 22  # numbers that are rounded at a time


@dataclass(frozen=True)
class DistributedNoise:
    """Rounds a clipped and weighted update to integers of bounded norm, and adds a share of Skellam noise to each.

    Attributes:
        layout: The universe.
        grid: What an integer stands for.
        bound: Largest norm of the integers: what one client can move their sum by.
        variance: Of a client's share of the noise, in integers.
        ring: Where they are added up.
        noise: Where coins and noise come from.
    """

    layout: Layout
    grid: float
    bound: float
    variance: float
    ring: Ring
    noise: Noise
    name: str = "distributed_noise"
    bounded: bool = True

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        whole, num_clients = self.layout.spread(updates), len(updates.clients)
        tensors = {name: rows.values for name, rows in whole.tables.items()} | dict(whole.dense)
        parts = {
            name: value.reshape(num_clients, value.numel() // max(1, num_clients))
            for name, value in tensors.items()
        }
        widths = [value.shape[1] for value in parts.values()]
        step = max(1, _BLOCK_VALUES // max(1, sum(widths)))
        sent = [
            self._integers(
                torch.cat([value[start : start + step].double().cpu() for value in parts.values()], 1),
                updates.clients[start : start + step],
                context.round,
            )
            for start in range(0, num_clients, step)
        ]
        bounds = offsets_of(np.array(widths, dtype=np.int64)).tolist()
        integers = torch.cat(sent) if sent else torch.zeros((0, bounds[-1]), dtype=self.ring.dtype)
        split = {name: integers[:, bounds[k] : bounds[k + 1]] for k, name in enumerate(parts)}
        tables = {
            name: replace(rows, values=split[name].reshape(rows.values.shape).to(rows.values.device))
            for name, rows in whole.tables.items()
        }
        dense = {n: split[n].reshape(value.shape).to(value.device) for n, value in whole.dense.items()}
        return replace(whole, tables=tables, dense=dense)

    def _integers(self, values: Tensor, clients: Int64, round: int) -> Tensor:
        found = rounded(values, self.grid, self.bound, self.noise, round, clients)
        numbers = self.noise.bits("skellam", values.shape[1], round, clients)
        noisy = found + torch.from_numpy(skellam_of(numbers, self.variance))
        return noisy.to(self.ring.dtype)

    def on_server(self, total: Total, context: StageContext) -> Total:
        return total


def grid_for(clip_norm: float, noise_multiplier: float, fineness: int = 14) -> float:
    """A grid on which the noise of the sum has ``2 ** fineness`` steps to its standard deviation.

    >>> grid_for(1.0, 0.0) == 2.0**-14
    True
    """
    return clip_norm * (noise_multiplier or 1.0) / math.pow(2.0, fineness)
