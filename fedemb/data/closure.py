"""Transitive closure of a directed acyclic graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from fedemb.data.shards import offsets_of, ragged_indices
from fedemb.errors import DataError
from fedemb.types import Int64, Taxonomy


def build_taxonomy(child: Int64, parent: Int64, num_nodes: int, name: Callable[[int], str] = str) -> Taxonomy:
    """The transitive closure of these edges, its pairs sorted by child, then parent.

    Goes down level by level: the ancestors of a node are its parents and these parents' ancestors,
    for all nodes of a level at once. Self loops and repeated edges change nothing.

    Args:
        child: ``(edges,)`` ids in ``[0, num_nodes)``.
        parent: ``(edges,)``.
        num_nodes: Nodes without an edge have depth 0.
        name: What to call a node in an error.

    Raises:
        DataError: If there is a cycle; it is named.

    >>> taxonomy = build_taxonomy(np.array([0, 1, 0]), np.array([1, 2, 2]), 3)
    >>> list(zip(taxonomy.child.tolist(), taxonomy.parent.tolist(), taxonomy.direct.tolist()))
    [(0, 1, True), (0, 2, False), (1, 2, True)]
    >>> taxonomy.depth.tolist()
    [2, 1, 0]
    """
    edges = _distinct((child * num_nodes + parent)[child != parent])
    child, parent = np.divmod(edges, max(1, num_nodes))
    depth = _depths(child, parent, num_nodes, name)
    order = np.argsort(depth[child], kind="stable")
    child, parent = child[order], parent[order]
    firsts = np.flatnonzero(np.diff(depth[child], prepend=0))  # where a level begins
    lasts = np.append(firsts, len(edges))[1:]
    starts, sizes = np.zeros(num_nodes, dtype=np.int64), np.zeros(num_nodes, dtype=np.int64)
    pairs = np.empty(2 * len(edges), dtype=np.int64)  # child * num_nodes + ancestor; grows
    direct = np.empty(len(pairs), dtype=np.bool_)
    used = 0
    for first, last in zip(firsts, lasts, strict=True):
        children, parents = child[first:last], parent[first:last]
        above = pairs[ragged_indices(starts[parents], sizes[parents])] % num_nodes
        far = _distinct(np.repeat(children, sizes[parents]) * num_nodes + above)
        near = np.setdiff1d(children * num_nodes + parents, far, assume_unique=True)
        found = np.concatenate([near, far])
        order = np.argsort(found)
        while used + len(found) > len(pairs):
            pairs, direct = np.resize(pairs, 2 * len(pairs)), np.resize(direct, 2 * len(pairs))
        pairs[used : used + len(found)] = found[order]
        direct[used : used + len(found)] = order < len(near)
        nodes, where, count = np.unique(found[order] // num_nodes, return_index=True, return_counts=True)
        starts[nodes], sizes[nodes] = used + where, count
        used += len(found)
    order = np.argsort(pairs[:used])
    child, parent = np.divmod(pairs[:used][order], max(1, num_nodes))
    return Taxonomy(child, parent, depth, direct[:used][order])


def _distinct(keys: Int64) -> Int64:
    """The keys in order, each once; for few repetitions faster than the hashing in ``np.unique``."""
    ordered: Int64 = np.sort(keys)
    distinct: Int64 = ordered[np.diff(ordered, prepend=-1) != 0]
    return distinct


def _depths(child: Int64, parent: Int64, num_nodes: int, name: Callable[[int], str]) -> Int64:
    """Longest path to a root ``(num_nodes,)``: a node is done one level after its last parent."""
    below = child[np.argsort(parent, kind="stable")]
    sizes = np.bincount(parent, minlength=num_nodes)
    starts = offsets_of(sizes)[:-1]
    waiting = np.bincount(child, minlength=num_nodes)
    depth = np.full(num_nodes, -1, dtype=np.int64)
    nodes, level = np.flatnonzero(waiting == 0), 0
    while len(nodes):
        depth[nodes] = level
        reached, times = np.unique(below[ragged_indices(starts[nodes], sizes[nodes])], return_counts=True)
        waiting[reached] -= times
        nodes, level = reached[waiting[reached] == 0], level + 1
    if (depth < 0).any():
        stuck = (depth[child] < 0) & (depth[parent] < 0)
        raise DataError(
            _describe_cycle(dict(zip(child[stuck].tolist(), parent[stuck].tolist(), strict=True)), name)
        )
    return depth


def _describe_cycle(parents: Mapping[int, int], name: Callable[[int], str]) -> str:
    """One cycle among nodes that each have a parent among them."""
    path = [min(parents)]
    while path[-1] not in path[:-1]:
        path.append(parents[path[-1]])
    path = path[path.index(path[-1]) :]
    shown = [name(node) for node in path]
    if len(shown) > 8:
        shown = [*shown[:4], "...", *shown[-3:]]
    return f"a taxonomy must have no cycle, got {' -> '.join(shown)}; remove one of these edges"


def restrict(taxonomy: Taxonomy, keep: npt.NDArray[np.bool_]) -> tuple[Taxonomy, Int64]:
    """The same relation among the nodes that are kept, and their ids in the larger taxonomy.

    What was below a node that goes stays below what was above it. Depth and ``direct`` are those
    among the nodes kept; a node without any pair left goes too.

    Args:
        taxonomy: Of all nodes.
        keep: ``(nodes,)``.
    """
    kept = keep[taxonomy.child] & keep[taxonomy.parent]
    child, parent = taxonomy.child[kept], taxonomy.parent[kept]
    present = np.zeros(len(keep), dtype=np.bool_)
    present[child] = present[parent] = True
    nodes = np.flatnonzero(present)
    child, parent = np.searchsorted(nodes, child), np.searchsorted(nodes, parent)
    if kept.all():
        return Taxonomy(child, parent, taxonomy.depth[nodes], taxonomy.direct), nodes
    return build_taxonomy(child, parent, len(nodes)), nodes
