"""Bounds of one run are bounds: seldom above the truth, and a good part of it."""

from __future__ import annotations

import numpy as np
import pytest

from fedemb.privacy.gaussian_mechanism import gaussian_epsilon
from fedemb.privacy.one_run import _p_value, one_run_bound, one_run_gaussian_bound

DELTA = 1e-5


def gaussian(mu: float, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    return rng.normal(size=canaries) + mu * included, included


def test_p_values_are_those_of_binomial_guesses() -> None:
    rng = np.random.default_rng(0)
    rate = 1 / (1 + np.exp(-1.0))
    right = rng.binomial(100, rate, 20_000)
    for v in (70, 75, 80, 85):
        assert _p_value(100, 100, v, 1.0, 0.0) == pytest.approx((right >= v).mean(), abs=0.01)


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_they_are_seldom_above_the_truth(mu: float) -> None:
    truth = gaussian_epsilon(mu, DELTA)
    for bound in (one_run_bound, one_run_gaussian_bound):
        found = [bound(*gaussian(mu, 400, seed), DELTA) for seed in range(60)]
        assert np.mean(np.array(found) > truth) <= 0.05


def test_pure_randomised_response_is_covered() -> None:
    above = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        included = rng.random(500) < 0.5
        honest = rng.random(500) < 1 / (1 + np.exp(-1.0))
        scores = np.where(honest, included, ~included) + 0.001 * rng.random(500)
        above += one_run_bound(scores, included, 0.0) > 1.0
    assert above <= 8


def test_they_find_a_good_part() -> None:
    for mu, plain, gaussian_part in ((2.0, 0.12, 0.3), (4.0, 0.15, 0.33)):
        truth = gaussian_epsilon(mu, DELTA)
        first = np.mean([one_run_bound(*gaussian(mu, 1000, seed), DELTA) for seed in range(5)])
        second = np.mean([one_run_gaussian_bound(*gaussian(mu, 1000, seed), DELTA) for seed in range(5)])
        assert first > plain * truth
        assert second > max(first, gaussian_part * truth)


def test_scores_that_tell_nothing_refute_nothing() -> None:
    scores, included = gaussian(0.0, 1000, 3)
    assert one_run_bound(scores, included, DELTA) < 0.5
    assert one_run_gaussian_bound(-scores, included, DELTA) < 1.0


def test_no_noise_is_refuted_as_far_as_canaries_reach() -> None:
    included = np.arange(1000) % 2 == 0
    assert one_run_bound(included.astype(float), included, DELTA) > 4
