"""One contract for all manifolds, geoopt and mpmath as oracles, and what holds far from the origin.

Points are named by their frame vector at the origin: ``place(space, vector)`` lies at distance
``|vector|``. Where coordinates limit what can be known, the tolerance is ``exp(s radius) * epsilon``.
"""

import doctest
import math
import warnings
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fedemb.manifolds
from fedemb.errors import SettingError
from fedemb.manifolds import Euclidean, Lorentz, Poincare, manifold
from fedemb.types import Manifold

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # geoopt imports torch.jit
    import geoopt

CURVATURES = (-0.5, -1.0, -2.0)
BALLS = [Poincare(curvature) for curvature in CURVATURES]
SHEETS = [Lorentz(curvature) for curvature in CURVATURES]
HYPERBOLIC: list[Manifold] = [*BALLS, *SHEETS]
SPACES: list[Manifold] = [Euclidean(torch.float64), *HYPERBOLIC]
DIM = 4
EPSILON = torch.finfo(torch.float64).eps


def label(space: Manifold) -> str:
    return f"{space.name}{space.curvature}"


every_space = pytest.mark.parametrize("space", SPACES, ids=label)
every_hyperbolic = pytest.mark.parametrize("space", HYPERBOLIC, ids=label)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, DIM, dtype=torch.float64, generator=generator)


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def place(space: Manifold, frame: Tensor) -> Tensor:
    origin = space.origin(frame.shape[-1]).to(frame.dtype)
    return space.exp(origin, space.from_frame(origin, frame))


def rate(space: Manifold) -> float:
    return math.sqrt(-space.curvature)


def resolution(space: Manifold, radius: float) -> float:
    """A multiple of what coordinates at this radius can tell apart."""
    return 50 * EPSILON * math.exp(rate(space) * radius)


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-9) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=tolerance, atol=tolerance)


