"""The space of diagonal Gaussians: rows that know how sure they are.

A point is ``(mean, precision)``, ``d`` numbers each. What adds up when evidence from several sources meets is not
these but the natural parameters ``(precision * mean, precision)``: independent likelihoods multiply, their logarithms
add. So straight lines here are straight in natural parameters, and a step at ``x`` is

    tangent = (precision' * (mean' - mean), precision' - precision)

which is the difference of the natural parameters up to the linear map that moves the origin to the received mean. All
clients of a round receive the same point, so their tangents add up as natural parameters do:
``L = L0 + sum(Li - L0)`` and ``L m = L0 m0 + sum(Li mi - L0 m0)``, where the prior ``(L0, m0)`` counts once.

Reference: Amari, "Natural Gradient Works Efficiently in Learning", Neural Computation 1998; Khan & Rue, "The Bayesian
Learning Rule", JMLR 2023, section 2 (steps in natural parameters along gradients in expectation parameters); Ashman et
al., "Partitioned Variational Inference", 2022 (sums of clients' natural parameters).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedemb.errors import SettingError


@dataclass(frozen=True)
class Gaussian:
    """Diagonal Gaussians of ``dim / 2`` numbers; a table of this space has an even ``dim``.

    Attributes:
        prior_precision: Of the origin, whose mean is zero: what is believed of a row that nobody has seen.
        floor: Precisions stay at this share of the prior's or above.
        dtype: Of coordinates.
    """

    prior_precision: float = 1.0
    floor: float = 0.1
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not 0 < self.prior_precision < math.inf:
            raise SettingError(
                f"task.prior_precision must be a positive number, got {self.prior_precision}; 1 is usual"
            )
        if not 0 < self.floor <= 1:
            raise SettingError(f"task.floor must be in (0, 1], got {self.floor}; 0.1 is usual")

    @property
    def name(self) -> str:
        return "gaussian"

    @property
    def curvature(self) -> float:
        """0: straight lines in natural parameters are those of a flat connection."""
        return 0.0

    def num_coordinates(self, dim: int) -> int:
        return dim

    def origin(self, dim: int) -> Tensor:
        """The prior."""
        mean = torch.zeros(dim // 2, dtype=self.dtype)
        return torch.cat((mean, torch.full_like(mean, self.prior_precision)))

    def initial_frame(self, means: Tensor) -> Tensor:
        """The step ``(rows, dim)`` from the origin to the prior's precision and means ``(rows, dim / 2)``."""
        return torch.cat((self.prior_precision * means, torch.zeros_like(means)), -1)

    def project(self, x: Tensor) -> Tensor:
        """The point with its precisions at the floor or above; NaN stays NaN."""
        mean, precision = split(x)
        return torch.cat((mean, self._floored(precision)), -1)

    def exp(self, x: Tensor, tangent: Tensor) -> Tensor:
        shift, gain = split(tangent)
        return self.moved(x, shift, gain, by_precision=True)

    def moved(self, x: Tensor, shift: Tensor, gain: Tensor, by_precision: bool) -> Tensor:
        """The point after ``gain`` of precision and ``shift`` of the mean: a tangent's, or as it is.

        Args:
            x: ``(..., dim)``.
            shift: ``(..., dim / 2)``.
            gain: ``(..., dim / 2)``.
            by_precision: Whether ``shift`` is precision times distance, as a tangent's, or the distance itself.
        """
        mean, precision = split(x)
        end = self._floored(precision + gain)
        mean, end = _alike(mean + (shift / end if by_precision else shift), end)
        return torch.cat((mean, end), -1)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        (mean, precision), (end_mean, end) = split(x), split(y)
        parts = _alike(end * (end_mean - mean), end - precision)
        return torch.cat(parts, -1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The 2-Wasserstein distance, of the broadcast shape without the last axis."""
        difference: Tensor = torch.linalg.vector_norm(self.to_ball(x) - self.to_ball(y), dim=-1)
        return difference

    def norm(self, x: Tensor, tangent: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(_alike(tangent, x)[0], dim=-1)
        return length

    def transport(self, x: Tensor, y: Tensor, tangent: Tensor) -> Tensor:
        """The same change of natural parameters, seen from another mean."""
        shift, gain = split(tangent)
        parts = _alike(shift + gain * (split(x)[0] - split(y)[0]), gain)
        return torch.cat(parts, -1)

    def riemannian_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The natural gradient: that with respect to the expectation parameters, as a tangent.

        With ``g`` and ``h`` the derivatives by mean and variance it is ``(g, -2 h)``; ``gradient`` is by mean and
        precision, so ``h = -precision^2 gradient``.
        """
        by_mean, by_precision = split(gradient)
        parts = _alike(by_mean, 2 * split(x)[1].square() * by_precision)
        return torch.cat(parts, -1)

    def to_frame(self, x: Tensor, tangent: Tensor) -> Tensor:
        return _alike(tangent, x)[0]

    def from_frame(self, x: Tensor, frame: Tensor) -> Tensor:
        return _alike(frame, x)[0]

    def centroid(self, points: Tensor, weights: Tensor) -> Tensor:
        """The point whose natural parameters are the weighted means; NaN where the weights sum to zero."""
        weighted = self.centroid_terms(points) * weights.unsqueeze(-1).to(points.dtype)
        return self.centroid_from_sum(weighted.sum(-2) / weights.sum(-1, keepdim=True).to(points.dtype))

    def centroid_terms(self, points: Tensor) -> Tensor:
        """Natural parameters ``(precision * mean, precision)``."""
        mean, precision = split(points)
        return torch.cat((precision * mean, precision), -1)

    def centroid_from_sum(self, total: Tensor) -> Tensor:
        """The point of these natural parameters: a mean, or a sum less the prior that was counted too often."""
        product, precision = split(total)
        return torch.cat((product / precision, precision), -1)

    def to_ball(self, x: Tensor) -> Tensor:
        """Mean and standard deviation: what one would average who knew nothing of precisions."""
        mean, precision = split(x)
        return torch.cat((mean, precision.rsqrt()), -1)

    def from_ball(self, y: Tensor) -> Tensor:
        mean, deviation = split(y)
        return torch.cat((mean, deviation.square().reciprocal()), -1)

    def _floored(self, precision: Tensor) -> Tensor:
        return precision.clamp_min(self.floor * self.prior_precision)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of the last axis: mean and precision of a point, shift and gain of a tangent."""
    first, second = x.chunk(2, dim=-1)
    return first, second


def _alike(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their common shape."""
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
    return [tensor.expand(shape) for tensor in tensors]
