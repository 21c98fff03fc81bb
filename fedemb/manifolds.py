"""The spaces that rows live in: Euclidean, the Poincaré ball, and the Lorentz model (hyperboloid).

Hyperbolic space grows like ``exp(radius)``, so textbook formulas lose everything a few units from
the origin: ``1 + 2 |x-y|^2 / ...`` under an arcosh, or ``-x0 y0 + <xs, ys>``, subtract numbers as
large as ``exp(2 radius)``. The formulas here are rearranged so that what is small is computed as a
difference of *coordinates* (exact for near points) and the rest is sums of positive terms. What
remains is the resolution of the coordinates themselves, about ``exp(radius) * epsilon``.

Symbols: ``c = -curvature``; ``s = sqrt(c)``; ``a = 1 - c|x|^2`` and ``b = 1 - c|y|^2`` in the ball;
``alpha``, ``beta`` are ``s`` times the Lorentz time coordinate of ``x`` and ``y``; ``excess`` is
``cosh(s * distance) - 1``. Both models share the isometry ``ball = s xs / (1 + alpha)``, and it maps
frames to equal frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedemb.errors import SettingError
from fedemb.types import Manifold

# Points stay at s|x| <= 1 - margin, a radius of log(2 / margin - 1) / s: 23.7 for float64, 8.8 for float32.
# A coordinate near 1 is rounded by epsilon / 2, which moves the point by (epsilon / 2) / margin; the same
# quotient is the relative error of a = 1 - c|x|^2, hence of every step and gradient out there. A margin of
# 1e-10 keeps six digits in float64, 3e-4 keeps nearly four in float32, much finer than any learning step.
# (Nickel & Kiela clip at 1e-5, a radius of 12.2, and a float32 ball clipped at 6 lost .14 MAP on taxonomies.)
_MARGIN = {torch.float64: 1e-10, torch.float32: 3e-4}


@dataclass(frozen=True)
class Euclidean:
    """Flat space: every map is the plain vector operation."""

    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)

    @property
    def name(self) -> str:
        return "euclidean"

    @property
    def curvature(self) -> float:
        return 0.0

    def num_coordinates(self, dim: int) -> int:
        return dim

    def origin(self, dim: int) -> Tensor:
        return torch.zeros(dim, dtype=self.dtype)

    def project(self, x: Tensor) -> Tensor:
        return x

    def exp(self, x: Tensor, tangent: Tensor) -> Tensor:
        return x + tangent

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return _norm(x - y)

    def norm(self, x: Tensor, tangent: Tensor) -> Tensor:
        return _norm(_broadcast(tangent, x))

    def transport(self, x: Tensor, y: Tensor, tangent: Tensor) -> Tensor:
        return _broadcast(tangent, x, y)

    def riemannian_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        return _broadcast(gradient, x)

    def to_frame(self, x: Tensor, tangent: Tensor) -> Tensor:
        return _broadcast(tangent, x)

    def from_frame(self, x: Tensor, frame: Tensor) -> Tensor:
        return _broadcast(frame, x)

    def centroid(self, points: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean ``(..., coordinates)``; NaN where the weights sum to zero."""
        return _weighted_sum(points, weights) / weights.sum(-1, keepdim=True).to(points.dtype)

    def centroid_terms(self, points: Tensor) -> Tensor:
        return points

    def centroid_from_sum(self, total: Tensor) -> Tensor:
        """The total itself, which here must already be a mean: divide by the sum of weights before."""
        return total

    def to_ball(self, x: Tensor) -> Tensor:
        return x

    def from_ball(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True)