def inner(space: Manifold, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return (space.to_frame(x, first) * space.to_frame(x, second)).sum(-1)


# --- the contract ---------------------------------------------------------------------------------------


@every_space
def test_is_a_manifold(space: Manifold) -> None:
    assert isinstance(space, Manifold)
    coordinates = DIM + (space.name == "lorentz")
    assert space.num_coordinates(DIM) == coordinates
    assert space.origin(DIM).shape == (coordinates,)
    close(space.project(space.origin(DIM)), space.origin(DIM), 0)
    close(space.to_ball(space.origin(DIM)), torch.zeros(DIM), 0)


@every_space
def test_exp_inverts_log(space: Manifold) -> None:
    x, y = place(space, draw(50, seed=1)), place(space, draw(50, seed=2))
    close(space.exp(x, space.log(x, y)), y)
    close(space.exp(x, torch.zeros_like(x)), x, 1e-15)


@every_space
def test_log_inverts_exp(space: Manifold) -> None:
    x = place(space, draw(50, seed=1))
    for scale in (1.0, 1e-4, 1e-9):
        tangent = space.from_frame(x, scale * draw(50, seed=2))
        close(space.log(x, space.exp(x, tangent)) / scale, tangent / scale, 1e-6)
    close(space.log(x, x), 0.0, 0)


@every_space
def test_distance_is_the_length_of_the_log(space: Manifold) -> None:
    x, y = place(space, draw(50, seed=1)), place(space, draw(50, seed=2))
    close(space.distance(x, y), space.norm(x, space.log(x, y)))
    close(space.distance(space.origin(DIM), place(space, draw(50))), draw(50).norm(dim=-1))


@every_space
def test_geodesic_has_constant_speed(space: Manifold) -> None:
    x, tangent = place(space, draw(50, seed=1)), draw(50, seed=2)
    step = space.from_frame(x, tangent)
    half = space.exp(x, step / 2)
    close(space.distance(half, space.exp(x, step)), tangent.norm(dim=-1) / 2)


@every_space
def test_transport_is_an_isometry_along_the_geodesic(space: Manifold) -> None:
    x, y = place(space, draw(50, seed=1)), place(space, draw(50, seed=2))
    first, second = (space.from_frame(x, draw(50, seed=seed)) for seed in (3, 4))
    moved = [space.transport(x, y, tangent) for tangent in (first, second)]
    close(inner(space, y, *moved), inner(space, x, first, second))
    # The geodesic's own direction stays its direction, and the way back undoes the way there.
    close(space.transport(x, y, space.log(x, y)), -space.log(y, x))
    close(space.transport(y, x, moved[0]), first)
    close(space.transport(x, x, first), first, 1e-12)


@every_space
def test_frame_is_orthonormal_and_invertible(space: Manifold) -> None:
    x, frame = place(space, draw(50, seed=1)), draw(50, seed=2)
    tangent = space.from_frame(x, frame)
    assert tangent.shape == x.shape
    close(space.norm(x, tangent), frame.norm(dim=-1))
    close(space.to_frame(x, tangent), frame)
    close(space.from_frame(x, space.to_frame(x, tangent)), tangent)


@every_space
def test_frame_is_the_one_transported_from_the_origin(space: Manifold) -> None:
    x, frame, origin = place(space, draw(50, seed=1)), draw(50, seed=2), space.origin(DIM)
    close(space.transport(origin, x, space.from_frame(origin, frame)), space.from_frame(x, frame))


@every_space
def test_project_keeps_points_and_is_idempotent(space: Manifold) -> None:
    x = place(space, 4 * unit(draw(200, seed=1)) * torch.linspace(0, 1, 200).unsqueeze(-1))
    close(space.project(x), x, 4 * EPSILON if space.name == "lorentz" else 0)
    wild = x + 1e3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    once = space.project(wild * 1e9)
    assert torch.equal(space.project(once), once)
    close(space.exp(once, space.log(once, once)), once, 1e-12)


@every_space
def test_project_passes_nan(space: Manifold) -> None:
    for position in range(space.num_coordinates(DIM)):
        x = place(space, draw(3)).index_put(
            (torch.tensor(1), torch.tensor(position)), torch.tensor(math.nan, dtype=torch.float64)
        )
        assert space.project(x).isnan().any(-1).tolist() == [False, True, False]


@every_space
def test_riemannian_gradient_is_the_steepest_ascent(space: Manifold) -> None:
    x = place(space, draw(50, seed=1)).requires_grad_()
    slope = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)

    def function(points: Tensor) -> Tensor:
        return torch.sin(points @ slope)  # uses the Lorentz time coordinate too

    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    ascent = space.riemannian_gradient(x.detach(), gradient)
    direction = space.from_frame(x.detach(), draw(50, seed=2))
    step = 1e-5
    ahead, behind = (function(space.exp(x.detach(), sign * step * direction)) for sign in (1, -1))
    close((ahead - behind) / (2 * step), inner(space, x.detach(), ascent, direction), 1e-6)


@every_space
def test_riemannian_gradient_of_the_distance_is_the_unit_vector_away(space: Manifold) -> None:
    x, y = place(space, draw(50, seed=1)).requires_grad_(), place(space, draw(50, seed=2))
    (gradient,) = torch.autograd.grad(space.distance(x, y).sum(), x)
    away = space.to_frame(x, space.riemannian_gradient(x, gradient))
    close(away, -unit(space.to_frame(x, space.log(x, y))))


def squared_lorentzian(space: Manifold, x: Tensor, y: Tensor) -> Tensor:
    """What the centroid minimises (Law et al., 2019): squared chord of the hyperboloid, or of flat space."""
    distance = space.distance(x, y)
    if space.curvature == 0:
        return distance.square()
    return 4 / -space.curvature * torch.sinh(rate(space) * distance / 2).square()


