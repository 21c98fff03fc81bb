"""What uncertainty is good for: who abstains where it is high, and what it tells apart, from counts in fine bins."""

from __future__ import annotations

import numpy as np
from scipy.special import digamma

from fedemb.types import Float, Int64


def auroc(counts: Int64) -> float:
    """The probability that a positive scores above a negative, ties half; NaN if either is missing.

    Args:
        counts: ``(2, bins)`` of negatives and positives by score, lowest first.

    Reference: Hanley, McNeil, "The Meaning and Use of the Area under a Receiver Operating Characteristic Curve", 1982.

    >>> auroc(np.array([[1, 1, 0], [0, 1, 1]]))
    0.875
    """
    negative, positive = counts.astype(np.float64)
    pairs = negative.sum() * positive.sum()
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")


def area_under_risk(counts: Int64) -> float:
    """Mean over all coverages of the share of errors among those that are answered; NaN without records.

    The least uncertain are answered first. Records of one bin come in random order: this is the mean over orders.

    Args:
        counts: ``(2, bins)`` of right and wrong answers by uncertainty, lowest first.

    Reference: Geifman, Uziel, El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019,
    section 2.

    >>> round(area_under_risk(np.array([[1, 1, 0], [0, 0, 1]])), 4)
    0.1111
    """
    sizes = counts.sum(0)
    wrong, sizes = counts[1][sizes > 0].astype(np.float64), sizes[sizes > 0].astype(np.float64)
    if not len(sizes):
        return float("nan")
    rate, before, errors = wrong / sizes, np.cumsum(sizes) - sizes, np.cumsum(wrong) - wrong
    # sum over i = before + 1 .. before + size of (errors + (i - before) rate) / i
    harmonic = digamma(before + sizes + 1) - digamma(before + 1)
    return float((rate * sizes + (errors - before * rate) * harmonic).sum() / sizes.sum())


def risk_at(counts: Int64, coverages: Float) -> Float:
    """The share of errors among this share of records, the least uncertain ones, for each coverage in (0, 1].

    Args:
        counts: As in ``area_under_risk``.
        coverages: ``(points,)``.

    Reference: El-Yaniv, Wiener, "On the Foundations of Noise-free Selective Classification", 2010, section 2.

    >>> risk_at(np.array([[1, 1, 0], [0, 0, 2]]), np.array([0.5, 0.75, 1.0])).round(4).tolist()
    [0.0, 0.3333, 0.5]
    """
    answered = np.concatenate([[0], np.cumsum(counts.sum(0))])
    errors = np.concatenate([[0], np.cumsum(counts[1])])
    taken = np.asarray(coverages) * answered[-1]
    return np.asarray(np.interp(taken, answered, errors) / taken)
