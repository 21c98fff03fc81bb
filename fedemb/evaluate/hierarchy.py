"""How well an embedding tells a node's ancestors from all other nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from fedemb.data.shards import Shards, offsets_of
from fedemb.evaluate.distance import Float64, distances, lost, measure
from fedemb.evaluate.spread import mean_of_each
from fedemb.evaluate.tree import (
    TreePairs,
    chain_order,
    distance_correlation,
    norm_depth_correlation,
    tree_pairs,
)
from fedemb.types import Evaluated, Float, Int64, Manifold, Taxonomy


def reconstruction(
    points: Tensor, manifold: Manifold, taxonomy: Taxonomy, block_bytes: int = 1 << 24
) -> tuple[Float64, Float64]:
    """Average precision of each node's ancestors, and the rank of each pair of the closure.

    The ancestors of a node are ranked by their distance from it among all nodes that are not its
    ancestors: a rank is 1 + the nearer ones + half of those as near. A point with a coordinate that
    is not finite is infinitely far away.

    Args:
        points: ``(nodes, coordinates)`` on the manifold.
        manifold: Euclidean, or hyperbolic of any curvature.
        taxonomy: Its closure says who the ancestors are.
        block_bytes: Distances are held for about so many bytes at a time, and for one node at least.

    Returns:
        ``(nodes,)``, NaN where a node has no ancestors, and ``(pairs,)`` in the order of the taxonomy.

    Raises:
        ValueError: If there is not a point for each node.

    Reference: Nickel, Kiela, "Poincaré Embeddings for Learning Hierarchical Representations", NeurIPS
    2017, section 4.1 (which leaves ties open).
    """
    num_nodes = len(taxonomy.depth)
    if len(points) != num_nodes:
        raise ValueError(f"points must have a row for each of the {num_nodes} nodes, got {len(points)}")
    near, scale = measure(points, manifold)
    gone = lost(near, scale)
    order = np.argsort(taxonomy.child, kind="stable")
    parent = taxonomy.parent[order]
    nodes, sizes = np.unique(taxonomy.child, return_counts=True)
    offsets = offsets_of(sizes).tolist()
    rank = np.empty(len(order), dtype=np.float64)
    num_rows = max(1, block_bytes // (8 * max(1, num_nodes)))
    for first in range(0, len(nodes), num_rows):
        block = nodes[first : first + num_rows]
        rows = distances(near[block], near).mul_(scale).cpu().numpy()
        rows[:, gone] = rows[gone[block]] = math.inf
        rows[np.arange(len(block)), block] = math.nan
        # A loop over nodes: each has its own number of ancestors, and a row alone is work for a millisecond.
        for index, row in enumerate(rows, start=first):
            pairs = slice(offsets[index], offsets[index + 1])
            rank[order[pairs]] = _filtered_ranks(row, row[parent[pairs]])
    return average_precision(taxonomy.child, rank, num_nodes), rank


@dataclass(frozen=True)
class Reconstruction:
    """Evaluates a table of nodes on the closure: ``map`` and ``mean_rank``, and the measures of ``tree.py``.

    Per client: ``map``, the mean over the distinct children in its pairs of what these have among all
    nodes; ``mean_rank``, the mean over its pairs.

    Where pairs are held out, ``link_map`` and ``link_mean_rank`` come first: the same ranks, filtered by
    the whole closure, of the held-out pairs alone; per client, of those that it holds. The other
    metrics stay those of the whole closure.

    Attributes:
        table: Name of the table.
        manifold: Where its rows live.
        taxonomy: The whole graph, which is not private.
        shards: Columns ``child`` and ``parent``: which client holds which pairs of the closure.
        held_out: The same of the pairs that are not for training; None: nothing is held out.
        split: Names the metrics of links: those of another split than ``test`` begin with its name.
        curvature: The learnt curvature, from dense parameters; None, or a function that gives None: it is fixed.
        block_bytes: See ``reconstruction``.
    """

    table: str
    manifold: Manifold
    taxonomy: Taxonomy
    shards: Shards
    held_out: Shards | None = None
    split: str = "test"
    curvature: Callable[[Mapping[str, Tensor]], float | None] | None = None
    block_bytes: int = 1 << 24

    def __post_init__(self) -> None:
        if self.held_out is not None and self.held_out.num_clients != self.shards.num_clients:
            raise ValueError(
                f"held-out pairs must have {self.shards.num_clients} clients like the shards, "
                f"got {self.held_out.num_clients}"
            )

    @cached_property
    def _tree_pairs(self) -> TreePairs:
        return tree_pairs(self.taxonomy)

    @property
    def on_clients(self) -> bool:
        return False

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """The metrics of these clients, and of the whole taxonomy.

        Raises:
            ValueError: If the table has not a row for each node, or a client has a pair that is not in
                the closure.
        """
        points = tables[self.table]
        precision, rank = reconstruction(points, self.manifold, self.taxonomy, self.block_bytes)
        metrics, per_client = self._links(rank, clients)
        space, taxonomy = self.manifold, self.taxonomy
        metrics |= {
            "map": _mean(precision[~np.isnan(precision)]),
            "mean_rank": _mean(rank),
            "distance_correlation": distance_correlation(points, space, self._tree_pairs, self.block_bytes),
            "chain_order": chain_order(points, space, taxonomy),
            "norm_depth_correlation": norm_depth_correlation(points, space, taxonomy),
        }
        curvature = self.curvature(tables) if self.curvature else None
        if curvature is not None:
            metrics["curvature"] = curvature
        shards = self.shards.take(clients)
        child, owners = np.asarray(shards.columns["child"]), shards.owners()
        num_nodes = len(precision)
        owner, children = np.divmod(np.unique(owners * num_nodes + child), max(1, num_nodes))
        per_client |= {
            "map": mean_of_each(precision[children], owner, len(clients)),
            "mean_rank": mean_of_each(rank[_positions(taxonomy, shards)], owners, len(clients)),
        }
        return Evaluated(metrics, per_client, clients)

    def _links(self, rank: Float64, clients: Int64) -> tuple[dict[str, float], dict[str, Float]]:
        """Metrics of the held-out pairs: of all, each once, and of these clients'."""
        if self.held_out is None:
            return {}, {}
        num_nodes = len(self.taxonomy.depth)
        prefix = "" if self.split == "test" else f"{self.split}_"
        pairs = np.unique(_positions(self.taxonomy, self.held_out))
        precision = average_precision(self.taxonomy.child[pairs], rank[pairs], num_nodes)
        metrics = {
            f"{prefix}link_map": _mean(precision[~np.isnan(precision)]),
            f"{prefix}link_mean_rank": _mean(rank[pairs]),
        }
        shards = self.held_out.take(clients)
        owners, own_rank = shards.owners(), rank[_positions(self.taxonomy, shards)]
        # A child counts for each client that holds pairs of it, by these pairs.
        keys, child = np.unique(owners * num_nodes + shards.columns["child"], return_inverse=True)
        own_precision = average_precision(child.reshape(-1), own_rank, len(keys))
        per_client: dict[str, Float] = {
            f"{prefix}link_map": mean_of_each(own_precision, keys // max(1, num_nodes), len(clients)),
            f"{prefix}link_mean_rank": mean_of_each(own_rank, owners, len(clients)),
        }
        return metrics, per_client


def _positions(taxonomy: Taxonomy, pairs: Shards) -> Int64:
    """Where in the closure each of these pairs stands."""
    child, parent = np.asarray(pairs.columns["child"]), np.asarray(pairs.columns["parent"])
    num_nodes = len(taxonomy.depth)
    wanted = child * num_nodes + parent
    keys = np.append(taxonomy.child * num_nodes + taxonomy.parent, -1)  # never empty
    order = np.argsort(keys, kind="stable")
    found: Int64 = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(order) - 1)]
    wrong = np.flatnonzero(keys[found] != wanted)
    if len(wrong):
        pair = (int(child[wrong[0]]), int(parent[wrong[0]]))
        raise ValueError(f"pairs must be in the taxonomy's closure, got {pair}; give the closure to both")
    return found