@every_space
def test_centroid_minimises_its_objective(space: Manifold) -> None:
    points = place(space, draw(20, 7, seed=1))
    weights = torch.rand(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def objective(centre: Tensor) -> Tensor:
        return (weights * squared_lorentzian(space, centre.unsqueeze(-2), points)).sum(-1)

    centre = space.centroid(points, weights).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(centre).sum(), centre)
    centre = centre.detach()
    scale = objective(centre).max()
    close(space.norm(centre, space.riemannian_gradient(centre, gradient)) / scale, 0.0)
    beside = space.exp(centre, space.from_frame(centre, 0.01 * draw(20, seed=3)))
    assert (objective(beside) > objective(centre)).all()


@every_space
def test_centroid_of_one_point_is_the_point(space: Manifold) -> None:
    points = place(space, draw(20, 1, seed=1))
    close(space.centroid(points, torch.full((20, 1), 3.0)), points.squeeze(-2), 1e-12)
    several = place(space, draw(20, 4, seed=1))
    weights = torch.tensor([0.0, 0.0, 2.0, 0.0]).expand(20, 4)
    close(space.centroid(several, weights), several[:, 2], 1e-9)


@every_space
def test_centroid_from_running_sums(space: Manifold) -> None:
    points = place(space, draw(20, 6, seed=1))
    weights = torch.arange(1.0, 7.0, dtype=torch.float64) / 21
    terms = space.centroid_terms(points) * weights.unsqueeze(-1)
    total = terms[:, :2].sum(1)
    total = total + terms[:, 2:].sum(1)
    centre = space.centroid(points, weights.expand(20, 6))
    close(space.centroid_from_sum(total), centre)
    if space.curvature != 0:  # a Euclidean total must be a mean already
        close(space.centroid_from_sum(17 * total), centre)


@every_space
def test_centroid_without_weight_is_not_a_number(space: Manifold) -> None:
    assert space.centroid(place(space, draw(2, 3)), torch.zeros(2, 3)).isnan().all()


@every_space
def test_centroid_moves_with_the_points(space: Manifold) -> None:
    """A point reflection is an isometry, so it must commute with the centroid."""
    points, mirror = place(space, draw(10, 5, seed=1)), place(space, draw(10, seed=2))
    weights = torch.linspace(0.1, 1, 5, dtype=torch.float64).expand(10, 5)

    def reflect(x: Tensor, at: Tensor) -> Tensor:
        return space.exp(at, -space.log(at, x))

    mirrored = space.centroid(reflect(points, mirror.unsqueeze(-2)), weights)
    close(mirrored, reflect(space.centroid(points, weights), mirror), 1e-8)


OPERATIONS: dict[str, Callable[[Manifold, Tensor, Tensor, Tensor], Tensor]] = {
    "project": lambda space, x, y, v: space.project(x),
    "exp": lambda space, x, y, v: space.exp(x, v),
    "log": lambda space, x, y, v: space.log(x, y),
    "distance": lambda space, x, y, v: space.distance(x, y),
    "norm": lambda space, x, y, v: space.norm(x, v),
    "transport": lambda space, x, y, v: space.transport(x, y, v),
    "riemannian_gradient": lambda space, x, y, v: space.riemannian_gradient(x, v),
    "to_frame": lambda space, x, y, v: space.to_frame(x, v),
    "from_frame": lambda space, x, y, v: space.from_frame(x, space.to_frame(x, v)),
    "centroid_terms": lambda space, x, y, v: space.centroid_terms(x),
    "centroid_from_sum": lambda space, x, y, v: space.centroid_from_sum(space.centroid_terms(x)),
    "to_ball": lambda space, x, y, v: space.to_ball(x),
}


