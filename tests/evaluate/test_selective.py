"""evaluate/selective.py against loops over pairs and orders."""

from __future__ import annotations

import numpy as np
import pytest

from fedemb.evaluate.fine_bins import counted
from fedemb.evaluate.selective import area_under_risk, auroc, risk_at


def test_auroc_by_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(-4, 9, 200) / 4, rng.random(200) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive].tolist() for b in scores[~positive].tolist()]
    assert auroc(counted(scores, positive)) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(counted(scores, np.ones(200, bool))))


@pytest.mark.parametrize("tied", [False, True])
def test_risk_by_many_orders(tied: bool) -> None:
    rng = np.random.default_rng(1)
    uncertainty = rng.integers(0, 4, 60).astype(float) if tied else rng.permutation(60) + 1.0
    wrong = rng.random(60) < 0.1 + 0.5 * uncertainty / uncertainty.max()
    areas = []
    for _ in range(4000 if tied else 1):
        order = np.lexsort((rng.random(60), uncertainty))
        areas.append(np.mean(np.cumsum(wrong[order]) / np.arange(1, 61)))
    counts = counted(uncertainty, wrong)
    assert area_under_risk(counts) == pytest.approx(np.mean(areas), abs=2e-3 if tied else 1e-12)
    if not tied:
        expected = np.cumsum(wrong[np.argsort(uncertainty)]) / np.arange(1, 61)
        assert risk_at(counts, np.arange(1, 61) / 60) == pytest.approx(expected)
    assert risk_at(counts, np.ones(1))[0] == pytest.approx(wrong.mean())


def test_nobody() -> None:
    assert np.isnan(area_under_risk(np.zeros((2, 8), dtype=np.int64)))


def test_better_uncertainty_has_less_risk() -> None:
    wrong = np.arange(100) >= 80
    good, bad = (area_under_risk(counted(u.astype(float), wrong)) for u in (np.arange(100), -np.arange(100)))
    assert good < 0.03 < 0.2 < bad
