"""Rounding without a bias, and sums that come back from the ring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedemb.aggregate.secure.ring import Ring, rounded, rounded_bound
from fedemb.privacy.noise import Noise


@given(st.sampled_from([32, 64]), st.data())
def test_signed_sums_come_back(bits: int, data: st.DataObject) -> None:
    half = 2 ** (bits - 1)
    values = data.draw(st.lists(st.integers(-half // 20, half // 20), min_size=1, max_size=19))
    ring = Ring(bits)
    sent = torch.tensor(values, dtype=torch.int64).to(ring.dtype)
    assert int(ring.lift(sent.long().sum())) == sum(values)


def test_masks_cancel_through_the_overflow() -> None:
    for bits in (32, 64):
        ring, rng = Ring(bits), np.random.default_rng(0)
        mask = torch.from_numpy(rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 1000)).to(ring.dtype)
        value = torch.arange(1000).to(ring.dtype)
        assert torch.equal(ring.lift((value + mask).long() + (-mask).long()), torch.arange(1000))


def test_headroom_counts_values_and_noise() -> None:
    Ring(32).check_headroom(2**20, 1000, 2**20)
    for value_bits, clients, fits in (
        (16, 100, True),
        (20, 1000, True),
        (20, 10_000, False),
    ):  # 23, 30 and 34 bits
        if fits:
            Ring(32).check_headroom(2**value_bits / 2, clients, 0.0)
            continue
        with pytest.raises(ValueError, match=r"aggregate\.ring=64"):
            Ring(32).check_headroom(2**value_bits / 2, clients, 0.0)
    with pytest.raises(ValueError, match=r"aggregate\.ring=64"):
        Ring(32).check_headroom(2**20, 2100, 0.0)
    with pytest.raises(ValueError, match=r"aggregate\.ring=64"):
        Ring(32).check_headroom(1.0, 1, 2**29)
    Ring(64).check_headroom(2**20, 10_000, 2**30)
    with pytest.raises(ValueError, match="32 or 64"):
        Ring(16)


def test_rounding_has_no_bias_and_stays_within_the_bound() -> None:
    values = torch.tensor([[0.3, -0.7, 0.1, 0.0, 0.55]], dtype=torch.float64).repeat(20_000, 1)
    clip_norm, grid = float(values[0].norm()), 0.25
    bound = rounded_bound(clip_norm, grid, 5)
    found = rounded(values, grid, 1e9, Noise(3), 1, np.arange(20_000))
    np.testing.assert_allclose(found.double().mean(0) * grid, values[0], atol=4 * grid / 2 / 20_000**0.5)
    assert (found.double() * grid - values).abs().max() < grid
    bounded = rounded(values, grid, bound, Noise(3), 1, np.arange(20_000))
    assert (bounded.double().norm(dim=1) <= bound).all()
    assert bound * grid < clip_norm + grid * 5**0.5
    assert not bounded[:, 3].any()  # what is zero stays zero


def test_a_bound_that_no_try_meets_rounds_towards_zero() -> None:
    found = rounded(torch.full((1, 4), 0.9, dtype=torch.float64), 1.0, 0.5, Noise(3), 1, np.arange(1))
    assert not found.any()


@pytest.mark.parametrize("num_values", [10, 1000, 100_000])
def test_most_roundings_meet_the_bound_at_once(num_values: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.functional.normalize(
        torch.randn(20, num_values, generator=generator, dtype=torch.float64)
    )
    grid = 1e-3
    found = rounded(values, grid, 1e18, Noise(3), 1, np.arange(20))
    assert (found.double().norm(dim=1) <= rounded_bound(1.0, grid, num_values)).double().mean() >= 0.6
