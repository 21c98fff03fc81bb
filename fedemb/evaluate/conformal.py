"""Sets of labels that hold the true one with a probability that is fixed beforehand, whatever the model is worth.

Labels whose log odds reach a threshold are in the set. The threshold is an order statistic of the true labels' log odds
on validation records: what does not conform, 1 - p(true label), falls as they rise.

Reference: Papadopoulos et al., "Inductive Confidence Machines for Regression", 2002; Sadinle, Lei, Wasserman, "Least
Ambiguous Set-Valued Classifiers with Bounded Error Levels", 2019; Angelopoulos, Bates, "A Gentle Introduction to
Conformal Prediction and Distribution-Free Uncertainty Quantification", 2021, section 1.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from fedemb.evaluate.fine_bins import REACH
from fedemb.types import Float, Int64


def rank_of(num_records: Int64 | int, alpha: float) -> Int64:
    """Which of the validation records, the best one first, sets the threshold; more than there are: none does.

    >>> rank_of(np.array([0, 9, 19]), 0.1).tolist()
    [1, 9, 18]
    """
    return np.asarray(np.ceil(np.round((np.asarray(num_records) + 1) * (1 - alpha), 9)), dtype=np.int64)


def label_log_odds(log_p: Float) -> Float:
    """Log odds ``(records, labels)`` of each label against all others, at most ``REACH`` away from zero.

    Args:
        log_p: ``(records, labels)`` log probabilities.
    """
    lines, top = np.arange(len(log_p)), log_p.argmax(1)
    with np.errstate(divide="ignore"):
        odds = log_p - np.log1p(-np.minimum(np.exp(log_p), 1.0))
    others = log_p.copy()
    others[lines, top] = -np.inf  # near 1, the rest has to be added up
    rest = logsumexp(others, axis=1) if others.shape[1] > 1 else np.full(len(log_p), -np.inf)
    odds[lines, top] = log_p[lines, top] - rest
    return np.asarray(np.clip(odds, -REACH, REACH))


def common_threshold(counts: Int64, alpha: float) -> int:
    """The lowest bin whose labels are in a set, for all clients; 0, where all labels are, with too few records.

    Whole bins: coverage may be higher than asked for, by less than a bin holds, and never lower.

    Args:
        counts: ``(bins,)`` of validation records by their true label's log odds, lowest first, summed over clients.
        alpha: One minus the coverage.
    """
    rank, reached = int(rank_of(int(counts.sum()), alpha)), np.cumsum(counts[::-1])
    place = int(np.searchsorted(reached, rank))
    return len(counts) - 1 - place if place < len(counts) else 0


def own_thresholds(log_odds: Float, client: Int64, num_clients: int, alpha: float) -> Float:
    """The threshold ``(num_clients,)`` of each client, from its own records; -inf with too few.

    Args:
        log_odds: ``(records,)`` of the true labels of validation records.
        client: ``(records,)`` whose each is.
        num_clients: How many clients.
        alpha: One minus the coverage.
    """
    sizes = np.bincount(client, minlength=num_clients)
    order, ends = np.lexsort((log_odds, client)), np.cumsum(sizes)
    rank = rank_of(sizes, alpha)
    enough = rank <= sizes
    found = np.full(num_clients, -np.inf)
    found[enough] = log_odds[order[(ends - rank)[enough]]]
    return found


def held(log_odds: Float | Int64, truth: Int64, thresholds: Float | Int64) -> tuple[Float, Float]:
    """Whether the set of each record holds its label, and how many labels that has: ``(records,)`` each.

    Args:
        log_odds: ``(records, labels)``, or their bins.
        truth: ``(records,)``.
        thresholds: ``(records,)``, or one for all.
    """
    inside = log_odds >= np.asarray(thresholds).reshape(-1, 1)
    covered = np.take_along_axis(inside, truth[:, None], axis=1)[:, 0]
    return covered.astype(np.float64), inside.sum(1).astype(np.float64)
