"""Skellam noise against its distribution, and shares against their sum."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedemb.privacy.noise import system_bits
from fedemb.privacy.skellam import _cumulative, skellam_of


def chi_square(found: np.ndarray, variance: float) -> float:
    edges = np.unique(stats.skellam.ppf(np.linspace(0.02, 0.98, 40), variance / 2, variance / 2)).astype(int)
    bounds = np.concatenate(([-np.inf], edges + 0.5, [np.inf]))
    expected = np.diff(np.concatenate(([0.0], stats.skellam.cdf(edges, variance / 2, variance / 2), [1.0])))
    return float(stats.chisquare(np.histogram(found, bounds)[0], expected * len(found)).pvalue)


@pytest.mark.parametrize("variance", [0.3, 4.0, 1000.0, 3.0e5])
def test_it_has_the_distribution(variance: float) -> None:
    found = skellam_of(system_bits(200_000), variance)
    assert abs(found.mean()) < 5 * np.sqrt(variance / len(found))
    assert found.var() == pytest.approx(variance, rel=0.02)
    assert chi_square(found, variance) > 1e-4


def test_a_wrong_variance_would_be_seen() -> None:
    assert chi_square(skellam_of(system_bits(200_000), 1040.0), 1000.0) < 1e-4


def test_shares_add_up_to_the_whole() -> None:
    shares = skellam_of(system_bits(7 * 200_000), 100.0 / 7).reshape(7, -1)
    assert chi_square(shares.sum(0), 100.0) > 1e-4


@pytest.mark.parametrize("variance", [0.01, 7.0, 8.0e5])
def test_the_search_finds_the_first_one_that_is_not_below(variance: float) -> None:
    numbers = np.concatenate(
        (system_bits(50_000), np.array([0, 1, 2**48, 2**64 - 2**48, 2**64 - 1], dtype=np.uint64))
    )
    table = _cumulative(variance)
    uniform = ((numbers >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    expected = np.searchsorted(table, uniform) - (len(table) - 1) // 2
    assert np.array_equal(skellam_of(numbers, variance), expected)


def test_extreme_numbers_are_in_range() -> None:
    ends = skellam_of(np.array([0, 2**64 - 1], dtype=np.uint64), 100.0)
    assert -ends[0] == ends[1]
    assert 70 < ends[1] < 100


def test_no_variance_is_no_noise_and_too_much_is_refused() -> None:
    assert not skellam_of(system_bits(10), 0.0).any()
    with pytest.raises(ValueError, match=r"2\^40.*privacy\.grid"):
        skellam_of(system_bits(10), 2.0**41)
