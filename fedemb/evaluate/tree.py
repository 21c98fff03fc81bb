"""How far the geometry of an embedding follows the tree: its depths, its paths, its chains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from fedemb.evaluate.distance import Float64, distances, lost, measure, radii
from fedemb.seeds import generator
from fedemb.types import Int64, Manifold, Taxonomy

# Samples of WordNet's nouns differ in their correlation by .07 with 24 sources, .03 with 128, .02 with 256.
MIN_SOURCES = 256


def norm_depth_correlation(points: Tensor, manifold: Manifold, taxonomy: Taxonomy) -> float:
    """Spearman's correlation of distance from the origin and depth; NaN where all depths are one."""
    return _correlation(average_ranks(radii(points, manifold)), average_ranks(taxonomy.depth))


def chain_order(points: Tensor, manifold: Manifold, taxonomy: Taxonomy) -> float:
    """Share of the chains A above B above C whose distances from the origin strictly grow from A to C.

    Chains are all of the closure, counted per B: ancestors that are nearer to the origin, times
    descendants that are farther. NaN where there is no chain.
    """
    radius, num_nodes = radii(points, manifold), len(taxonomy.depth)
    child, parent = taxonomy.child, taxonomy.parent
    grows = radius[parent] < radius[child]
    num_chains = np.bincount(child, minlength=num_nodes) @ np.bincount(parent, minlength=num_nodes)
    above, below = (np.bincount(end[grows], minlength=num_nodes) for end in (child, parent))
    return float(above @ below / num_chains) if num_chains else math.nan


@dataclass(frozen=True)
class TreePairs:
    """Pairs of nodes and the number of direct edges between them.

    Attributes:
        sources, targets: Ids of the nodes that are paired.
        kept: ``(sources, targets)`` which pairs count.
        steps: ``(pairs,)`` edges on the shortest way, in the order of ``kept``.
    """

    sources: Int64
    targets: Int64
    kept: npt.NDArray[np.bool_]
    steps: Int64

    @cached_property
    def ranks(self) -> Float64:
        return average_ranks(self.steps)


def tree_pairs(
    taxonomy: Taxonomy, max_pairs: int = 2_000_000, seed: int = 0, block_bytes: int = 1 << 24
) -> TreePairs:
    """Each pair of connected nodes once; where that is too many, those of two samples without a common node.

    Args:
        taxonomy: Its direct edges are walked up and down.
        max_pairs: About so many pairs at most.
        seed: Of the samples, which has nothing to do with a run's: all models are asked the same.
        block_bytes: Distances in the tree are held for about so many bytes at a time, and from one
            source at least.
    """
    num_nodes = len(taxonomy.depth)
    sources = targets = np.arange(num_nodes, dtype=np.int64)
    whole = num_nodes * (num_nodes - 1) // 2 <= max_pairs
    if not whole:
        size = min(num_nodes // 2, max(MIN_SOURCES, max_pairs // num_nodes))
        order = generator(seed, "tree pairs").permutation(num_nodes)
        sources, targets = np.sort(order[:size]), np.sort(order[size:][: max(1, max_pairs // size)])
    ends = np.stack((taxonomy.child, taxonomy.parent))[:, taxonomy.direct].astype(
        np.int32
    )  # not all scipys take 64
    edges = csr_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(num_nodes, num_nodes))
    kept = np.zeros((len(sources), len(targets)), dtype=np.bool_)
    steps = [np.empty(0, dtype=np.int64)]
    num_rows = max(1, block_bytes // (8 * max(1, num_nodes)))
    for first in range(0, len(sources), num_rows):
        block = sources[first : first + num_rows]
        found = dijkstra(edges, directed=False, indices=block, unweighted=True)[:, targets]
        counted = np.isfinite(found)
        if whole:
            counted &= targets > block[:, None]
        kept[first : first + num_rows] = counted
        steps.append(found[counted].astype(np.int64))
    return TreePairs(sources, targets, kept, np.concatenate(steps))


def distance_correlation(
    points: Tensor, manifold: Manifold, pairs: TreePairs, block_bytes: int = 1 << 24
) -> float:
    """Spearman's correlation of embedded distance and steps in the tree; NaN where either is constant.

    A point with a coordinate that is not finite is infinitely far away from all others.

    Args:
        points: ``(nodes, coordinates)`` on the manifold.
        manifold: Euclidean, or hyperbolic of any curvature.
        pairs: From ``tree_pairs``.
        block_bytes: Distances are held for about so many bytes at a time, and from one source at least,
            besides the ones of ``pairs``.
    """
    near, scale = measure(points, manifold)
    gone = lost(near, scale)
    num_rows = max(1, block_bytes // (8 * max(1, len(pairs.targets))))
    others, other_scale = near[pairs.targets], scale[pairs.targets]
    found = [np.empty(0, dtype=np.float64)]
    for first in range(0, len(pairs.sources), num_rows):
        block = pairs.sources[first : first + num_rows]
        rows = distances(near[block], others).mul_(scale[block, None]).mul_(other_scale).cpu().numpy()
        rows[:, gone[pairs.targets]] = rows[gone[block]] = math.inf
        found.append(rows[pairs.kept[first : first + num_rows]])
    return _correlation(average_ranks(np.concatenate(found)), pairs.ranks)


def average_ranks(values: npt.NDArray[np.generic]) -> Float64:
    """Ranks ``(n,)`` from 1 on; equal values share the mean of theirs.

    >>> average_ranks(np.array([5.0, 1.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    order = np.argsort(values)
    ordered = values[order]
    last = np.ones(len(order), dtype=np.bool_)
    last[:-1] = ordered[1:] != ordered[:-1]
    ends = np.flatnonzero(last)
    counts = np.diff(ends, prepend=-1)
    ranks = np.empty(len(order), dtype=np.float64)
    ranks[order] = np.repeat(ends + 1 - (counts - 1) / 2, counts)
    return ranks


def _correlation(first: Float64, second: Float64) -> float:
    """Pearson's; NaN where one is constant, or nothing is there."""
    if not len(first):
        return math.nan
    first, second = first - first.mean(), second - second.mean()
    length = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / length if length else math.nan