def _filtered_ranks(row: Float64, true: Float64) -> Float64:
    """Ranks of the distances ``true`` among those of ``row`` that are not true, ties as their mean.

    Whatever is farther than the farthest true one does not matter, and the more a model has learnt
    the less is left to sort. (Binary search of a whole row among the true ones is three times
    slower than sorting it: its branches are unpredictable.)

    Args:
        row: ``(nodes,)``, the true ones among them; NaN is left out.
        true: ``(ancestors,)``.
    """
    near = np.compress(row <= true.max(), row)
    near.sort()
    known = np.sort(true)
    closer = np.searchsorted(near, true, "left") - np.searchsorted(known, true, "left")
    as_near = np.searchsorted(near, true, "right") - np.searchsorted(known, true, "right")
    ranks: Float64 = 1 + (closer + as_near) / 2
    return ranks


def average_precision(child: Int64, rank: Float, num_nodes: int) -> Float64:
    """Average precision ``(num_nodes,)`` of each child, NaN for a node without pairs.

    The i-th nearest of a node's true pairs has precision ``i / (i + wrong ones before it)``.

    Args:
        child: ``(pairs,)``: all pairs of a closure, or those held out.
        rank: ``(pairs,)`` filtered ranks.
        num_nodes: All nodes.

    >>> average_precision(np.array([0, 0, 2]), np.array([1.0, 2.0, 4.0]), 3).round(3).tolist()
    [0.833, nan, 0.25]
    """
    order = np.lexsort((rank, child))
    sizes = np.bincount(child, minlength=num_nodes)
    place = np.arange(1, len(order) + 1) - np.repeat(offsets_of(sizes)[:-1], sizes)
    precision = place / (place + rank[order] - 1)
    return mean_of_each(precision, child[order], num_nodes)


def _mean(values: Float64) -> float:
    return float(values.mean()) if len(values) else math.nan
