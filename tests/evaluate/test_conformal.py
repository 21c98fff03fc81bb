"""evaluate/conformal.py: coverage on exchangeable data, thresholds by a loop, too few records."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, logit

from fedemb.evaluate.conformal import common_threshold, label_log_odds, own_thresholds, rank_of
from fedemb.evaluate.fine_bins import NUM_BINS, counted, fine_bins


def drawn(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities that are wrong in every way, and labels."""
    scores = rng.normal(size=(num, 5))
    truth = (scores + rng.gumbel(size=scores.shape)).argmax(1)
    return log_softmax(scores * 4 + [0, 0, 1, 0, 2], axis=1), truth


def test_log_odds_of_labels() -> None:
    log_p, _ = drawn(np.random.default_rng(0), 30)
    assert label_log_odds(log_p) == pytest.approx(logit(np.exp(log_p)), rel=1e-6)
    assert label_log_odds(np.zeros((2, 1))).min() > 1000


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_coverage_holds_on_exchangeable_records(alpha: float) -> None:
    rng = np.random.default_rng(1)
    common, own = [], []
    for _ in range(200):
        log_p, truth = drawn(rng, 150)
        odds = label_log_odds(log_p)
        true = odds[np.arange(150), truth]
        seen, fresh = slice(0, 50), slice(50, 150)
        bin = common_threshold(counted(true[seen], np.zeros(50, int), 1)[0], alpha)
        common.append((fine_bins(true[fresh]) >= bin).mean())
        threshold = own_thresholds(true[seen], np.zeros(50, int), 1, alpha)[0]
        own.append((true[fresh] >= threshold).mean())
    error = 3 * np.std(own) / math.sqrt(200)
    assert 1 - alpha - error < np.mean(own) < 1 - alpha + 1 / 51 + error
    assert np.mean(own) <= np.mean(common) < np.mean(own) + 0.01


def test_thresholds_by_a_loop() -> None:
    rng = np.random.default_rng(2)
    odds, client = rng.normal(size=60) * 3, np.sort(rng.integers(0, 4, 60))
    client[client == 1] = 2
    found = own_thresholds(odds, client, 5, 0.1)
    for one in (0, 2, 3):
        mine = sorted(odds[client == one], reverse=True)
        rank = math.ceil((len(mine) + 1) * 0.9)
        assert found[one] == (mine[rank - 1] if rank <= len(mine) else -np.inf)
    assert np.isneginf(found[[1, 4]]).all()
    whole = sorted(odds, reverse=True)
    bin = common_threshold(counted(odds, np.zeros(60, int), 1)[0], 0.1)
    assert bin == fine_bins(np.array(whole))[math.ceil(61 * 0.9) - 1]


def test_too_few_records_hold_everything() -> None:
    assert rank_of(9, 0.1) == 9
    assert common_threshold(np.zeros(NUM_BINS, dtype=np.int64), 0.1) == 0
    eight = np.zeros(NUM_BINS, dtype=np.int64)
    eight[3000] = 8
    assert common_threshold(eight, 0.1) == 0
    eight[3000] = 9
    assert common_threshold(eight, 0.1) == 3000
