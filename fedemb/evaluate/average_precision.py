"""Average precision from counts of scores in bins, which add up over clients: nobody sends a score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NUM_BINS = 1024
_REACH = 10.0  # log odds beyond this are one bin
Int64 = npt.NDArray[np.int64]


def binned(scores: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> Int64:
    """Counts ``(labels, 2, NUM_BINS)`` of records by label, whether they have it, and score, lowest first.

    Args:
        scores: ``(records, labels)`` log odds; a bin is 0.02 wide. NaN is the lowest.
        truth: ``(records, labels)``.
    """
    num_labels = scores.shape[1]
    place = (np.nan_to_num(scores, nan=-_REACH) + _REACH) * (NUM_BINS / (2 * _REACH))
    bins = np.clip(place, 0, NUM_BINS - 1).astype(np.int64)
    at = (np.arange(num_labels) * 2 + truth) * NUM_BINS + bins
    return np.bincount(at.ravel(), minlength=num_labels * 2 * NUM_BINS).reshape(num_labels, 2, NUM_BINS)


def average_precision(counts: Int64) -> npt.NDArray[np.float64]:
    """Average precision ``(labels,)``: precision at each bin, weighted by the recall that it adds; NaN without truths.

    Records of one bin are tied: all of them count as found together.

    Args:
        counts: ``(labels, 2, bins)`` from ``binned``.

    Reference: Zhu, "Recall, Precision and Average Precision", 2004; the sum without interpolation of scikit-learn's
    ``average_precision_score``.

    >>> scores, truth = np.array([[3.0], [2.0], [1.0]]), np.array([[True], [False], [True]])
    >>> average_precision(binned(scores, truth)).round(4).tolist()
    [0.8333]
    """
    found = counts[:, :, ::-1].cumsum(-1)
    hits, all_found = found[:, 1].astype(np.float64), found.sum(1)
    precision = np.divide(hits, all_found, out=np.zeros_like(hits), where=all_found > 0)
    gained = (counts[:, 1, ::-1] * precision).sum(-1)
    total = hits[:, -1]
    return np.asarray(np.divide(gained, total, out=np.full(len(total), np.nan), where=total > 0))
