"""How well a score tells those who are from those who are not."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedemb.evaluate.selective import auroc

Float64 = npt.NDArray[np.float64]


def auc(positives: Float64, negatives: Float64) -> float:
    """Probability that a positive has a higher score than a negative, ties half; NaN if either is missing.

    >>> auc(np.array([2.0, 1.0]), np.array([0.0, 1.0]))
    0.875
    """
    scores = np.concatenate((positives, negatives))
    _, at = np.unique(scores, return_inverse=True)
    counts = np.zeros((2, int(at.max(initial=-1)) + 1), dtype=np.int64)
    np.add.at(counts, (np.repeat([1, 0], [len(positives), len(negatives)]), at), 1)
    return auroc(counts)


def true_positive_rate(positives: Float64, negatives: Float64, false_positive_rate: float = 0.01) -> float:
    """Share of positives above the score that so many negatives exceed.

    Reference: Carlini, Chien, Nasr, Song, Terzis, Tramèr, "Membership Inference Attacks From First Principles", 2022:
    an attack that is sure of a few is worse than its AUC says.

    >>> true_positive_rate(np.array([3.0, 5.0]), np.arange(5.0), 0.2)
    0.5
    """
    if not len(positives) or not len(negatives):
        return float("nan")
    allowed = math.floor(false_positive_rate * len(negatives))
    threshold = np.sort(negatives)[::-1][min(allowed, len(negatives) - 1)]
    return float((positives > threshold).mean())
