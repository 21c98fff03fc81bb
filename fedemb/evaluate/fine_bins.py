"""Fine bins of scores of any size: what clients add up in place of scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedemb.types import Float, Int64

NUM_BINS = 4095  # odd: zero is in the middle of one
REACH = 1e4  # scores beyond are in the outermost bins
_UNIT = 1e-4  # around zero bins are this fine; further out their width is a share of the score
_SPAN = float(np.arcsinh(REACH / _UNIT))
FIXED = float(1 << 24)  # sums travel as integers, so many to 1: exact in whatever order they are added


def fine_bins(scores: Float) -> Int64:
    """The bin ``(...)`` of every score, lowest first; a hundredth of a score wide, whatever its size.

    >>> fine_bins(np.array([-np.inf, 0.0, 1.0, 1.01, np.inf])).tolist()
    [0, 2047, 3108, 3109, 4094]

    Raises:
        ValueError: If a score is no number.
    """
    if np.isnan(scores).any():
        raise ValueError(
            f"scores must be numbers, got NaN in {int(np.isnan(scores).sum())} of {scores.size}; the model diverged"
        )
    place = np.arcsinh(np.clip(scores, -REACH, REACH) / _UNIT)
    return np.asarray(np.clip((place + _SPAN) * (NUM_BINS / (2 * _SPAN)), 0, NUM_BINS - 1), dtype=np.int64)


def centres() -> npt.NDArray[np.float64]:
    """The score ``(NUM_BINS,)`` in the middle of each bin."""
    places = (np.arange(NUM_BINS) + 0.5) * (2 * _SPAN / NUM_BINS) - _SPAN
    return np.asarray(_UNIT * np.sinh(places))


def counted(scores: Float, groups: Int64 | npt.NDArray[np.bool_], num_groups: int = 2) -> Int64:
    """How many scores of each group are in each bin ``(num_groups, NUM_BINS)``.

    Args:
        scores: ``(records,)``.
        groups: ``(records,)``.
        num_groups: How many there are.
    """
    at = np.asarray(groups, dtype=np.int64) * NUM_BINS + fine_bins(scores)
    return np.bincount(at, minlength=num_groups * NUM_BINS).reshape(num_groups, NUM_BINS)


def fixed(values: Float) -> Int64:
    """Values as integers, ``FIXED`` to 1."""
    return np.asarray(np.rint(values * FIXED), dtype=np.int64)
