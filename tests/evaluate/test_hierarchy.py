"""evaluate/hierarchy.py against an obvious slow version, the definition of distance, and scipy."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedemb.data.closure import build_taxonomy
from fedemb.data.shards import Shards
from fedemb.evaluate.hierarchy import (
    Reconstruction,
    average_precision,
    norm_depth_correlation,
    reconstruction,
)
from fedemb.manifolds import Euclidean, Lorentz, Poincare
from fedemb.types import Manifold, Taxonomy


def slow(distance: np.ndarray, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
    """The definition, pair by pair, from a full matrix of distances."""
    num_nodes = len(taxonomy.depth)
    above: dict[int, set[int]] = {}
    for child, parent in zip(taxonomy.child.tolist(), taxonomy.parent.tolist(), strict=True):
        above.setdefault(child, set()).add(parent)
    ranks = []
    for child, parent in zip(taxonomy.child.tolist(), taxonomy.parent.tolist(), strict=True):
        rank = 1.0
        for other in set(range(num_nodes)) - above[child] - {child}:
            if distance[child, other] < distance[child, parent]:
                rank += 1
            elif distance[child, other] == distance[child, parent]:
                rank += 0.5
        ranks.append(rank)
    rank_of = dict(
        zip(zip(taxonomy.child.tolist(), taxonomy.parent.tolist(), strict=True), ranks, strict=True)
    )
    precision = np.full(num_nodes, np.nan)
    for child, parents in above.items():
        ordered = sorted(rank_of[child, parent] for parent in parents)
        precision[child] = np.mean([i / (i + rank - 1) for i, rank in enumerate(ordered, start=1)])
    return precision, np.array(ranks)


def random_taxonomy(generator: np.random.Generator, num_nodes: int, num_edges: int) -> Taxonomy:
    """A random directed acyclic graph, its pairs in random order."""
    if not num_edges:
        nothing = np.array([], dtype=np.int64)
        return Taxonomy(nothing, nothing, np.zeros(num_nodes, dtype=np.int64), nothing.astype(bool))
    child = generator.integers(1, num_nodes, num_edges)
    parent = generator.integers(0, child)
    graph = build_taxonomy(child, parent, num_nodes)
    order = generator.permutation(len(graph.child))
    return Taxonomy(graph.child[order], graph.parent[order], graph.depth, graph.direct[order])


def random_points(
    space: Manifold, generator: np.random.Generator, num_nodes: int, radius: float
) -> torch.Tensor:
    direction = torch.from_numpy(generator.normal(size=(num_nodes, 3)))
    direction *= torch.from_numpy(generator.uniform(0, radius, (num_nodes, 1))) / direction.norm(
        dim=1, keepdim=True
    )
    origin = space.origin(3).double()
    return space.exp(origin, space.from_frame(origin, direction))


SPACES = [Euclidean(torch.float64), Poincare(), Lorentz(), Poincare(-0.25), Lorentz(-4.0)]


@pytest.mark.parametrize("space", SPACES, ids=repr)
@pytest.mark.parametrize("radius", [0.01, 2.0, 5.0])
def test_equals_the_definition(space: Manifold, radius: float) -> None:
    generator = np.random.default_rng(1)
    taxonomy = random_taxonomy(generator, 60, 80)
    points = random_points(space, generator, 60, radius)
    distance = space.distance(points[:, None], points[None]).numpy()
    expected_precision, expected_rank = slow(distance, taxonomy)
    precision, rank = reconstruction(points, space, taxonomy)
    np.testing.assert_array_equal(rank, expected_rank)
    np.testing.assert_allclose(precision, expected_precision, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_nodes=st.integers(2, 25),
    num_edges=st.integers(0, 40),
    steps=st.integers(1, 6),
    block_bytes=st.integers(1, 2000),
)
def test_any_graph_with_many_ties(
    seed: int, num_nodes: int, num_edges: int, steps: int, block_bytes: int
) -> None:
    """Whole-number coordinates: equal distances are equal to the last bit, in both versions."""
    generator = np.random.default_rng(seed)
    taxonomy = random_taxonomy(generator, num_nodes, num_edges)
    points = generator.integers(0, steps, (num_nodes, 2))
    distance = np.square(points[:, None] - points[None]).sum(-1)
    precision, rank = reconstruction(torch.from_numpy(points), Euclidean(), taxonomy, block_bytes)
    expected_precision, expected_rank = slow(distance, taxonomy)
    np.testing.assert_array_equal(rank, expected_rank)
    np.testing.assert_allclose(precision, expected_precision, rtol=1e-12)
    known = ~np.isnan(precision)
    assert ((precision[known] > 0) & (precision[known] <= 1)).all()
    assert ((rank >= 1) & (rank <= num_nodes)).all()


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_all_points_in_one_place_are_at_chance(space: Manifold) -> None:
    taxonomy = random_taxonomy(np.random.default_rng(0), 30, 40)
    points = space.origin(2).double().expand(30, -1)
    _, rank = reconstruction(points, space, taxonomy)
    num_others = 29 - np.bincount(taxonomy.child, minlength=30)[taxonomy.child]
    np.testing.assert_array_equal(rank, 1 + num_others / 2)


def test_blocks_do_not_matter() -> None:
    generator = np.random.default_rng(3)
    taxonomy = random_taxonomy(generator, 200, 300)
    points = random_points(Poincare(), generator, 200, 6.0)
    whole = reconstruction(points, Poincare(), taxonomy, 1 << 30)
    for block_bytes in (0, 8 * 200, 8 * 200 * 7 + 5):
        for ours, theirs in zip(
            reconstruction(points, Poincare(), taxonomy, block_bytes), whole, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def chain_points(space: Manifold) -> tuple[torch.Tensor, Taxonomy]:
    """A binary tree of depth 2: each node nearer to its ancestors than to anything else."""
    taxonomy = build_taxonomy(np.array([1, 2, 3, 4, 5, 6]), np.array([0, 0, 1, 1, 2, 2]), 7)
    angle = torch.tensor(
        [0.0, 0.0, math.pi, 0.25, -0.25, math.pi + 0.25, math.pi - 0.25], dtype=torch.float64
    )
    radius = torch.tensor([0.0, 3, 3, 6, 6, 6, 6], dtype=torch.float64)
    origin = space.origin(2)
    frame = radius[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1)
    return space.exp(origin, space.from_frame(origin, frame)), taxonomy


@pytest.mark.parametrize("space", [Poincare(), Lorentz()], ids=repr)
def test_a_perfect_embedding_is_perfect(space: Manifold) -> None:
    points, taxonomy = chain_points(space)
    precision, rank = reconstruction(points, space, taxonomy)
    np.testing.assert_array_equal(precision, [np.nan, 1, 1, 1, 1, 1, 1])
    assert (rank == 1).all()
    assert norm_depth_correlation(points, space, taxonomy) > 0.9  # radii of one depth differ by rounding


@pytest.mark.parametrize("space", [Poincare(), Lorentz()], ids=repr)
def test_near_the_boundary_nothing_is_lost(space: Manifold) -> None:
    """At radius 15, nodes in a row 0.01 apart: only differences of coordinates can tell them apart."""
    num_nodes = 50
    taxonomy = build_taxonomy(np.arange(1, num_nodes), np.arange(num_nodes - 1), num_nodes)
    radius = 15 + 0.01 * torch.arange(num_nodes, dtype=torch.float64)
    origin = space.origin(3)
    frame = radius[:, None] * torch.tensor([0.6, 0.64, 0.48], dtype=torch.float64)
    _, rank = reconstruction(space.exp(origin, space.from_frame(origin, frame)), space, taxonomy)
    # Ancestors of node n are all before it; at distance k of them stand k - 1 nodes after it that are nearer.
    gap = taxonomy.child - taxonomy.parent
    after = np.minimum(gap, num_nodes - 1 - taxonomy.child)
    assert (np.abs(rank - (1 + after)) <= 1).all()  # the k-th after it is as far but for rounding


def test_points_that_are_lost_come_last() -> None:
    points, taxonomy = chain_points(Poincare())
    points = points.clone()
    points[1] = math.nan
    _, rank = reconstruction(points, Poincare(), taxonomy)
    to_lost = taxonomy.parent == 1
    assert (rank[to_lost] == 1 + 4).all()  # all four of the others are nearer
    assert (rank[taxonomy.child == 1] == 1 + 5 / 2).all()  # from nowhere all are as far
    assert (rank[~to_lost & (taxonomy.child != 1)] == 1).all()
    _, rank = reconstruction(torch.full((7, 2), math.nan), Euclidean(), taxonomy)
    assert (rank > 2).all()


def test_average_precision_of_some_pairs() -> None:
    """Held-out pairs alone: 1/1 and 2/(2+3) for node 1, 1/4 for node 3."""
    precision = average_precision(np.array([3, 1, 1]), np.array([4.0, 4.0, 1.0]), 4)
    np.testing.assert_allclose(precision, [np.nan, (1 + 2 / 5) / 2, np.nan, 1 / 4])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=2, max_size=40))
def test_norm_depth_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    radius, depth = np.array(pairs).T
    taxonomy = Taxonomy(np.array([]), np.array([]), depth, np.array([], dtype=bool))
    points = torch.from_numpy(np.stack([radius, np.zeros_like(radius)], axis=1))
    ours = norm_depth_correlation(points, Euclidean(), taxonomy)
    if len(set(radius.tolist())) == 1 or len(set(depth.tolist())) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(stats.spearmanr(radius, depth).statistic, abs=1e-12)


def test_evaluation_per_client() -> None:
    generator = np.random.default_rng(5)
    taxonomy = random_taxonomy(generator, 40, 60)
    points = random_points(Lorentz(), generator, 40, 4.0)
    held = [np.array([0, 1, 2]), np.array([], dtype=np.int64), np.arange(10, 25), np.array([2])]
    lines = np.concatenate(held)
    columns = {"child": taxonomy.child[lines], "parent": taxonomy.parent[lines]}
    shards = Shards(columns, np.cumsum([0] + [len(pairs) for pairs in held]))
    evaluation = Reconstruction("node", Lorentz(), taxonomy, shards)
    assert not evaluation.on_clients
    precision, rank = reconstruction(points, Lorentz(), taxonomy)
    for clients in ([0, 1, 2, 3], [3, 1], [2]):
        result = evaluation({"node": points}, {}, np.array(clients))
        assert result.clients.tolist() == clients
        assert set(result.metrics) == {"map", "mean_rank", "norm_depth_correlation"}
        assert result.metrics["map"] == pytest.approx(np.nanmean(precision))
        assert result.metrics["mean_rank"] == pytest.approx(rank.mean())
        for place, client in enumerate(clients):
            pairs = held[client]
            children = np.unique(taxonomy.child[pairs])
            expected = [precision[children].mean(), rank[pairs].mean()] if len(pairs) else [np.nan] * 2
            ours = [result.per_client[name][place] for name in ("map", "mean_rank")]
            np.testing.assert_allclose(ours, expected)


def test_wrong_input_is_refused() -> None:
    taxonomy = build_taxonomy(np.array([1]), np.array([0]), 2)
    with pytest.raises(ValueError, match="a row for each of the 2 nodes, got 3"):
        reconstruction(torch.zeros(3, 2), Euclidean(), taxonomy)
    shards = Shards({"child": np.array([0]), "parent": np.array([1])}, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"in the taxonomy's closure, got \(0, 1\)"):
        Reconstruction("node", Euclidean(), taxonomy, shards)({"node": torch.zeros(2, 2)}, {}, np.array([0]))
    edgeless = random_taxonomy(np.random.default_rng(0), 2, 0)
    with pytest.raises(ValueError, match="in the taxonomy's closure"):
        Reconstruction("node", Euclidean(), edgeless, shards)({"node": torch.zeros(2, 2)}, {}, np.array([0]))


def test_memory_follows_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 nodes: all distances at once are 72 MB, a block is 1 MB. Also a guard on time."""
    generator = np.random.default_rng(0)
    taxonomy = random_taxonomy(generator, 3000, 3000)
    points = random_points(Poincare(), generator, 3000, 3.0)
    blocks, cdist = [], torch.cdist

    def counted(x: torch.Tensor, y: torch.Tensor, compute_mode: str) -> torch.Tensor:
        block = cdist(x, y, compute_mode=compute_mode)
        blocks.append(block.numel() * block.element_size())
        return block

    monkeypatch.setattr(torch, "cdist", counted)
    start = time.thread_time()
    reconstruction(points, Poincare(), taxonomy, block_bytes=1 << 20)
    assert time.thread_time() - start < 10  # 0.3 usually
    assert 0.9 * (1 << 20) < max(blocks) <= 1 << 20
