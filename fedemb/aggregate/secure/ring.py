"""Integers that are added modulo a power of two, and how real numbers become such integers without a bias.

Reference: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML 2021, section 4 (conditional randomised rounding, and the bound on what it makes of a norm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedemb.privacy.noise import Noise
from fedemb.types import Int64

_TRIES = 100  # of rounding a vector so that it is not too long; each one fails with probability less than exp(-1/2)
_HEAD_ROOM = 6.0  # standard deviations of noise that a sum must have room for


@dataclass(frozen=True)
class Ring:
    """The integers modulo ``2 ** bits``, with the representatives around zero.

    Attributes:
        bits: 32 or 64.
    """

    bits: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise ValueError(f"aggregate.ring must be 32 or 64, got {self.bits}")

    @property
    def dtype(self) -> torch.dtype:
        """Of what travels: integers whose overflow is the ring's own."""
        return torch.int32 if self.bits == 32 else torch.int64

    def lift(self, total: Tensor) -> Tensor:
        """Representatives in ``[-2^(bits-1), 2^(bits-1))`` of int64 sums.

        >>> Ring(32).lift(torch.tensor([2**31, -1, 2**32 + 5])).tolist()
        [-2147483648, -1, 5]
        """
        if self.bits == 64:  # int64 wraps by itself
            return total
        half = 1 << (self.bits - 1)
        return (total + half) % (1 << self.bits) - half

    def check_headroom(self, largest: float, num_clients: int, deviation: float) -> None:
        """Raises ValueError unless sums of values up to ``largest`` and noise of this deviation do not wrap around."""
        wanted = largest * num_clients + _HEAD_ROOM * deviation
        if not wanted < 2 ** (self.bits - 1):
            raise ValueError(
                f"aggregate.ring must have room for the values and noise of {num_clients} clients, "
                f"{math.log2(wanted) + 1:.1f} bits, got {self.bits}; use aggregate.ring=64 or a larger privacy.grid"
            )


def rounded_bound(clip_norm: float, grid: float, num_values: int) -> float:
    """Bound on the norm of a clipped vector of so many values once it is rounded, in units of the grid.

    Rounding makes a vector longer; ``rounded`` rounds anew until it is within this bound, which is met with probability
    ``1 - exp(-1/2)`` at least each time.
    """
    worst = clip_norm + grid * math.sqrt(num_values)
    beta = math.exp(-0.5)
    likely = clip_norm**2 + grid**2 * num_values / 4
    likely += math.sqrt(2 * math.log(1 / beta)) * grid * (clip_norm + grid * math.sqrt(num_values) / 2)
    return min(worst, math.sqrt(likely)) / grid


def rounded(values: Tensor, grid: float, bound: float, noise: Noise, round: int, clients: Int64) -> Tensor:
    """Integers ``(clients, n)`` int64: values over the grid, rounded up or down at random, no longer than ``bound``.

    The mean is the value itself, up to what the bound cuts off. A vector that no try brings within the bound is
    rounded towards zero.

    Args:
        values: ``(clients, n)`` finite.
        grid: What an integer stands for.
        bound: From ``rounded_bound``.
        noise: Where the coins come from.
        round: The round.
        clients: ``(clients,)`` ids.
    """
    scaled = values.double() / grid
    low = scaled.floor()
    share, out = scaled - low, torch.empty(scaled.shape, dtype=torch.int64, device=values.device)
    todo = np.arange(len(clients))
    for attempt in range(_TRIES):
        bits = noise.bits("round", values.shape[1], round, clients[todo], attempt)
        coins = torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).to(values.device)
        tried = low[todo] + (coins < share[todo])
        short = (tried.square().sum(1).sqrt() <= bound).cpu().numpy()
        out[todo[short]] = tried[torch.from_numpy(short)].long()
        todo = todo[~short]
        if not len(todo):
            return out
    out[todo] = scaled[todo].trunc().long()
    return out