class Poincare:
    """The open ball of radius ``1 / s``, with ``dim`` coordinates and a conformal metric ``(2 / a)^2``.

    Reference: Nickel & Kiela, "Poincaré Embeddings for Learning Hierarchical Representations", 2017;
    Ganea, Bécigneul & Hofmann, "Hyperbolic Neural Networks", 2018, section 2, for other curvatures.
    """

    curvature: float = -1.0
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        _check_hyperbolic(self.curvature, self.dtype)

    @property
    def name(self) -> str:
        return "poincare"

    def num_coordinates(self, dim: int) -> int:
        return dim

    def origin(self, dim: int) -> Tensor:
        return torch.zeros(dim, dtype=self.dtype)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point that is well inside the ball; NaN stays NaN."""
        return _clip_norm(x, (1 - _MARGIN[x.dtype]) / math.sqrt(-self.curvature))

    def exp(self, x: Tensor, tangent: Tensor) -> Tensor:
        """The point that the geodesic from ``x`` along ``tangent`` reaches after time 1.

        Reference: Ganea et al., 2018, lemma 2: ``x (+) tanh(t) n / s`` where ``t = s |tangent| / a`` and
        ``n`` is the direction. Möbius addition is rearranged to ``x + (a / s) tanh(t) p / |p|^2`` with
        ``p = n + tanh(t) s x``, in which nothing cancels near the boundary.
        """
        s = math.sqrt(-self.curvature)
        a = 1 - s * s * _squared(x)
        squared = _squared(tangent) * (s / a).square()
        floor = torch.finfo(x.dtype).eps ** 2
        length = squared.clamp_min(floor).sqrt()
        reach = length.tanh()
        pole = torch.addcmul(tangent * (s / (a * length)), s * reach, x)
        # Where the step is zero the direction is zero too, and |p|^2 stands for its limit 1.
        stretch = torch.where(squared > floor, _squared(pole), 1.0)
        return self.project(torch.addcmul(x, a * reach / (s * stretch), pole))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at ``x`` whose ``exp`` is ``y``.

        Reference: Ganea et al., 2018, lemma 2. The Möbius difference ``-x (+) y`` is written with
        ``h = y - x`` as ``(a h - c|h|^2 x) / (a b + c|h|^2)``, whose terms never cancel.
        """
        c = -self.curvature
        h = y - x
        squared = _squared(h)
        a, b = 1 - c * _squared(x), 1 - c * _squared(y)
        return _length_over_sinh(2 * c * squared / (a * b)) / b * (a * h - (c * squared) * x)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance, of the broadcast shape without the last axis; gradient 0 where ``x == y``."""
        distance: Tensor = _PoincareDistance.apply(x, y, -self.curvature)  # type: ignore[no-untyped-call]
        return distance

    def norm(self, x: Tensor, tangent: Tensor) -> Tensor:
        return _norm(self.to_frame(x, tangent))

    def transport(self, x: Tensor, y: Tensor, tangent: Tensor) -> Tensor:
        """``tangent`` at ``x`` carried to ``y`` along the geodesic between them.

        Reference: Ungar, "A Gyrovector Space Approach to Hyperbolic Geometry", 2009: the conformal
        factors' quotient times the gyration ``gyr[y, -x]``.
        """
        s = math.sqrt(-self.curvature)
        a, b = 1 - s * s * _squared(x), 1 - s * s * _squared(y)
        return (b / a) * _gyrate(s * x, s * (y - x), a, b, tangent)

    def riemannian_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Reference: Nickel & Kiela, 2017, section 3.1: the inverse metric, ``a^2 / 4``."""
        a = 1 + self.curvature * _squared(x)
        return (a * a / 4) * gradient

    def to_frame(self, x: Tensor, tangent: Tensor) -> Tensor:
        return (2 / (1 + self.curvature * _squared(x))) * tangent

    def from_frame(self, x: Tensor, frame: Tensor) -> Tensor:
        return ((1 + self.curvature * _squared(x)) / 2) * frame

    def centroid(self, points: Tensor, weights: Tensor) -> Tensor:
        """See :meth:`Lorentz.centroid`, of which this is the image in the ball."""
        return _centroid(self, points, weights)

    def centroid_terms(self, points: Tensor) -> Tensor:
        """The points in the Lorentz model, ``(..., dim + 1)``."""
        s = math.sqrt(-self.curvature)
        a = 1 - s * s * _squared(points)
        return torch.cat(((2 - a) / (s * a), 2 * points / a), dim=-1)

    def centroid_from_sum(self, total: Tensor) -> Tensor:
        """See :meth:`Lorentz.centroid_from_sum`."""
        s = math.sqrt(-self.curvature)
        length = _lorentz_length(total)
        return self.project(total[..., 1:] / (s * (total[..., :1] + length)))

    def to_ball(self, x: Tensor) -> Tensor:
        return math.sqrt(-self.curvature) * x

    def from_ball(self, y: Tensor) -> Tensor:
        """The point whose ``to_ball`` is ``y``, or the nearest one that is well inside the ball."""
        return self.project(y / math.sqrt(-self.curvature))


