"""Whether what is said with a probability of 0.8 is so in eight of ten cases, from counts in fine bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from fedemb.evaluate.fine_bins import FIXED, NUM_BINS, fine_bins, fixed
from fedemb.types import Float, Int64


def reliability_counts(log_odds: Float, hit: Int64) -> Int64:
    """Records, those of them that are so, and their summed probabilities (``fixed``), by bin: ``(3, NUM_BINS)``.

    Args:
        log_odds: ``(records,)`` of what is believed.
        hit: ``(records,)`` 0 or 1: whether it is so.
    """
    at, said = fine_bins(log_odds), fixed(expit(log_odds))
    sums = [np.bincount(at, values, minlength=NUM_BINS) for values in (np.ones(len(at)), hit, said)]
    return np.stack(sums).astype(np.int64)  # floats hold whole numbers exactly up to 2**53


def equal_mass(counts: Int64, num_groups: int) -> Int64:
    """Group ``(bins,)`` of each bin, so that groups hold as many records as they can without parting a bin.

    A bin goes to the group in which the middle one of its records would stand.

    >>> equal_mass(np.array([2, 0, 1, 1]), 2).tolist()
    [0, 1, 1, 1]
    """
    total = max(1, int(counts.sum()))
    middle = 2 * (np.cumsum(counts) - counts) + counts  # twice the rank
    return np.asarray(np.minimum(middle * num_groups // (2 * total), num_groups - 1), dtype=np.int64)


@dataclass(frozen=True)
class Curve:
    """A reliability diagram; groups without records are left out.

    Attributes:
        probability: ``(groups,)`` mean of what is said.
        frequency: ``(groups,)`` share of records where it is so.
        count: ``(groups,)`` records.
    """

    probability: Float
    frequency: Float
    count: Int64

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over records of the difference; NaN without records."""
        total = self.count.sum()
        gaps = np.abs(self.probability - self.frequency)
        return float((self.count * gaps).sum() / total) if total else float("nan")


def curve_of(counts: Int64, num_groups: int) -> Curve:
    """The reliability diagram with groups of equal mass.

    Args:
        counts: ``(3, NUM_BINS)`` from ``reliability_counts``, summed over clients.
        num_groups: How many groups.

    Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, eq. (3); groups of
    equal mass: Nguyen, O'Connor, "Posterior Calibration and Exploratory Analysis for Natural Language Processing
    Models", EMNLP 2015, section 3.
    """
    group = equal_mass(counts[0], num_groups)
    sums = np.stack([np.bincount(group, row, minlength=num_groups) for row in counts.astype(np.float64)])
    records, so, said = sums[:, sums[0] > 0]
    return Curve(said / FIXED / records, so / records, records.astype(np.int64))


def errors_per_client(log_odds: Float, hit: Int64, client: Int64, num_clients: int, num_groups: int) -> Float:
    """Expected calibration error ``(num_clients,)`` of each client's records by themselves; NaN without any.

    It is that of ``curve_of``. Of few records it is large by chance alone.

    Args:
        log_odds, hit: ``(records,)`` as in ``reliability_counts``.
        client: ``(records,)`` whose each is.
        num_clients: How many clients.
        num_groups: How many groups.
    """
    keys, key = np.unique(client * NUM_BINS + fine_bins(log_odds), return_inverse=True)
    owner, counts = keys // NUM_BINS, np.bincount(key, minlength=len(keys))
    sizes = np.bincount(client, minlength=num_clients)
    before = np.cumsum(counts) - counts - (np.cumsum(sizes) - sizes)[owner]
    group = np.minimum((2 * before + counts) * num_groups // (2 * sizes[owner]), num_groups - 1)
    at = (owner * num_groups + group)[key]
    gap = np.bincount(at, expit(log_odds) - hit, minlength=num_clients * num_groups)
    total = np.abs(gap).reshape(num_clients, num_groups).sum(1)
    return np.asarray(np.divide(total, sizes, out=np.full(num_clients, np.nan), where=sizes > 0))
