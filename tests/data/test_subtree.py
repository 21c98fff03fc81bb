"""Parts of a forest: complete, weighty, connected, nearly equal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedemb.data.closure import build_taxonomy
from fedemb.data.subtree import cut_forest, spanning_forest
from fedemb.types import Int64


def above(parents: Int64, node: int) -> list[int]:
    """The node and its ancestors, -1 (the top of all) last."""
    path = [node]
    while path[-1] >= 0:
        path.append(int(parents[path[-1]]))
    return path


@st.composite
def forests(draw: st.DrawFn) -> tuple[Int64, Int64]:
    num_nodes = draw(st.integers(1, 30))
    parents = [draw(st.integers(-1, node - 1)) for node in range(num_nodes)]
    weights = draw(st.lists(st.integers(0, 9), min_size=num_nodes, max_size=num_nodes))
    return np.array(parents), np.array(weights)


@given(forests(), st.data())
def test_parts_hang_together_and_have_weight(forest: tuple[Int64, Int64], data: st.DataObject) -> None:
    parents, weights = forest
    weights[0] = max(1, weights[0])
    num_parts = data.draw(st.integers(1, int(np.count_nonzero(weights))))
    part, roots = cut_forest(parents, weights, num_parts)
    assert len(roots) == num_parts == len(set(roots))
    assert list(roots) == sorted(roots)
    assert (np.bincount(part, weights=weights, minlength=num_parts) > 0).all()
    for index, root in enumerate(roots):
        members = np.flatnonzero(part == index)
        assert root in members
        tops = [node for node in members if parents[node] < 0 or part[parents[node]] != index]
        assert len({parents[node] for node in tops}) == 1, "tops are one node, or siblings"
        assert root in tops
        for node in members:
            path = above(parents, int(node))
            top = next(place for place, other in enumerate(path) if other in tops)
            assert all(part[other] == index for other in path[: top + 1]), "connected below its top"


@pytest.mark.parametrize("num_parts", [1, 2, 7, 10, 33, 100])
def test_a_star_is_shared_evenly(num_parts: int) -> None:
    parents = np.array([-1] + [0] * 100)
    part, _ = cut_forest(parents, np.array([0] + [1] * 100), num_parts)
    sizes = np.bincount(part[1:])
    assert sizes.max() <= 2 * sizes.min()
    assert sizes.max() <= -(-100 // num_parts) + 1


def test_a_chain_and_many_trees_are_shared_evenly() -> None:
    part, _ = cut_forest(np.arange(-1, 99), np.ones(100, dtype=np.int64), 10)
    assert np.bincount(part).tolist() == [10] * 10
    part, _ = cut_forest(np.full(100, -1), np.ones(100, dtype=np.int64), 10)
    assert set(np.bincount(part).tolist()) <= {9, 10, 11}


def test_every_weighty_node_can_be_a_part_of_its_own() -> None:
    parents = np.array([-1, 0, 1, 2, 2, 0])
    weights = np.array([0, 0, 5, 0, 1, 3])
    part, roots = cut_forest(parents, weights, 3)
    assert sorted(np.bincount(part, weights=weights).tolist()) == [1, 3, 5]
    assert {4} <= set(roots)


def test_a_node_stays_below_its_parent_nearest_to_a_root() -> None:
    # 0 and 1 are roots, 2 is below 0, 3 below 1 and 2, 4 below 0 and 1.
    taxonomy = build_taxonomy(np.array([2, 3, 3, 4, 4]), np.array([0, 1, 2, 1, 0]), 5)
    assert spanning_forest(taxonomy).tolist() == [-1, -1, 0, 1, 0]
