"""From a ball of any dimension to a disk that can be drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedemb.report.arcs import Float64

# 99 % of the nodes are drawn within this radius, 95 % of the way to the rim: beyond, nothing is told apart.
DRAWN_RADIUS = 2 * np.arctanh(0.95)


@dataclass(frozen=True)
class Projection:
    """Points of the unit disk, and what was done to get them there.

    Attributes:
        points: ``(n, 2)``.
        scale: What hyperbolic distances from the origin were multiplied by, at most 1.
        share: Of the squared tangent vectors at the origin, how much lies in the plane that is shown.
        dim: Dimensions that there were.
    """

    points: Float64
    scale: float
    share: float
    dim: int

    @property
    def note(self) -> str:
        """What says so below a picture; empty if the picture is the embedding itself."""
        parts = []
        if self.dim > 2:
            parts.append(
                f"{self.dim} dimensions: direction from the two principal ones ({self.share:.0%} of the "
                "squared tangent vectors), distance from the centre kept"
            )
        if self.scale < 1:
            parts.append(f"distances from the centre times {self.scale:.2f}")
        return "\n".join(parts)


def to_disk(ball: Float64) -> Projection:
    """Projects points of the unit ball so that their depth is kept.

    ``log`` at the origin, the two principal directions of these tangent vectors (not centred: the origin
    stays where it is), and ``exp`` at the origin with the *whole* length. So a distance from the origin,
    which stands for depth, is true up to one factor for all; angles are those of a shadow. Two others
    were tried: an orthogonal projection draws deep nodes that point out of the plane in the middle, among
    the general ones; with the Fréchet mean in the middle the root is off to the side, and all else in a
    corner, since most nodes are leaves.

    Args:
        ball: ``(n, dim)`` in the open unit ball; two dimensions stay as they are but for the scale.

    Raises:
        ValueError: If a point is not inside the ball.
    """
    ball = np.asarray(ball, dtype=np.float64)
    norm = np.linalg.norm(ball, axis=1)
    if not (norm < 1).all():
        raise ValueError(
            f"points must be inside the unit ball, got a norm of {norm.max()}; use manifold.to_ball"
        )
    radius = 2 * np.arctanh(norm)
    direction, share = ball, 1.0
    if ball.shape[1] > 2:
        tangent = ball * (radius / np.maximum(norm, np.finfo(float).tiny))[:, None]
        energy, axes = np.linalg.eigh(tangent.T @ tangent)
        plane = axes[:, :-3:-1]
        plane *= np.sign(plane[np.abs(plane).argmax(0), [0, 1]])  # an eigenvector's sign is anybody's choice
        direction, share = tangent @ plane, float(energy[-2:].sum() / max(energy.sum(), np.finfo(float).tiny))
    elif ball.shape[1] == 1:
        direction = np.concatenate((ball, np.zeros_like(ball)), axis=1)
    far = float(np.percentile(radius, 99)) if len(radius) else 0.0
    scale = min(1.0, DRAWN_RADIUS / far) if far else 1.0
    length = np.maximum(np.linalg.norm(direction, axis=1), np.finfo(float).tiny)
    points = direction * (np.tanh(scale * radius / 2) / length)[:, None]
    return Projection(points, scale, share, ball.shape[1])