@dataclass(frozen=True)
class Lorentz:
    """The sheet ``x0^2 = |xs|^2 + 1/c``, ``x0 > 0``: ``dim + 1`` coordinates, time first.

    The space coordinates ``xs`` alone are the point, and those of a tangent vector the vector: the time
    coordinate follows from them and is not read (its rounding would be fatal far out). A gradient with
    respect to a point is therefore in the space coordinates unless a loss itself uses the time.

    Reference: Nickel & Kiela, "Learning Continuous Hierarchies in the Lorentz Model of Hyperbolic
    Geometry", 2018; Chami et al., "Hyperbolic Graph Convolutional Neural Networks", 2019, for other
    curvatures.
    """

    curvature: float = -1.0
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        _check_hyperbolic(self.curvature, self.dtype)

    @property
    def name(self) -> str:
        return "lorentz"

    def num_coordinates(self, dim: int) -> int:
        return dim + 1

    def origin(self, dim: int) -> Tensor:
        origin = torch.zeros(dim + 1, dtype=self.dtype)
        origin[0] = 1 / math.sqrt(-self.curvature)
        return origin

    def project(self, x: Tensor) -> Tensor:
        """Bounds the space coordinates as the ball is bounded and recomputes the time; NaN stays NaN."""
        time, space = x[..., :1], x[..., 1:]
        radius = math.sinh(_max_radius(x.dtype)) / math.sqrt(-self.curvature)
        lifted = self._lift(_clip_norm(space, radius))
        return torch.where(time.isnan(), time, lifted)

    def exp(self, x: Tensor, tangent: Tensor) -> Tensor:
        """The point that the geodesic from ``x`` along ``tangent`` reaches after time 1.

        A tangent vector's coordinates are as large as ``alpha``, so their rounding limits long ways inward:
        back to the origin from radius ``r``, the error is ``exp(2 s r) * epsilon``.

        Reference: Nickel & Kiela, 2018, section 3: ``cosh(t) x + sinh(t) tangent / t``.
        """
        s = math.sqrt(-self.curvature)
        floor = torch.finfo(x.dtype).eps ** 2
        length = (s * s * _squared(self.to_frame(x, tangent))).clamp_min(floor).sqrt()
        # Twice the largest radius leaves the bounded region from anywhere in it; more would overflow.
        reach = length.clamp_max(2 * _max_radius(x.dtype) + 2)
        space = torch.addcmul(reach.cosh() * x[..., 1:], reach.sinh() / length, tangent[..., 1:])
        return self.project(self._lift(space))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at ``x`` whose ``exp`` is ``y``.

        Reference: Nickel & Kiela, 2018, section 3. ``y - cosh(s d) x`` is written ``(y - x) - excess x``.
        """
        xs, ys = x[..., 1:], y[..., 1:]
        pair = _compare(xs, ys, -self.curvature)
        space = _length_over_sinh(pair.excess) * ((ys - xs) - pair.excess * xs)
        return self._tangent(xs, pair.alpha, space)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance, of the broadcast shape without the last axis; gradient 0 where ``x == y``."""
        distance: Tensor = _LorentzDistance.apply(x, y, -self.curvature)  # type: ignore[no-untyped-call]
        return distance

    def norm(self, x: Tensor, tangent: Tensor) -> Tensor:
        return _norm(self.to_frame(x, tangent))

    def transport(self, x: Tensor, y: Tensor, tangent: Tensor) -> Tensor:
        """``tangent`` at ``x`` carried to ``y`` along the geodesic between them.

        The textbook formula subtracts numbers as large as ``exp(2 radius)``; the rotation between the
        frames at ``x`` and ``y`` is that of the ball, and does not.
        """
        s = math.sqrt(-self.curvature)
        xs, ys = x[..., 1:], y[..., 1:]
        pair = _compare(xs, ys, -self.curvature)
        nearer, farther = 1 + pair.alpha, 1 + pair.beta
        h = pair.difference * (-s / (nearer * farther))
        frame = _gyrate(s * xs / nearer, h, 2 / nearer, 2 / farther, self.to_frame(x, tangent))
        return self.from_frame(y, frame)

    def riemannian_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Reference: Nickel & Kiela, 2018, section 3: inverse ambient metric, then projection."""
        s = math.sqrt(-self.curvature)
        xs, alpha = x[..., 1:], self._alpha(x[..., 1:])
        time, space = gradient[..., :1], gradient[..., 1:]
        along = s * s * _dot(xs, space) + s * alpha * time
        return self._tangent(xs, alpha, space + along * xs)

    def to_frame(self, x: Tensor, tangent: Tensor) -> Tensor:
        """Parallel transport to the origin, where the time coordinate is zero and is dropped.

        It divides the part along ``xs`` by ``alpha``. The rest is made orthogonal twice: what the first
        pass leaves along ``xs`` is rounding, but ``alpha`` times as large as it may be.
        """
        xs, across = x[..., 1:], tangent[..., 1:]
        alpha, squared = self._alpha(xs), _squared(xs).clamp_min(torch.finfo(x.dtype).eps ** 2)
        first = _dot(xs, across) / squared
        across = across - first * xs
        second = _dot(xs, across) / squared
        return across + ((first + second) / alpha - second) * xs

    def from_frame(self, x: Tensor, frame: Tensor) -> Tensor:
        xs = x[..., 1:]
        alpha = self._alpha(xs)
        return self._tangent(xs, alpha, frame - (self.curvature * _dot(xs, frame) / (1 + alpha)) * xs)

    def centroid(self, points: Tensor, weights: Tensor) -> Tensor:
        """The point of least weighted sum of squared Lorentzian distances, ``(..., coordinates)``.

        Computed twice, the second time around the first result: far out, the plain sum has lost the
        digits that say how far. NaN where the weights sum to zero.

        Args:
            points: ``(..., n, coordinates)``.
            weights: ``(..., n)``, not negative, with a positive sum.

        Reference: Law et al., "Lorentzian Distance Learning for Hyperbolic Representations", 2019,
        theorem 3.3: the weighted sum, scaled onto the hyperboloid.
        """
        return _centroid(self, points, weights)

    def centroid_terms(self, points: Tensor) -> Tensor:
        return points

    def centroid_from_sum(self, total: Tensor) -> Tensor:
        """The centroid from a weighted sum of ``centroid_terms``; the scale of the weights is immaterial.

        A sum at radius ``r`` knows the radius of its centroid to ``exp(2 s r) * epsilon``: 1e-6 at 12.
        """
        s = math.sqrt(-self.curvature)
        return self.project(self._lift(total[..., 1:] / (s * _lorentz_length(total))))

    def to_ball(self, x: Tensor) -> Tensor:
        xs = x[..., 1:]
        return (math.sqrt(-self.curvature) / (1 + self._alpha(xs))) * xs

    def from_ball(self, y: Tensor) -> Tensor:
        """The point whose ``to_ball`` is ``y``, or the nearest one that is well inside the ball."""
        y = _clip_norm(y, 1 - _MARGIN[y.dtype])
        return self.project(self._lift((2 / math.sqrt(-self.curvature)) / (1 - _squared(y)) * y))

    def _alpha(self, space: Tensor) -> Tensor:
        return (1 - self.curvature * _squared(space)).sqrt()

    def _lift(self, space: Tensor) -> Tensor:
        """The point with these space coordinates."""
        return torch.cat((self._alpha(space) / math.sqrt(-self.curvature), space), dim=-1)

    def _tangent(self, xs: Tensor, alpha: Tensor, space: Tensor) -> Tensor:
        """The tangent vector with these space coordinates."""
        return torch.cat((math.sqrt(-self.curvature) * _dot(xs, space) / alpha, space), dim=-1)


def manifold(name: str, curvature: float = -1.0, dtype: str | None = None) -> Manifold:
    """The manifold of that name.

    >>> manifold("lorentz", curvature=-2.0).num_coordinates(5)
    6

    Args:
        name: ``euclidean``, ``poincare`` or ``lorentz``.
        curvature: Sectional curvature, negative; of no effect for ``euclidean``.
        dtype: ``float32`` or ``float64``; by default float64 for hyperbolic spaces, else float32.

    Raises:
        SettingError: The name, the curvature or the dtype is none of these.
    """
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    if dtype is not None and dtype not in dtypes:
        raise SettingError(f"dtype must be float32 or float64, got {dtype!r}; leave it out for the default")
    if name == "euclidean":
        return Euclidean(dtypes[dtype or "float32"])
    if name == "poincare":
        return Poincare(curvature, dtypes[dtype or "float64"])
    if name == "lorentz":
        return Lorentz(curvature, dtypes[dtype or "float64"])
    raise SettingError(f"manifold must be euclidean, poincare or lorentz, got {name!r}; choose one of these")


class _PoincareDistance(torch.autograd.Function):
    """Distance in the ball with its gradient in closed form: the hot path of hierarchical training.

    Arrays of the size of ``x - y`` are what costs time, so none is kept for the backward pass.

    Reference: Nickel & Kiela, 2017, equation 1 and section 3.1, for any curvature and without the
    cancellation of ``arcosh(1 + excess)`` and of ``|x|^2 - 2 <x, y> + 1``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, c: float) -> Tensor:
        a, b = 1 - c * _squared(x), 1 - c * _squared(y)
        half = a * b / 2
        excess = _squared(x - y).mul_(c).div_(half)
        sinh = _sinh(excess)
        ctx.c = c
        ctx.save_for_backward(x, y, a, b, half, excess, sinh)
        return _arcosh(excess, sinh, c)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        _refuse_second_derivative()
        x, y, a, b, half, excess, sinh = ctx.saved_tensors
        slope = _slope(gradient, sinh).mul_(2 * math.sqrt(ctx.c))
        pull = (y - x).mul_(slope / half)
        outward = slope.mul_(excess)
        gradient_x = outward.sum_to_size(a.shape) / a * x - pull.sum_to_size(x.shape)
        gradient_y = pull.sum_to_size(y.shape).addcmul_(outward.sum_to_size(b.shape) / b, y)
        return gradient_x, gradient_y, None


