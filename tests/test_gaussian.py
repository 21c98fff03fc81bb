"""The space of Gaussian rows: maps that are inverse, natural parameters that add up, the natural gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fedemb.errors import SettingError
from fedemb.gaussian import Gaussian, split

SPACE = Gaussian(0.5, floor=0.1, dtype=torch.float64)


def points(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    precision = 0.5 + torch.rand(count, 3, dtype=torch.float64, generator=generator)
    return torch.cat((mean, precision), 1)


def test_exp_and_log_are_inverse() -> None:
    x, y = points(50), points(50, 1)
    torch.testing.assert_close(SPACE.exp(x, SPACE.log(x, y)), y)
    tangent = SPACE.log(x, y)
    torch.testing.assert_close(SPACE.log(x, SPACE.exp(x, tangent)), tangent)
    assert SPACE.exp(x, torch.zeros(6, dtype=torch.float64)).equal(x)


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_tangents_of_several_clients_add_up_as_natural_parameters(seed: int, clients: int) -> None:
    """L = L0 + sum(Li - L0) and L m = L0 m0 + sum(Li mi - L0 m0)."""
    received, trained = points(1, seed % 1000)[0], points(clients, seed % 1000 + 1)
    trained[:, 3:] += received[3:]  # evidence is positive
    found = SPACE.exp(received, SPACE.log(received, trained).sum(0))
    natural = SPACE.centroid_terms(received) + (
        SPACE.centroid_terms(trained) - SPACE.centroid_terms(received)
    ).sum(0)
    torch.testing.assert_close(SPACE.centroid_terms(found), natural)


def test_posteriors_multiplied_count_the_prior_once_for_each_client() -> None:
    """The wrong way: five clients who saw nothing are five times as sure as the prior, instead of as sure."""
    prior = SPACE.origin(6)
    posteriors = prior.expand(5, -1)
    wrong = SPACE.centroid_from_sum(SPACE.centroid_terms(posteriors).sum(0))
    assert split(wrong)[1].tolist() == [2.5] * 3
    assert SPACE.exp(prior, SPACE.log(prior, posteriors).sum(0)).equal(prior)


def test_a_mean_of_moments_forgets_how_much_was_seen() -> None:
    """Clients that each double the precision: together they know six times as much, their averaged moments twice."""
    prior = SPACE.origin(2)
    own = torch.tensor([[0.0, 1.0]] * 5, dtype=torch.float64)
    together = SPACE.exp(prior, SPACE.log(prior, own).sum(0))
    averaged = SPACE.from_ball(SPACE.to_ball(own).mean(0))
    assert float(together[1]) == pytest.approx(3.0)
    assert float(averaged[1]) == pytest.approx(1.0)


def test_natural_gradient_is_the_one_by_expectation_parameters() -> None:
    """The inverse Fisher matrix in (mean, variance) is diag(v, 2 v^2); a tangent's first part is precision times the
    step of the mean, its second the step of the precision, -step of the variance / v^2."""
    x = points(20)
    gradient = points(20, 3) - 1
    mean_step, variance_gradient = gradient[:, :3], -x[:, 3:].square() * gradient[:, 3:]
    variance = 1 / x[:, 3:]
    by_mean, by_variance = variance * mean_step, 2 * variance.square() * variance_gradient
    expected = torch.cat((x[:, 3:] * by_mean, -by_variance / variance.square()), 1)
    torch.testing.assert_close(SPACE.riemannian_gradient(x, gradient), expected)


def test_steps_along_the_natural_gradient_of_a_divergence_reach_its_minimum_at_once() -> None:
    """KL(q || p) has the natural gradient eta(q) - eta(p): one step of size 1 is p, up to the mean's frame."""
    x, target = points(10), points(10, 1)
    goal = Normal(target[:, :3], target[:, 3:].rsqrt())
    row = x.clone().requires_grad_()
    own = Normal(row[:, :3], row[:, 3:].rsqrt())
    (gradient,) = torch.autograd.grad(kl_divergence(own, goal).sum(), row)
    torch.testing.assert_close(SPACE.exp(x, -SPACE.riemannian_gradient(x, gradient)), target)


def test_precisions_stay_at_the_floor() -> None:
    x = SPACE.origin(2)
    end = SPACE.exp(x, torch.tensor([1.0, -9.0], dtype=torch.float64))
    assert end.tolist() == pytest.approx([20.0, 0.05])
    assert SPACE.project(torch.tensor([1.0, -3.0], dtype=torch.float64)).tolist() == pytest.approx(
        [1.0, 0.05]
    )
    assert SPACE.project(torch.tensor([1.0, torch.nan], dtype=torch.float64)).isnan().any()


def test_distance_is_that_of_wasserstein() -> None:
    x, y = torch.tensor([[1.0, 4.0]]), torch.tensor([[4.0, 1.0]])  # deviations 1/2 and 1
    assert float(SPACE.distance(x, y)) == pytest.approx(9.25**0.5)
    assert float(SPACE.distance(x, x)) == 0


def test_transport_keeps_the_change_of_natural_parameters() -> None:
    x, y, end = points(5), points(5, 1), points(5, 2)
    step = SPACE.log(x, end)
    moved = SPACE.exp(y, SPACE.transport(x, y, step))
    change = SPACE.centroid_terms(end) - SPACE.centroid_terms(x)
    kept = split(moved)[1] > 0.05 + 1e-9
    natural = SPACE.centroid_terms(moved) - SPACE.centroid_terms(y)
    torch.testing.assert_close(natural[:, :3][kept], change[:, :3][kept])


def test_dtype_and_shape_are_kept() -> None:
    space = Gaussian()
    x = space.origin(4)
    assert x.dtype == torch.float32
    for found in (
        space.exp(x, torch.zeros(7, 4)),
        space.log(x, x.expand(7, 4)),
        space.project(x.expand(7, 4)),
    ):
        assert found.shape == (7, 4)
        assert found.dtype == torch.float32
    assert space.distance(x, x.expand(7, 4)).shape == (7,)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(SettingError, match=r"task\.prior_precision must be a positive number, got 0"):
        Gaussian(0)
    with pytest.raises(SettingError, match=r"task\.floor must be in \(0, 1\], got 2"):
        Gaussian(1, floor=2)
