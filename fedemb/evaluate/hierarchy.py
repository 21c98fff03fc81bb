"""How well an embedding tells a node's ancestors from all other nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedemb.data.shards import Shards, offsets_of
from fedemb.types import Evaluated, Float, Int64, Manifold, Taxonomy

Float64 = npt.NDArray[np.float64]


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
    near, scale = _measure(points.detach(), manifold)
    lost = (~(near.isfinite().all(1) & scale.isfinite())).cpu().numpy()
    order = np.argsort(taxonomy.child, kind="stable")
    parent = taxonomy.parent[order]
    nodes, sizes = np.unique(taxonomy.child, return_counts=True)
    offsets = offsets_of(sizes).tolist()
    rank = np.empty(len(order), dtype=np.float64)
    num_rows = max(1, block_bytes // (8 * max(1, num_nodes)))
    for first in range(0, len(nodes), num_rows):
        block = nodes[first : first + num_rows]
        # The matrix product's shortcut |x|^2 + |y|^2 - 2<x, y> would lose near points near the boundary.
        distance = torch.cdist(near[block], near, compute_mode="donot_use_mm_for_euclid_dist")
        rows = distance.mul_(scale).cpu().numpy()
        rows[:, lost] = rows[lost[block]] = math.inf
        rows[np.arange(len(block)), block] = math.nan
        # A loop over nodes: each has its own number of ancestors, and a row alone is work for a millisecond.
        for index, row in enumerate(rows, start=first):
            pairs = slice(offsets[index], offsets[index + 1])
            rank[order[pairs]] = _filtered_ranks(row, row[parent[pairs]])
    return average_precision(taxonomy.child, rank, num_nodes), rank


@dataclass(frozen=True)
class Reconstruction:
    """Evaluates a table of nodes on the closure: ``map``, ``mean_rank`` and ``norm_depth_correlation``.

    Per client: ``map``, the mean over the distinct children in its pairs of what these have among all
    nodes; ``mean_rank``, the mean over its pairs.

    Attributes:
        table: Name of the table.
        manifold: Where its rows live.
        taxonomy: The whole graph, which is not private.
        shards: Columns ``child`` and ``parent``: which client holds which pairs of the closure.
        block_bytes: See ``reconstruction``.
    """

    table: str
    manifold: Manifold
    taxonomy: Taxonomy
    shards: Shards
    block_bytes: int = 1 << 24

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
        metrics = {
            "map": _mean(precision[~np.isnan(precision)]),
            "mean_rank": _mean(rank),
            "norm_depth_correlation": norm_depth_correlation(points, self.manifold, self.taxonomy),
        }
        shards = self.shards.take(clients)
        child, owners = np.asarray(shards.columns["child"]), shards.owners()
        pairs = _positions(self.taxonomy, child, np.asarray(shards.columns["parent"]))
        num_nodes = len(precision)
        owner, children = np.divmod(np.unique(owners * num_nodes + child), max(1, num_nodes))
        per_client = {
            "map": _means(owner, precision[children], len(clients)),
            "mean_rank": _means(owners, rank[pairs], len(clients)),
        }
        return Evaluated(metrics, per_client, clients)


def _positions(taxonomy: Taxonomy, child: Int64, parent: Int64) -> Int64:
    """Where in the closure each of these pairs stands."""
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


def _measure(points: Tensor, manifold: Manifold) -> tuple[Tensor, Tensor]:
    """Coordinates and a scale per point: ``|x - y| scale(y)`` orders all y by their distance from x.

    In the ball ``cosh(distance) - 1 = 2 |x - y|^2 / ((1 - |x|^2) (1 - |y|^2))``, where x is the same for
    a whole row. With the Lorentz time t, ``1 - |y|^2 = 2 / (1 + t)``, which loses nothing far out.
    """
    points = points.double()
    ball = manifold.to_ball(points)
    if manifold.curvature == 0:
        return ball, torch.ones_like(ball[:, 0])
    if manifold.name == "lorentz":
        time = (1 - manifold.curvature * points[:, 1:].square().sum(1)).sqrt()
        return ball, ((1 + time) / 2).sqrt()
    inside = 1 - ball.square().sum(1)
    return ball, inside.clamp_min(torch.finfo(torch.float64).eps).rsqrt()


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
    return _means(child[order], precision, num_nodes)


def norm_depth_correlation(points: Tensor, manifold: Manifold, taxonomy: Taxonomy) -> float:
    """Spearman's correlation of distance from the origin and depth; NaN where all depths are one."""
    origin = manifold.origin(points.shape[1] - manifold.num_coordinates(0)).double()
    radius = manifold.distance(points.detach().cpu().double(), origin).numpy()
    first, second = _average_ranks(radius), _average_ranks(taxonomy.depth)
    first, second = first - first.mean(), second - second.mean()
    length = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / length if length else math.nan


def _mean(values: Float64) -> float:
    return float(values.mean()) if len(values) else math.nan


def _average_ranks(values: npt.NDArray[np.generic]) -> Float64:
    """Ranks ``(n,)`` from 1 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Float64 = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _means(groups: Int64, values: Float, num_groups: int) -> Float64:
    """Mean of each group's values ``(num_groups,)``, NaN for an empty group."""
    sizes = np.bincount(groups, minlength=num_groups)
    sums = np.bincount(groups, weights=values, minlength=num_groups)
    means: Float64 = np.divide(sums, sizes, out=np.full(num_groups, np.nan), where=sizes > 0)
    return means