@every_space
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_broadcasts(space: Manifold, name: str) -> None:
    x, y = place(space, draw(3, 1, seed=1)), place(space, draw(5, seed=2))
    v = space.from_frame(x, draw(3, 5, seed=3))
    wide = [tensor.expand(3, 5, -1).contiguous() for tensor in (x, y, v)]
    whole = OPERATIONS[name](space, *wide)
    apart = torch.stack(
        [
            torch.stack([OPERATIONS[name](space, *(tensor[i, j] for tensor in wide)) for j in range(5)])
            for i in range(3)
        ]
    )
    close(whole, apart, 1e-12)
    close(OPERATIONS[name](space, x, y, v).expand_as(whole), whole, 1e-12)


@every_space
@pytest.mark.parametrize(
    "name", ["exp", "norm", "transport", "riemannian_gradient", "to_frame", "from_frame"]
)
def test_result_has_the_broadcast_shape(space: Manifold, name: str) -> None:
    """Also where a result depends on the tangent vector alone, as in flat space."""
    x = place(space, draw(3, 1))
    result = OPERATIONS[name](space, x, x, torch.zeros(5, x.shape[-1], dtype=x.dtype))
    last = {"norm": (), "to_frame": (DIM,)}.get(name, x.shape[-1:])
    assert result.shape == (3, 5, *last)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["euclidean", "poincare", "lorentz"])
def test_dtype_is_kept(name: str, dtype: str) -> None:
    space = manifold(name, dtype=dtype)
    exact = manifold(name, dtype="float64")
    assert space.dtype == space.origin(DIM).dtype == getattr(torch, dtype)
    x64, y64 = place(exact, draw(20, seed=1)), place(exact, draw(20, seed=2))
    v64 = exact.from_frame(x64, draw(20, seed=3))
    x, y, v = (tensor.to(space.dtype) for tensor in (x64, y64, v64))
    for operation in OPERATIONS.values():
        actual = operation(space, x, y, v)
        assert actual.dtype == space.dtype
        close(actual.double(), operation(exact, x64, y64, v64), 1e-2 if dtype == "float32" else 1e-12)
    centre = space.centroid(x.unsqueeze(0), torch.ones(1, 20, dtype=torch.float64))
    assert centre.dtype == space.dtype


@every_space
def test_empty_batch(space: Manifold) -> None:
    x = place(space, draw(0)).requires_grad_()
    distance = space.distance(x, x.detach())
    assert distance.shape == (0,)
    distance.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert space.centroid(place(space, draw(0, 3)), torch.ones(0, 3)).shape == x.shape


# --- gradients ------------------------------------------------------------------------------------------


