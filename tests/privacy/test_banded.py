"""Correlated noise against the matrices that it stands for."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from fedemb.privacy.banded import (
    BandedNoise,
    best_bands,
    coefficients,
    effective_noise_multiplier,
    prefix_error,
    sensitivity,
)


def matrix(bands: int, rounds: int) -> np.ndarray:
    c = np.zeros(rounds)
    c[: min(bands, rounds)] = coefficients(bands)[:rounds]
    return np.array([[c[i - j] if i >= j else 0.0 for j in range(rounds)] for i in range(rounds)])


def test_coefficients_square_to_prefix_sums() -> None:
    whole = matrix(12, 12)
    np.testing.assert_allclose(whole @ whole, np.tril(np.ones((12, 12))), atol=1e-12)


@pytest.mark.parametrize("bands", [1, 2, 5, 20])
def test_noise_is_the_inverse_times_fresh_noise(bands: int) -> None:
    fresh = torch.randn(15, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    banded = BandedNoise(bands)
    found = torch.stack([banded.correlate("item", row) for row in fresh]).numpy()
    np.testing.assert_allclose(np.tensordot(matrix(bands, 15), found, 1), fresh.numpy(), atol=1e-12)
    assert sum(value.shape[0] for value in banded.state().values()) == min(bands - 1, 15)


def test_one_band_is_independent_noise() -> None:
    fresh = torch.randn(3)
    assert torch.equal(BandedNoise(1).correlate("item", fresh), fresh)


def test_tables_do_not_share_their_past() -> None:
    banded = BandedNoise(3)
    banded.correlate("item", torch.ones(2))
    assert torch.equal(banded.correlate("other", torch.ones(2)), torch.ones(2))


def test_it_goes_on_where_it_was_left() -> None:
    fresh = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    whole, first, second = BandedNoise(4), BandedNoise(4), BandedNoise(4)
    expected = [whole.correlate("item", row) for row in fresh]
    for row in fresh[:5]:
        first.correlate("item", row)
    second.restore(first.state())
    for row, wanted in zip(fresh[5:], expected[5:], strict=True):
        assert torch.equal(second.correlate("item", row), wanted)


@pytest.mark.parametrize(
    ("bands", "rounds", "separation"), [(1, 6, 1), (2, 7, 2), (3, 8, 3), (2, 9, 4), (4, 9, 4)]
)
def test_no_participation_pattern_moves_it_farther(bands: int, rounds: int, separation: int) -> None:
    """Every pattern, and random vectors of norm one in each of its rounds: never above, and nearly reached."""
    whole, rng = matrix(bands, rounds), np.random.default_rng(0)
    bound, largest = sensitivity(bands, rounds, separation), 0.0
    for count in range(1, -(-rounds // separation) + 1):
        for pattern in combinations(range(rounds), count):
            if any(b - a < separation for a, b in pairwise(pattern)):
                continue
            for trial in range(4):
                updates = rng.normal(size=(count, 3)) if trial else np.ones((count, 1))
                updates /= np.linalg.norm(updates, axis=1, keepdims=True)
                largest = max(largest, float(np.linalg.norm(whole[:, pattern] @ updates)))
    assert largest <= bound * (1 + 1e-12)
    assert largest > 0.85 * bound


def test_bands_must_fit_between_participations() -> None:
    with pytest.raises(ValueError, match=r"privacy\.bands must be in 1 \.\. 3.*got 4"):
        sensitivity(4, 10, 3)


def test_independent_noise_is_a_special_case() -> None:
    assert effective_noise_multiplier(2.0, 1, 16, 1) == pytest.approx(2.0 / 4)
    assert effective_noise_multiplier(2.0, 1, 16, 8) == pytest.approx(2.0 / 2**0.5)


def test_errors_are_those_of_the_matrices_and_smaller_than_of_independent_noise() -> None:
    bands, rounds, separation = 8, 40, 8
    prefix = np.tril(np.ones((rounds, rounds)))
    noise = prefix @ np.linalg.inv(matrix(bands, rounds))
    expected = sensitivity(bands, rounds, separation) * np.sqrt((noise**2).sum() / rounds)
    assert prefix_error(bands, rounds, separation) == pytest.approx(expected)
    assert best_bands(512, 32) > 1
    assert prefix_error(best_bands(512, 32), 512, 32) < 0.5 * prefix_error(1, 512, 32)
    assert best_bands(10, 1) == 1
