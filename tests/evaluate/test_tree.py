"""evaluate/tree.py against loops over nodes and pairs, and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedemb.data.closure import build_taxonomy
from fedemb.evaluate import tree
from fedemb.evaluate.tree import (
    average_ranks,
    chain_order,
    distance_correlation,
    norm_depth_correlation,
    tree_pairs,
)
from fedemb.manifolds import Euclidean, Lorentz, Poincare
from fedemb.types import Manifold, Taxonomy
from tests.evaluate.test_hierarchy import SPACES, chain_points, random_points, random_taxonomy


def slow_steps(taxonomy: Taxonomy) -> np.ndarray:
    """Edges between all nodes ``(nodes, nodes)``, breadth first from each; infinite where there is no way."""
    num_nodes = len(taxonomy.depth)
    beside: list[set[int]] = [set() for _ in range(num_nodes)]
    for child, parent in zip(
        taxonomy.child[taxonomy.direct].tolist(), taxonomy.parent[taxonomy.direct].tolist(), strict=True
    ):
        beside[child].add(parent)
        beside[parent].add(child)
    steps = np.full((num_nodes, num_nodes), np.inf)
    for source in range(num_nodes):
        reached, frontier, step = {source}, {source}, 0
        while frontier:
            steps[source, list(frontier)] = step
            frontier = {other for node in frontier for other in beside[node]} - reached
            reached |= frontier
            step += 1
    return steps


def slow_chains(radius: np.ndarray, taxonomy: Taxonomy) -> tuple[int, int]:
    """Chains in order, and all chains."""
    pairs = set(zip(taxonomy.child.tolist(), taxonomy.parent.tolist(), strict=True))
    chains = [(a, b, c) for (c, b), (other, a) in itertools.product(pairs, pairs) if b == other]
    return sum(bool(radius[a] < radius[b] < radius[c]) for a, b, c in chains), len(chains)


def plane(*radius: float) -> torch.Tensor:
    return torch.tensor([[r, 0.0] for r in radius], dtype=torch.float64)


@pytest.mark.parametrize("space", SPACES, ids=repr)
@pytest.mark.parametrize("radius", [0.01, 2.0, 5.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_definition(space: Manifold, radius: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    taxonomy = random_taxonomy(generator, 60, 55)
    points = random_points(space, generator, 60, radius)
    distance = space.distance(points[:, None], points[None]).numpy()
    from_origin = space.distance(points, space.origin(3).double()).numpy()
    steps = slow_steps(taxonomy)
    assert np.isinf(steps).any(), "several components"
    chosen = np.triu(np.isfinite(steps), k=1)
    expected = stats.spearmanr(distance[chosen], steps[chosen]).statistic
    for block_bytes in (1, 8 * 60 * 7, 1 << 24):
        pairs = tree_pairs(taxonomy, block_bytes=block_bytes)
        ours = distance_correlation(points, space, pairs, block_bytes)
        assert ours == pytest.approx(expected, abs=1e-9)
    in_order, num_chains = slow_chains(from_origin, taxonomy)
    assert 0 < in_order < num_chains
    assert chain_order(points, space, taxonomy) == in_order / num_chains


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_nodes=st.integers(2, 20),
    num_edges=st.integers(0, 30),
    steps=st.integers(1, 5),
)
def test_any_graph_with_many_ties(seed: int, num_nodes: int, num_edges: int, steps: int) -> None:
    """Whole-number coordinates on a line: equal distances are equal to the last bit."""
    generator = np.random.default_rng(seed)
    taxonomy = random_taxonomy(generator, num_nodes, num_edges)
    place = generator.integers(0, steps, num_nodes)
    points = torch.from_numpy(place)[:, None]
    pairs = tree_pairs(taxonomy)
    between = slow_steps(taxonomy)
    chosen = [(a, b) for a, b in itertools.combinations(range(num_nodes), 2) if np.isfinite(between[a, b])]
    assert list(zip(*(index.tolist() for index in np.nonzero(pairs.kept)), strict=True)) == chosen
    assert pairs.steps.tolist() == [between[pair] for pair in chosen]
    ours = distance_correlation(points, Euclidean(), pairs)
    distance = [abs(place[a] - place[b]) for a, b in chosen]
    if len(set(distance)) < 2 or len(set(pairs.steps.tolist())) < 2:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(stats.spearmanr(distance, pairs.steps).statistic, abs=1e-12)
    in_order, num_chains = slow_chains(place, taxonomy)
    share = chain_order(points, Euclidean(), taxonomy)
    assert share == in_order / num_chains if num_chains else math.isnan(share)


def test_a_large_graph_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MIN_SOURCES", 20)
    generator = np.random.default_rng(4)
    taxonomy = random_taxonomy(generator, 400, 1500)
    points = random_points(Poincare(), generator, 400, 3.0)
    between = slow_steps(taxonomy)
    for max_pairs, num_sources, num_targets in (
        (5_000, 20, 250), (30_000, 75, 325), (10, 20, 1), (79_799, 199, 201)
    ):  # fmt: skip
        pairs = tree_pairs(taxonomy, max_pairs)
        assert pairs.kept.shape == (len(pairs.sources), len(pairs.targets)) == (num_sources, num_targets)
        assert not set(pairs.sources.tolist()) & set(pairs.targets.tolist()), "no pair counts twice"
        expected = between[np.ix_(pairs.sources, pairs.targets)]
        np.testing.assert_array_equal(pairs.kept, np.isfinite(expected))
        np.testing.assert_array_equal(pairs.steps, expected[pairs.kept])
        distance = Poincare().distance(points[pairs.sources][:, None], points[pairs.targets][None]).numpy()
        ours = distance_correlation(points, Poincare(), pairs)
        assert ours == pytest.approx(stats.spearmanr(distance[pairs.kept], pairs.steps).statistic, abs=1e-9)
        again, other = tree_pairs(taxonomy, max_pairs), tree_pairs(taxonomy, max_pairs, seed=1)
        np.testing.assert_array_equal(again.sources, pairs.sources)
        np.testing.assert_array_equal(again.targets, pairs.targets)
        assert other.sources.tolist() != pairs.sources.tolist()
    assert len(tree_pairs(taxonomy, 79_800).sources) == 400, "all pairs are few enough"


@pytest.mark.parametrize("space", [Poincare(), Lorentz()], ids=repr)
def test_a_perfect_embedding(space: Manifold) -> None:
    points, taxonomy = chain_points(space)
    assert chain_order(points, space, taxonomy) == 1
    assert chain_order(-points if space.name == "poincare" else points, space, taxonomy) == 1
    assert distance_correlation(points, space, tree_pairs(taxonomy)) > 0.9


def test_a_path_on_a_line_is_its_own_distance() -> None:
    taxonomy = build_taxonomy(np.arange(1, 9), np.arange(8), 9)
    points = plane(*range(9))
    assert distance_correlation(points, Euclidean(), tree_pairs(taxonomy)) == pytest.approx(1)
    assert chain_order(points, Euclidean(), taxonomy) == 1
    assert norm_depth_correlation(points, Euclidean(), taxonomy) == pytest.approx(1)
    assert chain_order(points.flip(0), Euclidean(), taxonomy) == 0
    assert norm_depth_correlation(points.flip(0), Euclidean(), taxonomy) == pytest.approx(-1)


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_all_points_in_one_place(space: Manifold) -> None:
    taxonomy = random_taxonomy(np.random.default_rng(0), 30, 40)
    points = space.origin(2).double().expand(30, -1)
    assert math.isnan(distance_correlation(points, space, tree_pairs(taxonomy)))
    assert math.isnan(norm_depth_correlation(points, space, taxonomy))
    assert chain_order(points, space, taxonomy) == 0, "no order is strict"


@pytest.mark.parametrize("num_nodes", [0, 1, 5])
def test_no_edges(num_nodes: int) -> None:
    taxonomy = random_taxonomy(np.random.default_rng(0), num_nodes, 0)
    points = random_points(Lorentz(), np.random.default_rng(0), num_nodes, 1.0)
    pairs = tree_pairs(taxonomy)
    assert len(pairs.steps) == 0
    assert math.isnan(distance_correlation(points, Lorentz(), pairs))
    assert math.isnan(chain_order(points, Lorentz(), taxonomy))
    assert math.isnan(norm_depth_correlation(points, Lorentz(), taxonomy))


@pytest.mark.parametrize("space", [Euclidean(), Poincare(), Lorentz()], ids=repr)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_points_that_are_lost_are_infinitely_far(space: Manifold, broken: float) -> None:
    generator = np.random.default_rng(2)
    taxonomy = random_taxonomy(generator, 40, 60)
    points = random_points(space, generator, 40, 3.0)
    distance = space.distance(points[:, None], points[None])
    radius = space.distance(points, space.origin(3).double()).numpy()
    lost = [0, 7, 20]
    points[lost, -1] = broken
    distance[lost] = distance[:, lost] = math.inf
    radius[lost] = math.inf
    steps = slow_steps(taxonomy)
    chosen = np.triu(np.isfinite(steps), k=1)
    expected = stats.spearmanr(distance.numpy()[chosen], steps[chosen]).statistic
    assert distance_correlation(points, space, tree_pairs(taxonomy)) == pytest.approx(expected, abs=1e-9)
    in_order, num_chains = slow_chains(radius, taxonomy)
    assert chain_order(points, space, taxonomy) == in_order / num_chains
    expected = stats.spearmanr(radius, taxonomy.depth).statistic
    assert norm_depth_correlation(points, space, taxonomy) == pytest.approx(expected, abs=1e-12)
    everything = torch.full_like(points, broken)
    assert math.isnan(distance_correlation(everything, space, tree_pairs(taxonomy)))
    assert math.isnan(norm_depth_correlation(everything, space, taxonomy))
    assert chain_order(everything, space, taxonomy) == 0


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=2, max_size=40))
def test_norm_depth_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    radius, depth = np.array(pairs).T
    taxonomy = Taxonomy(np.array([]), np.array([]), depth, np.array([], dtype=bool))
    ours = norm_depth_correlation(plane(*radius), Euclidean(), taxonomy)
    if len(set(radius.tolist())) == 1 or len(set(depth.tolist())) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(stats.spearmanr(radius, depth).statistic, abs=1e-12)


@settings(max_examples=100)
@given(st.lists(st.sampled_from([0.0, 1.5, -2.0, 3.0, math.inf]), max_size=20))
def test_average_ranks_are_scipys(values: list[float]) -> None:
    np.testing.assert_array_equal(average_ranks(np.array(values)), stats.rankdata(values))