@every_space
@pytest.mark.parametrize(
    "shapes", [((6,), (6,)), ((3, 1), (3, 4)), ((1, 4), (3, 1)), ((), (4,)), ((2, 1, 3), (4, 1))]
)
def test_distance_gradient_agrees_with_finite_differences(
    space: Manifold, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    x, y = (place(space, draw(*shape, seed=seed)).requires_grad_() for seed, shape in enumerate(shapes))
    assert torch.autograd.gradcheck(space.distance, (x, y))


@every_space
@pytest.mark.parametrize("name", ["project", "exp", "log", "transport", "to_frame", "from_frame", "norm"])
def test_other_gradients_agree_with_finite_differences(space: Manifold, name: str) -> None:
    x, y = place(space, draw(3, seed=1)), place(space, draw(3, seed=2))
    v = space.from_frame(x, draw(3, seed=3))
    inputs = tuple(tensor.requires_grad_() for tensor in (x, y, v))
    assert torch.autograd.gradcheck(lambda *tensors: OPERATIONS[name](space, *tensors), inputs)


@every_space
def test_gradient_at_coincident_points_is_zero(space: Manifold) -> None:
    for radius in (0.0, 1.0, 5.0):
        x = place(space, radius * unit(draw(5)))
        both = x.clone().requires_grad_(), x.clone().requires_grad_()
        distance = space.distance(*both)
        assert (distance == 0).all()
        for gradient in torch.autograd.grad(distance.sum(), both):
            assert (gradient == 0).all()


@every_space
def test_exp_and_log_have_gradients_where_nothing_moves(space: Manifold) -> None:
    for x in (space.origin(DIM), place(space, draw(5, seed=1))):
        start, tangent = x.clone().requires_grad_(), torch.zeros_like(x).requires_grad_()
        for value in (space.exp(start, tangent), space.log(start, x), space.norm(start, tangent)):
            value.sin().sum().backward()
        assert start.grad is not None
        assert start.grad.isfinite().all()
        assert tangent.grad is not None
        assert tangent.grad.isfinite().all()
    # d exp_x(v) / dv at v = 0 is the identity
    x = place(space, draw(1, seed=1)).squeeze(0)
    jacobian = torch.autograd.functional.jacobian(lambda v: space.exp(x, v), torch.zeros_like(x))
    v = space.from_frame(x, draw(1, seed=2).squeeze(0))
    close(jacobian @ v, v)


def test_distance_refuses_a_second_derivative() -> None:
    for space in (Poincare(), Lorentz()):
        x = place(space, draw(2, seed=1)).requires_grad_()
        with pytest.raises(RuntimeError, match="first derivative only"):
            torch.autograd.grad(space.distance(x, x.detach().flip(0)).sum(), x, create_graph=True)


# --- second implementations -----------------------------------------------------------------------------


def oracle(space: Manifold) -> geoopt.Manifold:
    """geoopt's ball takes ``c = -curvature``, its hyperboloid ``k = -1 / curvature``."""
    c = torch.tensor(-space.curvature, dtype=torch.float64)
    return geoopt.PoincareBall(c=c) if space.name == "poincare" else geoopt.Lorentz(k=1 / c)


@every_hyperbolic
def test_agrees_with_geoopt(space: Manifold) -> None:
    other = oracle(space)
    x, y = place(space, 0.7 * draw(100, seed=1)), place(space, 0.7 * draw(100, seed=2))
    v = space.from_frame(x, draw(100, seed=3))
    close(space.exp(x, v), other.expmap(x, v), 1e-7)
    close(space.log(x, y), other.logmap(x, y), 1e-7)
    close(space.distance(x, y), other.dist(x, y), 1e-7)
    close(space.transport(x, y, v), other.transp(x, y, v), 1e-7)
    close(space.project(x), other.projx(x), 1e-12)
    close(inner(space, x, v, v), other.inner(x, v, v, keepdim=True).squeeze(-1), 1e-7)
    gradient = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(4))
    close(space.riemannian_gradient(x, gradient), other.egrad2rgrad(x, gradient), 1e-7)


@pytest.mark.parametrize(("ball", "sheet"), list(zip(BALLS, SHEETS, strict=True)), ids=map(str, CURVATURES))
def test_both_models_are_one_space(ball: Poincare, sheet: Lorentz) -> None:
    first, second, step = (draw(50, seed=seed) for seed in (1, 2, 3))
    x, y = place(ball, first), place(ball, second)
    xs, ys = place(sheet, first), place(sheet, second)
    close(ball.to_ball(x), sheet.to_ball(xs))
    close(ball.distance(x, y), sheet.distance(xs, ys))
    close(ball.to_frame(x, ball.log(x, y)), sheet.to_frame(xs, sheet.log(xs, ys)))
    v, vs = ball.from_frame(x, step), sheet.from_frame(xs, step)
    close(ball.to_ball(ball.exp(x, v)), sheet.to_ball(sheet.exp(xs, vs)))
    moved = ball.to_frame(y, ball.transport(x, y, v)), sheet.to_frame(ys, sheet.transport(xs, ys, vs))
    close(*moved)
    close(ball.centroid_terms(x), xs)
    weights = torch.ones(1, 50)
    close(ball.to_ball(ball.centroid(x[None], weights)), sheet.to_ball(sheet.centroid(xs[None], weights)))


