"""Sums over many distances by matrix products, against distances one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedemb.manifolds import Euclidean, Lorentz, Poincare
from fedemb.pairwise import sum_exp_distances
from fedemb.types import Manifold

SPACES: dict[str, Manifold] = {
    "euclidean": Euclidean(torch.float64),
    "poincare": Poincare(),
    "lorentz": Lorentz(),
    "curved-poincare": Poincare(-0.3),
    "curved-lorentz": Lorentz(-2.5),
    "nearly-flat": Poincare(-1 / 16),
}


def points(space: Manifold, shape: tuple[int, ...], radius: float, seed: int) -> Tensor:
    frame = torch.randn(*shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    frame *= radius / frame.norm(dim=-1, keepdim=True)
    origin = space.origin(4).expand(*shape, -1)
    return space.exp(origin, space.from_frame(origin, frame)).requires_grad_()


def slow(
    space: Manifold, x: Tensor, y: Tensor, keep: Tensor, scale: Tensor | None, weight: Tensor | None
) -> Tensor:
    distance = space.distance(x.unsqueeze(-2), y.unsqueeze(-3))
    distance = distance if scale is None else distance * scale.unsqueeze(-1)
    near = (-distance).exp() * keep
    return (near if weight is None else near * weight.unsqueeze(-2)).sum(-1)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("radius", [0.1, 2.0, 7.0])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_and_gradient_equal_distances_one_by_one(
    name: str, radius: float, scaled: bool, weighted: bool
) -> None:
    space = SPACES[name]
    x, y = points(space, (3, 5), radius, 0), points(space, (3, 8), radius, 1)
    keep = torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    scale = torch.linspace(0.5, 2.0, 15, dtype=torch.float64).view(3, 5).requires_grad_() if scaled else None
    weight = torch.linspace(0.2, 30.0, 24, dtype=torch.float64).view(3, 8) if weighted else None
    wanted = [x, y] if scale is None else [x, y, scale]
    fast, expected = (how(space, x, y, keep, scale, weight) for how in (sum_exp_distances, slow))
    torch.testing.assert_close(fast, expected, rtol=1e-9, atol=0)
    pairs = zip(
        wanted,
        torch.autograd.grad((fast + 1e-30).log().sum(), wanted),
        torch.autograd.grad((expected + 1e-30).log().sum(), wanted),
        strict=True,
    )
    for point, ours, theirs in pairs:
        if (
            point is not scale
        ):  # far out, coordinates of a gradient say little: its length there is what counts
            ours, theirs = (space.riemannian_gradient(point.detach(), g) for g in (ours, theirs))
            error = space.norm(point.detach(), ours - theirs)
            assert float((error / space.norm(point.detach(), theirs).clamp_min(1e-12)).max()) < 1e-7
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", SPACES)
def test_a_point_beside_itself_has_a_finite_gradient(name: str) -> None:
    space = SPACES[name]
    x = points(space, (4,), 1.0, 0)
    total = sum_exp_distances(space, x, x.detach().clone(), torch.eye(4, dtype=torch.bool))
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(total.sum(), x)
    length = space.norm(x.detach(), space.riemannian_gradient(x.detach(), gradient))
    assert (length <= 1e-6).all()


@pytest.mark.parametrize("name", [name for name in SPACES if name != "euclidean"])
@pytest.mark.parametrize(("radius", "apart"), [(0.001, 1e-12), (0.5, 1e-9), (4.0, 1e-7), (8.0, 1e-5)])
def test_points_closer_than_rounding_do_not_push_harder_than_others(
    name: str, radius: float, apart: float
) -> None:
    space = SPACES[name]
    x = points(space, (64,), radius, 0)
    frame = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frame *= apart / frame.norm(dim=-1, keepdim=True)
    y = space.exp(x.detach(), space.from_frame(x.detach(), frame))
    total = sum_exp_distances(space, x, y, torch.eye(64, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(total.sum(), x)
    assert float(space.norm(x.detach(), space.riemannian_gradient(x.detach(), gradient)).max()) < 1.5


def test_nothing_kept_is_zero_with_gradient_zero() -> None:
    x, y = points(Poincare(), (3,), 1.0, 0), points(Poincare(), (4,), 1.0, 1)
    total = sum_exp_distances(Poincare(), x, y, torch.zeros(3, 4, dtype=torch.bool))
    assert (total == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(total.sum(), [x, y]))


def test_second_derivative_is_refused() -> None:
    x, y = points(Poincare(), (2,), 1.0, 0), points(Poincare(), (2,), 1.0, 1)
    total = sum_exp_distances(Poincare(), x, y, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="first derivative only"):
        torch.autograd.grad(total.sum(), x, create_graph=True)
