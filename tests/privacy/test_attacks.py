"""Scores of attacks, against counting pairs."""

from __future__ import annotations

import numpy as np
import pytest

from fedemb.privacy.attacks import auc, true_positive_rate


def test_auc_counts_pairs_and_half_of_the_ties() -> None:
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 5, 40).astype(float), rng.integers(0, 4, 30).astype(float)
    pairs = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    assert auc(positives, negatives) == pytest.approx(pairs.mean())
    assert np.isnan(auc(positives, negatives[:0]))
    assert np.isnan(auc(positives[:0], negatives))


def test_few_false_alarms() -> None:
    negatives = np.arange(1000.0)
    assert true_positive_rate(np.array([995.0, 989.5, 5.0, 2000.0]), negatives, 0.01) == 0.75
    assert true_positive_rate(negatives, negatives, 0.01) == pytest.approx(0.01)
    assert np.isnan(true_positive_rate(negatives, negatives[:0]))
