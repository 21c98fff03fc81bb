"""Integer noise whose shares add up: the difference of two Poisson variables.

Sums of independent Skellam variables are Skellam again, with the sum of the variances, which rounded Gaussians and even
discrete ones are not: so every client adds a share, and the sum has exactly the noise that is accounted for.

Reference: Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ive

from fedemb.seeds import UInt64
from fedemb.types import Int64

_REACH = 12.0  # standard deviations that are tabulated; beyond them lies less than 1e-31
_LARGEST_VARIANCE = 2.0**40
_PARTS = 1 << 16


@lru_cache(maxsize=8)
def _guide(variance: float) -> npt.NDArray[np.int64]:
    """Where each 65,536th of the numbers begins among the cumulative ones: a search has few steps from there."""
    starts = np.arange(_PARTS + 1) / _PARTS
    return np.searchsorted(_cumulative(variance), starts).astype(np.int64)


@lru_cache(maxsize=8)
def _cumulative(variance: float) -> npt.NDArray[np.float64]:
    """Cumulative distribution over the integers ``-reach .. reach``, by symmetry precise in both tails."""
    reach = math.ceil(_REACH * math.sqrt(variance) + 40)
    pmf = ive(np.arange(reach + 1), variance)  # exp(-variance) I_k(variance), of two means variance / 2
    tail = np.cumsum(pmf[::-1])[::-1]  # P(X >= k), summed from the smallest
    lower = tail[1:][::-1]  # P(X <= -k), ascending
    upper = 1.0 - np.append(tail[1:], 0.0)  # P(X <= k)
    return np.asarray(np.minimum(np.concatenate((lower, upper)), 1.0), dtype=np.float64)


def skellam_of(numbers: UInt64, variance: float) -> Int64:
    """Skellam integers of this variance, from as many uniform 64-bit numbers; exact up to 2^-53 in probability.

    Args:
        numbers: Of any shape.
        variance: At least 0.

    Raises:
        ValueError: If the variance is too large to be tabulated.
    """
    if not 0 <= variance <= _LARGEST_VARIANCE:
        raise ValueError(
            f"Skellam noise must have a variance of at most 2^40 in units of the grid, got {variance:g}; use a larger "
            "privacy.grid"
        )
    if variance == 0:
        return np.zeros(numbers.shape, dtype=np.int64)
    table = _cumulative(float(variance))
    guide, flat = _guide(float(variance)), numbers.ravel()
    uniform = ((flat >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    part = (flat >> np.uint64(48)).astype(np.int64)
    found = guide[part]
    open_ = np.flatnonzero(guide[part + 1] > found)
    while len(open_):  # the first one that is not below; parts are narrow but for the tails
        open_ = open_[table[found[open_]] < uniform[open_]]
        found[open_] += 1
    return np.asarray(found - (len(table) - 1) // 2, dtype=np.int64).reshape(numbers.shape)
