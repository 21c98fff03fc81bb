"""Protecting noise: normally distributed, never twice the same, and reproducible only where that is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fedemb.privacy.noise import Noise, normal_of, system_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_standard_normal(dtype: torch.dtype) -> None:
    found = Noise(7).normal("test", 1000, dtype, np.arange(1000)).double().numpy().ravel()
    assert found.dtype == np.float64
    assert abs(found.mean()) < 4e-3
    assert abs(found.var() - 1) < 6e-3
    assert abs(stats.kurtosis(found)) < 0.02
    assert stats.kstest(found, "norm").pvalue > 1e-3
    for bound in (3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * len(found)
        assert abs((np.abs(found) > bound).sum() - expected) < 4 * np.sqrt(expected)


def test_the_two_of_a_pair_are_independent() -> None:
    pairs = normal_of(system_bits(200_000)[:, None], torch.float64).numpy()
    assert pairs.shape == (200_000, 2)
    for one, other in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 0] ** 2, pairs[:, 1] ** 2)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.012
    quadrants = np.bincount((pairs[:, 0] > 0) * 2 + (pairs[:, 1] > 0), minlength=4)
    assert stats.chisquare(quadrants).pvalue > 1e-3


def test_tails_reach_beyond_seven_deviations() -> None:
    smallest = np.array([[np.uint64(0)]])
    found = normal_of(smallest, torch.float32)[0]
    assert 7.3 < float(found.norm()) < 7.5
    coarse = np.array([[np.uint64(128)]])  # from here on, the bits of the radius alone
    assert 5.7 < float(normal_of(coarse, torch.float64)[0].norm()) < 6.7


def test_system_bytes_are_uniform_and_never_the_same() -> None:
    one, other = system_bits(100_003), system_bits(100_003)
    assert not (one == other).any()
    counts = np.bincount(one.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert len(np.unique(one)) == len(one)  # no block of the keystream is used twice


def test_a_seeded_row_does_not_depend_on_its_company() -> None:
    rows = np.arange(10)
    together = Noise(3).normal("table", 5, torch.float64, 2, rows)
    assert together.shape == (10, 5)
    assert torch.equal(together[4:6], Noise(3).normal("table", 5, torch.float64, 2, rows[4:6]))
    for other in (
        Noise(4).normal("table", 5, torch.float64, 2, rows),
        Noise(3).normal("table", 5, torch.float64, 3, rows),
        Noise(3).normal("other", 5, torch.float64, 2, rows),
    ):
        assert not torch.isclose(together, other).any()


def test_only_a_seeded_one_is_reproducible() -> None:
    assert Noise(3).reproducible
    assert Noise(3).coins(9) == 9
    system = Noise()
    assert not system.reproducible
    assert system.coins(9) != system.coins(9)
    one, other = (system.normal("table", 4, torch.float32, np.arange(3)) for _ in range(2))
    assert one.shape == (3, 4)
    assert not (one == other).any()
