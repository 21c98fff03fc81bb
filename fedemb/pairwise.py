"""Many points compared with many, by matrix products: what a listwise loss over distances is made of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fedemb.types import Manifold


def sum_exp_distances(
    manifold: Manifold, x: Tensor, y: Tensor, keep: Tensor, scale: Tensor | None = None
) -> Tensor:
    """``(..., n)``: the sum of ``exp(-scale distance)`` of each point of ``x`` to the points of ``y`` that are kept.

    Hyperbolic distances come from the Lorentz product of the points, which knows one to about ``exp(2 radius) *
    epsilon``: in float64, six digits at a radius of 10, none at 18. ``manifold.distance`` is exact out there, at
    twenty times the price.

    Args:
        manifold: Euclidean, or hyperbolic of any curvature.
        x: ``(..., n, coordinates)``.
        y: ``(..., m, coordinates)``.
        keep: ``(..., n, m)`` bool.
        scale: ``(..., n)``; None: 1.

    Raises:
        RuntimeError: If a second derivative is asked for of a hyperbolic one.
    """
    if manifold.curvature == 0:
        distance = torch.cdist(x, y) if scale is None else torch.cdist(x, y) * scale.unsqueeze(-1)
        return (-distance).exp().mul(keep).sum(-1)
    power = 1 / math.sqrt(-manifold.curvature)
    powers = None if power == 1 else x.new_full(x.shape[:-1], power)
    if scale is not None:
        powers = scale * power
    total: Tensor = _SumExpDistances.apply(_lorentz(manifold, x), _lorentz(manifold, y), keep, powers)  # type: ignore[no-untyped-call]
    return total


def _lorentz(manifold: Manifold, points: Tensor) -> Tensor:
    """Time and space ``(..., dim + 1)`` in the Lorentz model of curvature -1."""
    ball = manifold.to_ball(points)
    squared = ball.square().sum(-1, keepdim=True)
    return torch.cat((1 + squared, 2 * ball), dim=-1) / (1 - squared)


class _SumExpDistances(torch.autograd.Function):
    """With ``z = t_x t_y - <x, y> = cosh d``: ``exp(-d) = 1 / (z + sqrt(z^2 - 1))``, so no logarithm is needed.

    The derivative of ``exp(-power d)`` by z is ``-power exp(-power d) / sqrt(z^2 - 1)``.

    Reference: Nickel & Kiela, "Learning Continuous Hierarchies in the Lorentz Model of Hyperbolic Geometry", ICML
    2018, eq. (5).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, keep: Tensor, power: Tensor | None) -> Tensor:
        signed = torch.cat((y[..., :1], -y[..., 1:]), dim=-1)
        cosh = (x @ signed.transpose(-1, -2)).clamp_(min=1)
        sinh = torch.addcmul(cosh.new_tensor(-1), cosh, cosh).sqrt_()
        near = cosh.add_(sinh).reciprocal_()
        if power is not None:
            near = near.pow_(power.unsqueeze(-1))
        near.mul_(keep)
        ctx.save_for_backward(x, signed, near, sinh, power)
        return near.sum(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, Tensor | None]:
        if torch.is_grad_enabled():
            raise RuntimeError("sum_exp_distances has a first derivative only, got create_graph=True")
        x, signed, near, sinh, power = ctx.saved_tensors
        tiny = torch.finfo(sinh.dtype).tiny ** 0.5
        by_cosh = gradient if power is None else gradient * power
        slope = (near / sinh.clamp_(min=tiny)).mul_(-by_cosh.unsqueeze(-1))
        by_y = slope.transpose(-1, -2) @ x
        by_power = None
        if ctx.needs_input_grad[3]:
            by_power = gradient * torch.special.xlogy(near, near).sum(-1) / power
        return slope @ signed, torch.cat((by_y[..., :1], -by_y[..., 1:]), dim=-1), None, by_power
