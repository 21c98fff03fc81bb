"""Cutting a taxonomy into parts of nearly equal weight that hang together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedemb.types import Int64, Taxonomy


def spanning_forest(taxonomy: Taxonomy) -> Int64:
    """One direct parent of each node ``(nodes,)``, -1 for roots.

    Of several parents the one nearest to a root (least depth), then the one of lowest id.
    """
    child, parent = taxonomy.child[taxonomy.direct], taxonomy.parent[taxonomy.direct]
    order = np.lexsort((parent, taxonomy.depth[parent], child))
    nodes, first = np.unique(child[order], return_index=True)
    chosen = np.full(len(taxonomy.depth), -1, dtype=np.int64)
    chosen[nodes] = parent[order][first]
    return chosen


def cut_forest(parents: Int64, weights: Int64, num_parts: int) -> tuple[Int64, tuple[int, ...]]:
    """The part that each node belongs to ``(nodes,)``, and the root of each part, ascending.

    Cuts the forest in two, each half again, and so on; a half that is to become more parts gets
    more weight, as near to its due as the tree permits. A cut takes a node with everything below
    it, or several siblings where no child is heavy enough by itself. So a part is a subtree less
    the parts that were cut from it, or such siblings together (named by the heaviest), and what
    stands above a cut stays with the rest of its subtree. Every part has some weight; ties go to
    the lowest id.

    Args:
        parents: ``(nodes,)``, -1 for roots; must be a forest.
        weights: ``(nodes,)`` whole numbers; at least ``num_parts`` of them above 0.
        num_parts: How many parts.

    >>> part, roots = cut_forest(np.array([-1, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 2, 2, 2]), 2)
    >>> part.tolist(), roots
    ([0, 1, 0, 1, 1, 0, 0], (0, 1))
    """
    tree = _grow(parents, weights)
    waiting, heads = [(len(parents), num_parts)], {}
    while waiting:
        head, num_parts = waiting.pop()
        if num_parts == 1:
            heads[_root(tree, head, len(parents))] = head
            continue
        cut = _best_cut(tree, head, num_parts)
        waiting.append((head, num_parts - cut.num_parts))
        waiting.append((_take(tree, cut, head), cut.num_parts))
    roots = sorted(heads)
    return _spread(tree, [heads[root] for root in roots])[: len(parents)], tuple(roots)


@dataclass(frozen=True)
class _Tree:
    """A forest that cuts change. Numbers past the nodes' stand for all roots, or for siblings cut together.

    Attributes:
        parent: Of each number.
        children: Of each number, less those cut off.
        weight: At and below each number, less what was cut off.
        num_weighty: Nodes with a weight at and below each number, less those cut off.
    """

    parent: list[int]
    children: list[list[int]]
    weight: list[int]
    num_weighty: list[int]


@dataclass(frozen=True)
class _Cut:
    """Siblings below a node, the parts that they are to become, and how uneven the cut is (1: even)."""

    siblings: list[int]
    below: int
    num_parts: int
    unevenness: float


def _grow(parents: Int64, weights: Int64) -> _Tree:
    top = len(parents)
    tree = _Tree(
        parent=[top if parent < 0 else parent for parent in parents.tolist()] + [-1],
        children=[[] for _ in range(top + 1)],
        weight=[*weights.tolist(), 0],
        num_weighty=[*(weights > 0).astype(np.int64).tolist(), 0],
    )
    for node in range(top):
        tree.children[tree.parent[node]].append(node)
    downwards = [top]
    for node in downwards:
        downwards.extend(tree.children[node])
    for node in reversed(downwards[1:]):
        tree.weight[tree.parent[node]] += tree.weight[node]
        tree.num_weighty[tree.parent[node]] += tree.num_weighty[node]
    return tree


def _best_cut(tree: _Tree, head: int, num_parts: int) -> _Cut:
    """The most even cut of those along the heaviest children.

    At each node on the way down: the heaviest child alone, and siblings packed up to half of the parts.
    """
    total, node = tree.weight[head], head
    due = total * (num_parts // 2)
    candidates = []
    while tree.children[node]:
        ordered = sorted(tree.children[node], key=lambda child: (-tree.weight[child], child))
        packed, taken = [], 0
        for child in ordered:
            if num_parts * (taken + tree.weight[child]) <= due:
                packed.append(child)
                taken += tree.weight[child]
        for siblings in (ordered[:1], packed):
            if 0 < sum(tree.weight[child] for child in siblings) < total:
                candidates.append(_weigh(tree, siblings, node, head, num_parts))
        if num_parts * tree.weight[ordered[0]] <= total:
            break
        node = ordered[0]
    return min(candidates, key=lambda cut: cut.unevenness)


def _weigh(tree: _Tree, siblings: list[int], below: int, head: int, num_parts: int) -> _Cut:
    """How many parts these siblings should become: by weight, but no more than there are weighty nodes."""
    total, taken = tree.weight[head], sum(tree.weight[child] for child in siblings)
    num_taken = sum(tree.num_weighty[child] for child in siblings)
    least = max(1, num_parts - (tree.num_weighty[head] - num_taken))
    wanted = min(max(round(num_parts * taken / total), least), num_parts - 1, num_taken)
    ratio = (taken / wanted) / ((total - taken) / (num_parts - wanted))
    return _Cut(siblings, below, wanted, max(ratio, 1 / ratio))


def _take(tree: _Tree, cut: _Cut, head: int) -> int:
    """Unhooks siblings from a part; the number that stands for them."""
    gone = set(cut.siblings)
    weight = sum(tree.weight[node] for node in gone)
    num_weighty = sum(tree.num_weighty[node] for node in gone)
    tree.children[cut.below][:] = [child for child in tree.children[cut.below] if child not in gone]
    node = cut.below
    while True:
        tree.weight[node] -= weight
        tree.num_weighty[node] -= num_weighty
        if node == head:
            break
        node = tree.parent[node]
    if len(gone) == 1:
        return cut.siblings[0]
    for node in gone:
        tree.parent[node] = len(tree.parent)
    tree.parent.append(-1)
    tree.children.append(cut.siblings)
    tree.weight.append(weight)
    tree.num_weighty.append(num_weighty)
    return len(tree.parent) - 1


def _root(tree: _Tree, head: int, num_nodes: int) -> int:
    if head < num_nodes:
        return head
    return min(tree.children[head], key=lambda child: (-tree.weight[child], child))


def _spread(tree: _Tree, heads: list[int]) -> Int64:
    """Position of the head above each number."""
    position = np.zeros(len(tree.parent), dtype=np.int64)
    for index, head in enumerate(heads):
        downwards = [head]
        for node in downwards:
            downwards.extend(tree.children[node])
        position[downwards] = index
    return position
