"""Which subtrees to colour in a picture of a taxonomy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedemb.data.shards import offsets_of
from fedemb.types import Int64, Taxonomy

MIN_SHARE = 0.02  # of all nodes: a smaller branch is not worth a colour
MIN_COVERED = 0.8  # of a branch's nodes: it is split only if so much keeps a colour


def branches(taxonomy: Taxonomy, max_branches: int = 10) -> tuple[Int64, Int64]:
    """Large disjoint subtrees that cover most of a taxonomy.

    Begins with the roots, and splits the largest branch into its largest children again and again, as long as
    there is room for several that cover it nearly. What is in several branches belongs to the smallest.

    Args:
        taxonomy: Any directed acyclic graph.
        max_branches: At least 1.

    Returns:
        Branch of each node ``(nodes,)``, -1 for none, and the root of each branch, the largest first.

    Raises:
        ValueError: If there are to be no branches.
    """
    if max_branches < 1:
        raise ValueError(f"max_branches must be at least 1, got {max_branches}; 10 colours can be told apart")
    num_nodes = len(taxonomy.depth)
    sizes = 1 + np.bincount(taxonomy.parent, minlength=num_nodes)
    children = _children(taxonomy, sizes)
    growing = _largest(np.flatnonzero((taxonomy.depth == 0) & (sizes > 1)), sizes, max_branches)
    done: list[int] = []
    while growing:
        branch = growing.pop(0)
        room = max_branches - len(growing) - len(done)
        taken = {*growing, *done}
        parts = [int(node) for node in children(branch)[:room] if node not in taken]
        covered = sum(sizes[part] for part in parts) >= MIN_COVERED * (sizes[branch] - 1)
        if covered and (len(parts) > 1 or (parts and not taken)):
            growing = _largest(np.array(growing + parts), sizes, max_branches)
        else:
            done.append(branch)
    roots = np.array(_largest(np.array(done, dtype=np.int64), sizes, max_branches), dtype=np.int64)
    labels = np.full(num_nodes, -1, dtype=np.int64)
    for number, root in enumerate(roots):
        labels[taxonomy.child[taxonomy.parent == root]] = number
        labels[root] = number
    return labels, roots


def _children(taxonomy: Taxonomy, sizes: Int64) -> Callable[[int], Int64]:
    """A function that gives a node's direct children that are worth a colour, the largest first."""
    child, parent = taxonomy.child[taxonomy.direct], taxonomy.parent[taxonomy.direct]
    offsets = offsets_of(np.bincount(parent, minlength=len(sizes)))
    child = child[np.lexsort((child, -sizes[child], parent))]
    least = max(2, int(MIN_SHARE * len(sizes)))

    def of(node: int) -> Int64:
        found = child[offsets[node] : offsets[node + 1]]
        return found[sizes[found] >= least]

    return of


def _largest(nodes: Int64, sizes: Int64, count: int) -> list[int]:
    return [int(node) for node in nodes[np.lexsort((nodes, -sizes[nodes]))][:count]]