class _LorentzDistance(torch.autograd.Function):
    """Distance with its gradient in closed form, which is in the space coordinates alone.

    Reference: Nickel & Kiela, 2018, section 3, ``arcosh(-c <x, y>) / s``, computed by :func:`_compare`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, c: float) -> Tensor:
        pair = _compare(x[..., 1:], y[..., 1:], c)
        sinh = _sinh(pair.excess)
        ctx.c = c
        ctx.save_for_backward(x, y, pair.alpha, pair.beta, pair.lead, pair.excess, sinh)
        return _arcosh(pair.excess, sinh, c)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        _refuse_second_derivative()
        x, y, alpha, beta, lead, excess, sinh = ctx.saved_tensors
        slope = _slope(gradient, sinh).mul_(math.sqrt(ctx.c))
        # Whole points are faster to work on than their space coordinates; the time is discarded in the end.
        pull = (y - x).mul_(1 + beta).addcmul_(lead, y).mul_(slope)
        outward = slope.mul_(excess)
        gradient_x = _to_chart_(-pull.sum_to_size(x.shape), x, outward, alpha, ctx.c)
        gradient_y = _to_chart_(pull.sum_to_size(y.shape), y, outward, beta, ctx.c)
        return gradient_x, gradient_y, None


def _refuse_second_derivative() -> None:
    """Raises where autograd records the backward pass: its result would silently count as constant."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "distance has a first derivative only, got create_graph=True; use norm(x, log(x, y)) for more"
        )


