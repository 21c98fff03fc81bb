"""The closure against its definition, and cycles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedemb.data.closure import build_taxonomy, restrict
from fedemb.errors import DataError
from fedemb.types import Int64, Taxonomy

Edge = tuple[int, int]


@st.composite
def graphs(draw: st.DrawFn, max_nodes: int = 12) -> tuple[int, list[Edge]]:
    """A graph without cycles but with self loops and repeated edges, its nodes in any order."""
    num_nodes = draw(st.integers(1, max_nodes))
    place = draw(st.permutations(range(num_nodes)))
    ends = st.tuples(st.integers(0, num_nodes - 1), st.integers(0, num_nodes - 1))
    edges = draw(st.lists(ends, max_size=3 * num_nodes))
    return num_nodes, [(place[max(edge)], place[min(edge)]) for edge in edges]


def columns(edges: list[Edge]) -> tuple[Int64, Int64]:
    array = np.array(edges, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def slow_closure(edges: list[Edge]) -> set[Edge]:
    pairs = {(child, parent) for child, parent in edges if child != parent}
    while True:
        more = {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs
        if not more:
            return pairs
        pairs |= more


def slow_depth(node: int, pairs: set[Edge]) -> int:
    return max((1 + slow_depth(parent, pairs) for child, parent in pairs if child == node), default=0)


def pairs_of(taxonomy: Taxonomy) -> list[Edge]:
    return list(zip(taxonomy.child.tolist(), taxonomy.parent.tolist(), strict=True))


def check(taxonomy: Taxonomy, pairs: set[Edge], num_nodes: int) -> None:
    assert pairs_of(taxonomy) == sorted(pairs)
    assert taxonomy.depth.tolist() == [slow_depth(node, pairs) for node in range(num_nodes)]
    between = {(a, d) for a, b in pairs for c, d in pairs if b == c}
    assert taxonomy.direct.tolist() == [pair not in between for pair in sorted(pairs)]


@given(graphs())
def test_closure_depth_and_direct_by_definition(graph: tuple[int, list[Edge]]) -> None:
    num_nodes, edges = graph
    taxonomy = build_taxonomy(*columns(edges), num_nodes)
    check(taxonomy, slow_closure(edges), num_nodes)
    again = build_taxonomy(taxonomy.child, taxonomy.parent, num_nodes)
    assert pairs_of(again) == pairs_of(taxonomy)


@given(graphs(), st.data())
def test_restriction_keeps_the_relation(graph: tuple[int, list[Edge]], data: st.DataObject) -> None:
    num_nodes, edges = graph
    keep = np.array(
        data.draw(st.lists(st.booleans(), min_size=num_nodes, max_size=num_nodes)), dtype=np.bool_
    )
    smaller, nodes = restrict(build_taxonomy(*columns(edges), num_nodes), keep)
    pairs = {(a, b) for a, b in slow_closure(edges) if keep[a] and keep[b]}
    assert nodes.tolist() == sorted({node for pair in pairs for node in pair})
    renamed = {node: place for place, node in enumerate(nodes.tolist())}
    check(smaller, {(renamed[a], renamed[b]) for a, b in pairs}, len(nodes))


def test_no_edges_and_a_long_chain() -> None:
    empty = build_taxonomy(*columns([]), 3)
    assert pairs_of(empty) == []
    assert empty.depth.tolist() == [0, 0, 0]
    chain = build_taxonomy(np.arange(1, 2_000), np.arange(1_999), 2_000)
    assert len(chain.child) == 2_000 * 1_999 // 2
    assert chain.direct.sum() == 1_999
    assert chain.depth.tolist() == list(range(2_000))


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        ([(0, 1), (1, 2), (2, 0), (3, 0)], "n0 -> n1 -> n2 -> n0"),
        ([(4, 5), (5, 4), (0, 4), (0, 1)], "n4 -> n5 -> n4"),
        ([(i, (i + 1) % 20) for i in range(20)], "n0 -> n1 -> n2 -> n3 -> ... -> n18 -> n19 -> n0"),
    ],
)
def test_a_cycle_is_named(edges: list[Edge], said: str) -> None:
    with pytest.raises(DataError) as caught:
        build_taxonomy(*columns(edges), 20, lambda node: f"n{node}")
    assert str(caught.value) == f"a taxonomy must have no cycle, got {said}; remove one of these edges"
