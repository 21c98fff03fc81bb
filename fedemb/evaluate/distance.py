"""Distances for comparisons: exact in their order, cheap, and infinite where a point is lost."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedemb.types import Manifold

Float64 = npt.NDArray[np.float64]


def measure(points: Tensor, manifold: Manifold) -> tuple[Tensor, Tensor]:
    """Coordinates and a scale per point: ``|x - y| scale(y)`` orders all y by their distance from x.

    Likewise ``|x - y| scale(x) scale(y)`` orders all pairs. In the ball ``cosh(distance) - 1 =
    2 |x - y|^2 / ((1 - |x|^2) (1 - |y|^2))``, where x is the same for a whole row. With the Lorentz time
    t, ``1 - |y|^2 = 2 / (1 + t)``, which loses nothing far out.
    """
    points = points.detach().double()
    ball = manifold.to_ball(points)
    if manifold.curvature == 0:
        return ball, torch.ones_like(ball[:, 0])
    if manifold.name == "lorentz":
        time = (1 - manifold.curvature * points[:, 1:].square().sum(1)).sqrt()
        return ball, ((1 + time) / 2).sqrt()
    inside = 1 - ball.square().sum(1)
    return ball, inside.clamp_min(torch.finfo(torch.float64).eps).rsqrt()


def lost(near: Tensor, scale: Tensor) -> npt.NDArray[np.bool_]:
    """Which points of ``measure`` are not finite ``(points,)``: infinitely far away from all others."""
    return (~(near.isfinite().all(1) & scale.isfinite())).cpu().numpy()


def distances(x: Tensor, y: Tensor) -> Tensor:
    """``|x - y|`` of all pairs ``(len(x), len(y))``.

    The matrix product's shortcut ``|x|^2 + |y|^2 - 2<x, y>`` would lose near points near the boundary.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def radii(points: Tensor, manifold: Manifold) -> Float64:
    """Distance from the origin ``(points,)``, infinite where a point is not finite."""
    points = points.detach().cpu().double()
    origin = manifold.origin(points.shape[1] - manifold.num_coordinates(0)).double()
    radius = manifold.distance(points, origin)
    found: Float64 = radius.where(radius.isfinite(), math.inf).numpy()
    return found