def _to_chart_(pull: Tensor, x: Tensor, outward: Tensor, alpha: Tensor, c: float) -> Tensor:
    """Carries a gradient in the ball over to ``x``: it shrinks along ``x`` by ``alpha`` more than across.

    The part along ``x`` must be that of ``pull`` itself, rounding included: a more exact one from
    elsewhere would not cancel, and be off by ``alpha^2``.
    """
    inward = c * _dot(x[..., 1:], pull[..., 1:]) / (1 + alpha)
    pull.addcmul_((outward.sum_to_size(alpha.shape) - inward) / alpha, x).div_(1 + alpha)
    pull[..., 0] = 0
    return pull


@dataclass(frozen=True)
class _Pair:
    """Two Lorentz points compared; see :func:`_compare`."""

    alpha: Tensor
    beta: Tensor
    lead: Tensor
    difference: Tensor
    excess: Tensor


def _compare(xs: Tensor, ys: Tensor, c: float) -> _Pair:
    """Compares space coordinates without subtracting large numbers other than the coordinates.

    ``lead`` is ``alpha - beta``; ``difference`` is ``(1 + beta) xs - (1 + alpha) ys``, which is
    ``(1 + alpha) (1 + beta)`` times the difference of the points in the ball (before the factor ``s``),
    so ``excess`` follows as in the ball, where ``a = 2 / (1 + alpha)`` is now exact.
    """
    alpha, beta = (1 + c * _squared(xs)).sqrt_(), (1 + c * _squared(ys)).sqrt_()
    h = xs - ys
    lead = c * _dot(h, xs + ys) / (alpha + beta)
    difference = ((1 + beta) * h).addcmul_(lead, ys, value=-1)
    excess = c / 2 * _squared(difference) / ((1 + alpha) * (1 + beta))
    return _Pair(alpha, beta, lead, difference, excess)


