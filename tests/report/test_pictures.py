"""report/plots.py, disk.py and what they are made of: pictures that show what is there."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from fedemb.data.closure import build_taxonomy
from fedemb.report.arcs import Float64, geodesics
from fedemb.report.branches import branches
from fedemb.report.canvas import figure
from fedemb.report.disk import poincare_disk
from fedemb.report.labels import Label, _extent, place_labels
from fedemb.report.plots import convergence
from fedemb.report.projection import DRAWN_RADIUS, to_disk
from fedemb.types import Taxonomy


def colours(path: Path) -> int:
    """Number of different colours in a picture."""
    picture = np.rint(imread(path)[..., :3] * 255) @ [1, 256, 65536]
    assert min(picture.shape) > 200
    return len(np.unique(picture))


def disk_points(generator: np.random.Generator, count: int) -> Float64:
    radius, angle = np.tanh(generator.uniform(0, 8, count) / 2), generator.uniform(0, 2 * np.pi, count)
    return radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1)


# Geodesics


def test_arcs_are_geodesics() -> None:
    """Ends are exact; every point is on the circle through both that meets the boundary at right angles."""
    generator = np.random.default_rng(0)
    start, end = disk_points(generator, 500), disk_points(generator, 500)
    curves = geodesics(start, end)
    assert curves.shape == (500, 24, 2)
    np.testing.assert_allclose(curves[:, 0], start, atol=1e-14)
    np.testing.assert_allclose(curves[:, -1], end, atol=1e-14)
    for x, y, curve in zip(start, end, curves, strict=True):
        centre = np.linalg.solve(2 * np.stack((x, y)), 1 + np.array([x @ x, y @ y]))
        squared_radius = centre @ centre - 1  # of the circle whose tangents at the boundary go through 0
        squared_distance = np.sum((curve - centre) ** 2, axis=1)
        np.testing.assert_allclose(squared_distance, squared_radius, rtol=1e-9, atol=1e-9)


def test_arcs_run_the_short_way_without_turning_back() -> None:
    """Seen from one end (a Möbius map), a geodesic is a ray, and its points come one after another."""
    generator = np.random.default_rng(1)
    start, end = disk_points(generator, 300), disk_points(generator, 300)
    curve, x, y = (z[..., 0] + 1j * z[..., 1] for z in (geodesics(start, end), start[:, None], end[:, None]))
    seen, target = (curve - x) / (1 - x.conj() * curve), (y - x) / (1 - x.conj() * y)
    along = seen * target.conj() / np.abs(target)
    assert np.abs(along.imag).max() < 1e-9
    assert (np.diff(along.real, axis=1) > 0).all()


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ((0.5, 0.2), (-0.5, -0.2)),
        ((0.0, 0.0), (0.3, 0.9)),
        ((0.9, 0.0), (0.3, 0.0)),
        ((0.4, 0.4), (0.4, 0.4)),
    ],
)
def test_diameters_and_points_are_straight(start: tuple[float, float], end: tuple[float, float]) -> None:
    curve = geodesics(np.array([start]), np.array([end]))[0]
    way = np.array(end) - np.array(start)
    assert np.isfinite(curve).all()
    off = (curve - start) @ np.array([-way[1], way[0]])
    assert np.abs(off).max() < 1e-12
    np.testing.assert_allclose(curve[[0, -1]], [start, end], atol=1e-15)


# Projection


@settings(max_examples=50)
@given(dim=st.integers(1, 6), seed=st.integers(0, 1000), radius=st.floats(0.1, 18))
def test_depth_is_kept(dim: int, seed: int, radius: float) -> None:
    generator = np.random.default_rng(seed)
    direction = generator.normal(size=(50, dim))
    length = generator.uniform(0, radius, 50)
    ball = direction / np.linalg.norm(direction, axis=1, keepdims=True) * np.tanh(length / 2)[:, None]
    found = to_disk(ball)
    drawn = 2 * np.arctanh(np.linalg.norm(found.points, axis=1))
    np.testing.assert_allclose(drawn, found.scale * length, rtol=1e-6, atol=1e-9)
    assert found.scale == pytest.approx(min(1, DRAWN_RADIUS / np.percentile(length, 99)), rel=1e-6)
    assert (dim > 2) == ("dimensions" in found.note)
    assert (found.scale < 1) == ("times" in found.note)


def test_two_dimensions_stay_and_a_plane_is_found() -> None:
    generator = np.random.default_rng(0)
    plane = disk_points(generator, 40) * 0.8
    np.testing.assert_allclose(to_disk(plane).points, plane, atol=1e-12)
    turn = np.linalg.qr(generator.normal(size=(5, 5)))[0][:2]
    found = to_disk(plane @ turn)
    single = np.concatenate((plane @ turn, np.zeros((1, 5)))).astype(np.float32)
    np.testing.assert_allclose(to_disk(single).points[:-1], found.points, atol=1e-3)
    np.testing.assert_array_equal(to_disk(single).points[-1], 0)
    assert to_disk(single[:, :2]).points.dtype == np.float64
    assert found.share == pytest.approx(1)
    np.testing.assert_allclose(found.points @ found.points.T, plane @ plane.T, atol=1e-9)  # up to a turn
    with pytest.raises(ValueError, match=r"inside the unit ball, got a norm of 2\.0"):
        to_disk(np.array([[2.0, 0.0, 0.0]]))


# Branches


def tree(*edges: tuple[int, int]) -> Taxonomy:
    child, parent = np.array(edges).T
    return build_taxonomy(child, parent, int(max(child.max(), parent.max())) + 1)


def star(first: int, parent: int, count: int) -> list[tuple[int, int]]:
    return [(first + number, parent) for number in range(count)]


def test_branches_of_a_tree() -> None:
    """0 has 1 and 2; 1 has 3 and 4, each with leaves; 2 has leaves only."""
    graph = tree((1, 0), (2, 0), (3, 1), (4, 1), *star(5, 3, 10), *star(15, 4, 8), *star(23, 2, 6))
    labels, roots = branches(graph)
    assert roots.tolist() == [3, 4, 2]
    assert labels.tolist() == [-1, -1, 2, 0, 1] + [0] * 10 + [1] * 8 + [2] * 6
    labels, roots = branches(graph, max_branches=2)
    assert roots.tolist() == [1, 2]
    assert branches(graph, max_branches=1)[1].tolist() == [0]
    with pytest.raises(ValueError, match="max_branches must be at least 1, got 0"):
        branches(graph, 0)


def test_a_single_path_down_is_followed_and_a_star_is_one_branch() -> None:
    labels, roots = branches(tree((1, 0), (2, 1), (3, 1), *star(4, 2, 5), *star(9, 3, 4)))
    assert roots.tolist() == [2, 3]
    _, roots = branches(tree((1, 0), (2, 0), (3, 1), *star(4, 3, 10), *star(14, 2, 8)))
    assert roots.tolist() == [1, 2]  # not 3, which 1 consists of: the more general name says as much
    labels, roots = branches(tree(*star(1, 0, 60)))
    assert roots.tolist() == [0]
    assert (labels == 0).all()


def test_what_is_in_two_branches_belongs_to_the_smaller() -> None:
    shared = 20
    graph = tree((1, 0), (2, 0), *star(3, 1, 10), *star(13, 2, 5), (shared, 1), (shared, 2))
    labels, roots = branches(graph)
    assert roots.tolist() == [1, 2]
    assert labels[shared] == 1


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), num_nodes=st.integers(2, 80), max_branches=st.integers(1, 12))
def test_branches_of_any_graph(seed: int, num_nodes: int, max_branches: int) -> None:
    generator = np.random.default_rng(seed)
    child = generator.integers(1, num_nodes, 2 * num_nodes)
    graph = build_taxonomy(child, generator.integers(0, child), num_nodes)
    labels, roots = branches(graph, max_branches)
    assert 1 <= len(roots) <= max_branches
    assert len(set(roots.tolist())) == len(roots)
    above = set(zip(graph.child.tolist(), graph.parent.tolist(), strict=True))
    for node, label in enumerate(labels.tolist()):
        belongs = {
            number for number, root in enumerate(roots.tolist()) if node == root or (node, root) in above
        }
        assert label == max(belongs, default=-1)


# Pictures


def test_a_disk_shows_every_branch(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    graph = tree((1, 0), (2, 0), (3, 1), (4, 1), *star(5, 3, 10), *star(15, 4, 8), *star(23, 2, 6))
    labels, roots = branches(graph)
    names = [
        f"$node_{number}^$ <b> 猫" for number in range(len(labels))
    ]  # no formula, no markup, no such letter
    names[3] = "a long name " * 5
    points = disk_points(generator, len(labels))
    points[-1] = np.nan
    edges = np.stack((graph.child[graph.direct], graph.parent[graph.direct]), axis=1)
    path = tmp_path / "pictures" / "disk.png"
    poincare_disk(points, edges, names, labels, [names[root] for root in roots], path, "$a^$ note")
    assert colours(path) > 200
    picture = imread(path)[..., :3]
    for colour in ("0072b2", "d55e00", "009e73"):
        wanted = np.array([int(colour[place : place + 2], 16) for place in (0, 2, 4)]) / 255
        assert (np.abs(picture - wanted).max(axis=2) < 0.01).sum() > 50
    branch = np.zeros(len(labels), dtype=np.int64)
    poincare_disk(points, edges[:0], names, branch, ["all"], path)
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    assert (
        np.abs(imread(path)[..., :3] - blue).max(axis=2) < 0.01
    ).sum() > 28 * 80  # each node, not the legend only
    with pytest.raises(ValueError, match="inside the unit disk"):
        poincare_disk(2 + points, edges, names, labels, [names[root] for root in roots], path)


def test_a_disk_of_almost_nothing(tmp_path: Path) -> None:
    nothing = np.empty((0, 2), dtype=np.int64)
    poincare_disk(np.zeros((1, 2)), nothing, ["one"], np.array([-1]), [], tmp_path / "one.png")
    assert colours(tmp_path / "one.png") > 10


def test_labels_do_not_cover_each_other() -> None:
    made = figure(6, 6)
    axes = made.add_axes((0, 0, 1, 1))
    axes.set_xlim(-1, 1)
    axes.set_ylim(-1, 1)
    points = np.concatenate(
        (np.random.default_rng(0).uniform(-0.1, 0.1, (12, 2)), [[0.99, 0.99], [-0.99, 0.0]])
    )
    labels = [Label(node, f"a name of some length {node}", "black") for node in range(len(points))]
    offsets = place_labels(axes, points, labels)
    boxes = []
    for label, offset in zip(labels, offsets, strict=True):
        centre = axes.transData.transform(points[label.node]) + np.array(offset) * made.dpi / 72
        half = _extent(axes, label.text) / 2
        boxes.append((centre - half, centre + half))
    frame = axes.get_window_extent()
    for number, (low, high) in enumerate(boxes):
        assert (low >= [frame.x0, frame.y0]).all()
        assert (high <= [frame.x1, frame.y1]).all()
        for other_low, other_high in boxes[:number]:
            assert (low >= other_high).any() or (high <= other_low).any()


def lines_of(phase: str, rounds: int, every: int) -> list[dict[str, object]]:
    return [
        {"phase": phase, "round": r, "rounds": rounds, "loss": 1 / r}
        | ({"map": 1 - 1 / r} if r % every == 0 else {})
        for r in range(1, rounds + 1)
    ]


def test_convergence(tmp_path: Path) -> None:
    metrics = lines_of("federated", 20, 5) + lines_of("centralized", 40, 10)
    path = tmp_path / "curves.png"
    assert convergence(metrics, path)
    plain = imread(path)
    assert colours(path) > 100
    references = [{"phase": "local_only", "round": 3, "rounds": 3}, {"phase": "local_only", "map": 0.2}]
    assert convergence([*metrics, *references, {"phase": "$x^$", "map": 0.1}], path)
    more = imread(path)
    green = np.array([0x00, 0x9E, 0x73]) / 255
    count = [(np.abs(picture[..., :3] - green).max(axis=2) < 0.01).sum() for picture in (plain, more)]
    assert count[0] == 0
    assert count[1] > 1000  # all the way across, not in the legend only


def test_convergence_of_little(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    assert not convergence([], path)
    assert not convergence([{"phase": "federated", "round": 1, "rounds": 1, "loss": None, "map": None}], path)
    assert not path.exists()
    assert convergence([{"phase": "federated", "round": 1, "rounds": 1, "$x^$": 0.5}], path)
    one_panel = imread(path).shape[0]
    assert convergence(lines_of("federated", 5, 5), path, metric="map")
    assert imread(path).shape[0] > 1.5 * one_panel
