"""Geodesics of the Poincaré disk as curves to draw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def geodesics(start: Float64, end: Float64, num_points: int = 24) -> Float64:
    """Points along the geodesic between each pair: arcs of circles orthogonal to the unit circle.

    An arc is a rational quadratic Bézier curve whose middle control point is where the tangents at both ends
    meet. Its weight is the cosine of half the arc's angle, so that a diameter is no special case.

    Args:
        start: ``(pairs, 2)`` in the open unit disk.
        end: ``(pairs, 2)``.
        num_points: Of each curve, its ends among them.

    Returns:
        ``(pairs, num_points, 2)``.

    Reference: the circle through x and y with centre c is orthogonal to the unit circle if
    ``2 <c, x> = 1 + |x|^2`` and ``2 <c, y> = 1 + |y|^2``; its squared radius is ``|c|^2 - 1``.
    """
    cross = (start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0])[:, None]
    # The centre is middle / (2 cross), infinitely far away for a diameter; what is computed stays finite.
    middle = _turned(end) * (1 + _squared(start)) - _turned(start) * (1 + _squared(end))
    curvature = 2 * np.abs(cross) / np.sqrt(np.maximum(_squared(middle) - 4 * cross**2, np.finfo(float).tiny))
    chord = end - start
    length = np.sqrt(_squared(chord))
    half_sine = np.clip(length * curvature / 2, 0, 1)  # of half the arc's angle
    half_cosine = np.sqrt(1 - half_sine**2)
    normal = -_turned(chord) / np.maximum(length, np.finfo(float).tiny)
    towards_centre = np.sign(cross) * np.sign(
        np.sum(normal * (middle - 2 * cross * start), axis=1, keepdims=True)
    )
    bulge = length / 2 * half_sine / np.maximum(half_cosine, 1e-9)
    control = (start + end) / 2 - towards_centre * bulge * normal
    t = np.linspace(0, 1, num_points)[None, :, None]
    weights = np.stack(np.broadcast_arrays((1 - t) ** 2, 2 * t * (1 - t) * half_cosine[:, None], t**2))
    corners = np.stack((start, control, end))[:, :, None]
    points: Float64 = (weights * corners).sum(0) / weights.sum(0)
    return points


def _turned(x: Float64) -> Float64:
    """A quarter turn clockwise."""
    return np.stack((x[:, 1], -x[:, 0]), axis=1)


def _squared(x: Float64) -> Float64:
    squared: Float64 = np.sum(x * x, axis=1, keepdims=True)
    return squared