def _gyrate(x: Tensor, h: Tensor, a: Tensor, b: Tensor, vector: Tensor) -> Tensor:
    """``gyr[y, -x] vector`` for ``y = x + h`` in the unit ball, ``a = 1 - |x|^2`` and ``b = 1 - |y|^2``.

    Reference: Ungar, 2009 (closed form of gyrations), with ``y`` replaced by ``x + h``, after which each
    term is as small as the denominator.
    """
    along, inward, squared = _dot(h, vector), _dot(x, vector), _squared(h)
    on_x = a * along - squared * inward
    on_h = (1 - a) * along + (b + squared) * inward
    return vector + (2 / (a * b + squared)) * (on_x * x - on_h * h)


def _centroid(space: Manifold, points: Tensor, weights: Tensor) -> Tensor:
    """Lorentz centroid, first of the points, then of the points as seen from that result."""
    rough = space.centroid_from_sum(_weighted_sum(space.centroid_terms(points), weights))
    seen = space.to_frame(rough.unsqueeze(-2), space.log(rough.unsqueeze(-2), points))
    origin = space.origin(seen.shape[-1]).to(points)
    moved = space.exp(origin, space.from_frame(origin, seen))
    centre = space.centroid_from_sum(_weighted_sum(space.centroid_terms(moved), weights))
    frame = space.to_frame(origin, space.log(origin, centre))
    return space.exp(rough, space.from_frame(rough, frame))


def _weighted_sum(points: Tensor, weights: Tensor) -> Tensor:
    return (weights.to(points.dtype).unsqueeze(-2) @ points).squeeze(-2)


def _lorentz_length(total: Tensor) -> Tensor:
    """``sqrt(t0^2 - |ts|^2)``, at least what it is at the largest radius: rounding must not make it zero."""
    time, radius = total[..., :1], _squared(total[..., 1:]).sqrt()
    least = time / math.cosh(_max_radius(total.dtype))
    return torch.maximum((time - radius) * (time + radius), least.square()).sqrt()


def _length_over_sinh(excess: Tensor) -> Tensor:
    """``t / sinh(t)`` where ``cosh(t) - 1`` is ``excess``; 1 at zero, with a finite gradient."""
    excess = excess.clamp_min(torch.finfo(excess.dtype).eps ** 2)
    sinh = _sinh(excess)
    return (excess + sinh).log1p() / sinh


def _sinh(excess: Tensor) -> Tensor:
    return (excess * (excess + 2)).sqrt()


def _arcosh(excess: Tensor, sinh: Tensor, c: float) -> Tensor:
    """``arcosh(1 + excess) / s`` without the last axis: exact for small excess, unlike ``arcosh``."""
    return (excess + sinh).log1p_().div_(math.sqrt(c)).squeeze(-1)


def _slope(gradient: Tensor, sinh: Tensor) -> Tensor:
    """``s`` times the derivative of :func:`_arcosh`; finite at zero, so that 0 times it is 0."""
    return gradient.unsqueeze(-1) / sinh.clamp_min(torch.finfo(sinh.dtype).tiny ** 0.5)


def _squared(x: Tensor) -> Tensor:
    """Squared norm ``(..., 1)``: a product with ones is faster than a sum over a short axis."""
    return (x.square() @ x.new_ones(x.shape[-1])).unsqueeze(-1)


def _norm(x: Tensor) -> Tensor:
    """Norm without the last axis; torch defines its gradient at zero as zero."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm


def _dot(x: Tensor, y: Tensor) -> Tensor:
    product = x * y
    return (product @ product.new_ones(product.shape[-1])).unsqueeze(-1)


def _clip_norm(x: Tensor, radius: float) -> Tensor:
    """Shortens what is longer than ``radius`` to a hair less, so that it counts as inside from then on."""
    squared = _squared(x)
    outside = squared > radius * radius
    length = torch.where(outside, squared, 1.0).sqrt()
    hair = 1 - 8 * torch.finfo(x.dtype).eps
    return torch.where(outside, radius * hair / length, 1.0) * x


def _max_radius(dtype: torch.dtype) -> float:
    """Largest distance from the origin, in units of ``1 / s``."""
    return math.log(2 / _MARGIN[dtype] - 1)


def _broadcast(vector: Tensor, *points: Tensor) -> Tensor:
    shapes = (tensor.shape for tensor in (vector, *points))
    return vector.expand(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _check_hyperbolic(curvature: float, dtype: torch.dtype) -> None:
    if not (curvature < 0 and math.isfinite(curvature)):
        raise SettingError(f"curvature must be negative and finite, got {curvature}; -1 is usual")
    _check_dtype(dtype)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _MARGIN:
        raise SettingError(f"dtype must be float32 or float64, got {dtype}; hyperbolic tables need float64")