@every_space
@pytest.mark.parametrize("scale", [1e-9, 1.0, 2.5])
def test_from_ball_inverts_to_ball(space: Manifold, scale: float) -> None:
    x = place(space, scale * draw(50))
    close(space.distance(space.from_ball(space.to_ball(x)), x) / scale, 0.0, 1e-6)


@every_hyperbolic
def test_from_ball_of_the_boundary_is_well_inside(space: Manifold) -> None:
    for length in (1.0, 1.0 + 1e-12, 1e8):
        x = space.from_ball(length * unit(draw(20)))
        assert torch.equal(space.project(x), x)
        close(space.to_ball(x), (1 - 1e-10) * unit(draw(20)), 1e-12)
    assert space.from_ball(torch.full((DIM,), math.nan, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("sheet", SHEETS, ids=label)
def test_from_ball_agrees_with_geoopt(sheet: Lorentz) -> None:
    """geoopt adds 1e-6 to the denominator."""
    y, one = sheet.to_ball(place(sheet, draw(50))), torch.tensor(1.0, dtype=torch.float64)
    close(rate(sheet) * sheet.from_ball(y), geoopt.manifolds.lorentz.math.poincare_to_lorentz(y, one), 1e-3)


@every_hyperbolic
def test_ball_radius_is_the_half_angle(space: Manifold) -> None:
    radii = torch.linspace(0, 6, 20, dtype=torch.float64).unsqueeze(-1)
    ball = space.to_ball(place(space, radii * unit(draw(20))))
    assert ball.shape == (20, DIM)
    close(ball, torch.tanh(rate(space) * radii / 2) * unit(draw(20)))


def exact_distance(space: Manifold, x: Tensor, y: Tensor) -> float:
    """Distance between the very numbers in ``x`` and ``y`` with 80 digits, by the textbook formulas."""
    with mpmath.workdps(80):
        c = mpmath.mpf(-space.curvature)
        p, q = ([mpmath.mpf(value) for value in point.tolist()] for point in (x, y))
        if space.name == "poincare":
            a, b = (1 - c * sum(value**2 for value in point) for point in (p, q))
            cosh = 1 + 2 * c * sum((u - v) ** 2 for u, v in zip(p, q, strict=True)) / (a * b)
        else:
            alpha, beta = (mpmath.sqrt(1 + c * sum(value**2 for value in point[1:])) for point in (p, q))
            cosh = alpha * beta - c * sum(u * v for u, v in zip(p[1:], q[1:], strict=True))
        return float(mpmath.acosh(cosh) / mpmath.sqrt(c))


# --- far from the origin --------------------------------------------------------------------------------

RADII = (1.0, 5.0, 10.0, 15.0)


@every_hyperbolic
@pytest.mark.parametrize("radius", RADII)
def test_far_points_are_where_they_were_put(space: Manifold, radius: float) -> None:
    """Radii are in units of ``1 / s``: so far out is the same number of digits for every curvature."""
    radius /= rate(space)
    direction = unit(draw(50))
    x = place(space, radius * direction)
    close(space.distance(space.origin(DIM), x), radius, resolution(space, radius))
    for shorter in (0.0, 0.3 * radius, radius - 0.5, radius - 1e-3):
        on_ray = place(space, shorter * direction)
        close(space.distance(x, on_ray), radius - shorter, resolution(space, radius))
    opposite = place(space, -radius * direction)
    close(space.distance(x, opposite), 2 * radius, resolution(space, radius))


@every_hyperbolic
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("apart", [1.0, 1e-3, 1e-6])
def test_far_close_points_keep_their_distance(space: Manifold, radius: float, apart: float) -> None:
    """The *relative* error stays small however close the points: differences are taken of coordinates."""
    radius /= rate(space)
    x = place(space, radius * unit(draw(10, seed=1)))
    y = space.exp(x, space.from_frame(x, apart * unit(draw(10, seed=2))))
    exact = torch.tensor([exact_distance(space, *pair) for pair in zip(x, y, strict=True)], dtype=x.dtype)
    close(space.distance(x, y) / exact, 1.0, resolution(space, radius))
    close(space.norm(x, space.log(x, y)) / exact, 1.0, resolution(space, radius))


@every_hyperbolic
@pytest.mark.parametrize("radius", RADII)
def test_far_steps_are_taken(space: Manifold, radius: float) -> None:
    radius /= rate(space)
    x, frame = place(space, radius * unit(draw(50, seed=1))), draw(50, seed=2)
    y = space.exp(x, space.from_frame(x, frame))
    near = 20 * resolution(space, radius)  # coordinates of y are a few units farther out
    close(space.to_frame(x, space.log(x, y)), frame, near)
    close(space.norm(y, space.transport(x, y, space.from_frame(x, frame))), frame.norm(dim=-1), near)
    close(
        space.to_frame(y, space.transport(x, y, space.log(x, y))), -space.to_frame(y, space.log(y, x)), near
    )
    if space.name == "poincare":  # the way back to the origin; Lorentz tangents lose it, see Lorentz.exp
        home = space.exp(x, space.log(x, space.origin(DIM)))
        close(space.distance(space.origin(DIM), home), 0.0, near)


@every_hyperbolic
@pytest.mark.parametrize("radius", [*RADII, 23.0])
@pytest.mark.parametrize("apart", [1.0, 1e-6])
def test_far_gradients_are_unit_vectors(space: Manifold, radius: float, apart: float) -> None:
    radius /= rate(space)
    x = place(space, radius * unit(draw(50, seed=1)))
    near = space.exp(x, space.from_frame(x, -apart * unit(draw(50, seed=2))))
    for y in (near, space.origin(DIM), place(space, radius * unit(draw(50, seed=3)))):
        start = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(space.distance(start, y).sum(), start)
        assert gradient.isfinite().all()
        frame = space.to_frame(x, space.riemannian_gradient(x, gradient))
        close(frame, -unit(space.to_frame(x, space.log(x, y))), 20 * resolution(space, radius))
        close(frame.norm(dim=-1), 1.0, 20 * resolution(space, radius))


@every_hyperbolic
@pytest.mark.parametrize("radius", [*RADII, 18.0, 20.0])
def test_far_centroid(space: Manifold, radius: float) -> None:
    radius /= rate(space)
    x = place(space, radius * unit(draw(20, seed=1)))
    close(space.distance(space.centroid(x.unsqueeze(-2), torch.ones(20, 1)), x), 0.0, 1e-3)
    frames = 0.5 * draw(20, 3, seed=2)
    frames = torch.cat((frames, -frames), dim=1)  # symmetric around x, whose centroid is therefore x
    around = space.exp(x.unsqueeze(1), space.from_frame(x.unsqueeze(1), frames))
    close(space.distance(space.centroid(around, torch.ones(20, 6)), x), 0.0, 1e-3)


@every_hyperbolic
def test_steps_end_inside_the_largest_radius(space: Manifold) -> None:
    limit = math.log(2 / 1e-10 - 1) / rate(space)
    direction = unit(draw(20, seed=1))
    for length in (limit, 2 * limit, 1e3, 1e8):
        x = place(space, length * direction)
        close(space.distance(space.origin(DIM), x), limit, 1e-4)
        close(unit(space.to_ball(x)), direction)
        across = space.exp(x, space.from_frame(x, -1e8 * direction))
        assert across.isfinite().all()
        assert torch.equal(space.project(across), across)
        gradient = torch.autograd.grad(space.distance(x.requires_grad_(), across).sum(), x)[0]
        assert gradient.isfinite().all()


def test_float32_ball_is_smaller_but_sound() -> None:
    for space in (Poincare(dtype=torch.float32), Lorentz(dtype=torch.float32)):
        x = place(space, 1e3 * unit(draw(20, seed=1)).float()).requires_grad_()
        y = space.exp(x.detach(), space.from_frame(x.detach(), -0.1 * unit(draw(20, seed=1)).float()))
        distance = space.distance(x, y)
        assert space.distance(x, space.origin(DIM)).min() > 8
        close(distance, 0.1, 0.05)
        (gradient,) = torch.autograd.grad(distance.sum(), x)
        close(space.norm(x, space.riemannian_gradient(x, gradient)), 1.0, 0.05)


# --- properties -----------------------------------------------------------------------------------------

vectors = st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@every_space
@settings(max_examples=50, deadline=None)
@given(first=vectors, second=vectors, third=vectors)
def test_distance_is_a_metric(space: Manifold, first: Tensor, second: Tensor, third: Tensor) -> None:
    x, y, z = (place(space, frame) for frame in (first, second, third))
    close(space.distance(x, y), space.distance(y, x), 1e-10)
    assert space.distance(x, x) == 0
    assert space.distance(x, y) >= 0
    assert space.distance(x, z) <= space.distance(x, y) + space.distance(y, z) + 1e-10


@every_space
@settings(max_examples=50, deadline=None)
@given(first=vectors, second=vectors, step=vectors)
def test_maps_are_inverse_and_isometric(space: Manifold, first: Tensor, second: Tensor, step: Tensor) -> None:
    x, y = place(space, first), place(space, second)
    tangent = space.from_frame(x, step)
    near = 1e-6  # three steps of up to 5.2 reach radii where double precision has 7 digits
    close(space.to_frame(x, tangent), step, near)
    close(space.distance(x, space.exp(x, tangent)), step.norm(), near)
    close(space.norm(y, space.transport(x, y, tangent)), step.norm(), near)
    close(space.distance(space.exp(x, space.log(x, y)), y), 0.0, near)


@every_hyperbolic
@settings(max_examples=50, deadline=None)
@given(first=vectors, second=vectors, third=vectors)
def test_curvature_is_negative(space: Manifold, first: Tensor, second: Tensor, third: Tensor) -> None:
    """A median is no longer than in flat space of the same side lengths (CAT(0) inequality)."""
    x, y, z = (place(space, frame) for frame in (first, second, third))
    middle = space.exp(y, space.log(y, z) / 2)
    flat = (space.distance(x, y) ** 2 + space.distance(x, z) ** 2) / 2 - space.distance(y, z) ** 2 / 4
    assert space.distance(x, middle) ** 2 <= flat + 1e-8


# --- choosing one ---------------------------------------------------------------------------------------


def test_manifold_by_name() -> None:
    assert manifold("euclidean") == Euclidean(torch.float32)
    assert manifold("euclidean", curvature=3.0, dtype="float64") == Euclidean(torch.float64)
    assert manifold("euclidean").curvature == 0.0
    assert manifold("poincare", -2.0) == Poincare(-2.0, torch.float64)
    assert manifold("lorentz") == Lorentz(-1.0, torch.float64)
    assert manifold("lorentz", dtype="float32") == Lorentz(-1.0, torch.float32)
    assert doctest.testmod(fedemb.manifolds).failed == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: manifold("spherical"), "euclidean, poincare or lorentz, got 'spherical'"),
        (lambda: manifold("poincare", curvature=1.0), "curvature must be negative and finite, got 1.0"),
        (lambda: manifold("lorentz", curvature=0.0), "curvature must be negative"),
        (lambda: manifold("lorentz", curvature=math.nan), "curvature must be negative"),
        (lambda: manifold("lorentz", curvature=-math.inf), "curvature must be negative"),
        (lambda: manifold("euclidean", dtype="int8"), "dtype must be float32 or float64, got 'int8'"),
        (lambda: Poincare(dtype=torch.float16), "dtype must be float32 or float64"),
        (lambda: Euclidean(torch.int64), "dtype must be float32 or float64"),
    ],
)
def test_wrong_setting_is_named(make: Callable[[], Manifold], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
