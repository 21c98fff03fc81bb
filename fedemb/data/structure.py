"""What synthetic clients draw from: clusters of items that may move, and complete trees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedemb.data.closure import build_taxonomy
from fedemb.errors import SettingError
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Int64, Taxonomy

Float64 = npt.NDArray[np.float64]
Truth = Mapping[str, npt.NDArray[Any]]


def distinct(draws: Float64, size: int) -> Int64:
    """Different numbers below ``size``, uniform: ``(rows, k)`` from uniform ``draws (rows, k)``.

    The j-th is uniform among the ``size - j`` numbers that are left.

    >>> distinct(np.array([[0.0, 0.0], [0.99, 0.99]]), 3).tolist()
    [[0, 1], [2, 1]]
    """
    chosen = np.empty(draws.shape, dtype=np.int64)
    for j in range(draws.shape[1]):
        value = (draws[:, j] * (size - j)).astype(np.int64)
        for taken in np.sort(chosen[:, :j], axis=1).T:
            value += value >= taken
        chosen[:, j] = value
    return chosen


def zipf_ranks(draws: Float64, sizes: Int64 | int, cdf: Float64) -> Int64:
    """Ranks below ``sizes`` with the probabilities of ``cdf``, cut off there.

    Args:
        draws: ``(n,)`` uniform.
        sizes: ``(n,)``, or one for all.
        cdf: Cumulative weights, ``cdf[r]`` of ranks 0 to r.
    """
    return np.minimum(np.searchsorted(cdf, draws * cdf[sizes - 1], side="right"), sizes - 1)


def zipf_cdf(size: int, exponent: float) -> Float64:
    """Cumulative weights ``(rank + 1) ** -exponent`` of ``size`` ranks."""
    return np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -exponent)


def _moved(rank: Int64, when: Float64, drift: float, sizes: Int64 | int) -> Int64:
    """Popularity moves on: at the end of the span a rank stands ``drift * sizes`` further down."""
    return (rank + (drift * when * sizes).astype(np.int64)) % sizes


@dataclass(frozen=True)
class Clusters:
    """Item ``rank * num_clusters + c`` has that rank in cluster c, and may move to cluster c + 1 once.

    All items of a rank move together, so that clusters keep their sizes.

    Attributes:
        num_items: In all clusters.
        num_clusters: Of sizes that differ by one at most.
        cdf: ``(largest,)`` cumulative popularity of the ranks.
        moves_at: ``(largest,)`` share of the time span; infinite for ranks that stay.
    """

    num_items: int
    num_clusters: int
    cdf: Float64
    moves_at: Float64

    @staticmethod
    def build(seed: int, num_items: int, num_clusters: int, zipf: float, drift: float) -> Clusters:
        """Clusters of which a share ``drift`` of the ranks moves.

        Raises:
            SettingError: If there are more clusters than items.
        """
        if num_items < num_clusters:
            raise SettingError(
                f"data.num_clusters must be at most data.num_items, {num_items}, got {num_clusters}"
            )
        largest = -(-num_items // num_clusters)
        draws = uniforms(stream_keys(seed, "synthetic moves", np.arange(largest)), 2)
        moves = draws[:, 0] < drift
        moves[num_items // num_clusters :] = False  # a last rank that not every cluster has stays
        return Clusters(
            num_items, num_clusters, zipf_cdf(largest, zipf), np.where(moves, draws[:, 1], np.inf)
        )

    @property
    def truth(self) -> Truth:
        """``item_cluster``, ``item_cluster_end`` and ``item_moves_at``, each ``(items,)``."""
        rank, cluster = np.divmod(np.arange(self.num_items), self.num_clusters)
        moves_at = self.moves_at[rank]
        end = np.where(np.isfinite(moves_at), (cluster + 1) % self.num_clusters, cluster)
        return {"item_cluster": cluster, "item_cluster_end": end, "item_moves_at": moves_at}

    def items(self, cluster: Int64, draws: Float64, when: Float64, drift: float) -> Int64:
        """Items ``(events,)`` of these clusters at these times."""
        sizes = self.num_items // self.num_clusters + (cluster < self.num_items % self.num_clusters)
        rank = _moved(zipf_ranks(draws, sizes, self.cdf), when, drift, sizes)
        at_the_start = (cluster - (when >= self.moves_at[rank])) % self.num_clusters
        return rank * self.num_clusters + at_the_start


@dataclass(frozen=True)
class Tree:
    """The first nodes of a complete tree, level by level: the parent of i is ``(i - 1) // branching``.

    Attributes:
        num_items: Nodes.
        branching: Children of a node.
        first: The first cluster's root; the others stand beside it, on the same level.
        num_clusters: How many subtrees clients draw from.
        cdf: ``(largest,)`` cumulative popularity of the nodes of a subtree, level by level.
    """

    num_items: int
    branching: int
    first: int
    num_clusters: int
    cdf: Float64

    @staticmethod
    def build(num_items: int, branching: int, num_clusters: int, zipf: float) -> Tree:
        """A tree with its clusters on the highest level that has room for them, below the root.

        Raises:
            SettingError: If that level is not there.
        """
        first, width = 1, branching
        while width < num_clusters:
            first, width = first * branching + 1, width * branching
        if first + num_clusters > num_items:
            raise SettingError(
                f"data.num_items must be at least {first + num_clusters} for {num_clusters} subtrees "
                f"of a tree with branching {branching}, got {num_items}"
            )
        level, start, largest = 1, first, 0
        while start < num_items:  # levels of the first subtree, which is the fullest one
            largest += level
            level, start = level * branching, start * branching + 1
        return Tree(num_items, branching, first, num_clusters, zipf_cdf(largest, zipf))

    @property
    def parents(self) -> Int64:
        """Parent of each node ``(items,)``; -1 for the root."""
        return (np.arange(self.num_items) - 1) // self.branching

    @property
    def truth(self) -> Truth:
        """``item_cluster`` and ``item_parent``, each ``(items,)``."""
        node, below = np.arange(self.num_items), self.first * self.branching + 1
        while (deeper := node >= below).any():
            node = np.where(deeper, (node - 1) // self.branching, node)
        cluster = node - self.first
        known = (cluster >= 0) & (cluster < self.num_clusters)
        return {"item_cluster": np.where(known, cluster, -1), "item_parent": self.parents}

    def items(self, cluster: Int64, draws: Float64, when: Float64, drift: float) -> Int64:
        """Nodes ``(events,)`` of these subtrees; a node that the tree lacks is its last ancestor."""
        largest = len(self.cdf)
        rank = _moved(zipf_ranks(draws, largest, self.cdf), when, drift, largest)
        widths = [1]  # of the levels of a subtree; the r-th node below v, level by level, is v * width + r
        while sum(widths) < largest:
            widths.append(widths[-1] * self.branching)
        level = np.searchsorted(np.cumsum(widths), rank, side="right")
        node: Int64 = (self.first + cluster) * np.array(widths)[level] + rank
        while (beyond := node >= self.num_items).any():
            node = np.where(beyond, (node - 1) // self.branching, node)
        return node

    def ancestors(self, nodes: Int64, draws: Float64) -> Int64:
        """One of each node's ancestors ``(nodes,)``, uniform; nodes are not the root."""
        depth, above = np.zeros_like(nodes), nodes
        while (deeper := above > 0).any():
            depth += deeper
            above = np.where(deeper, (above - 1) // self.branching, 0)
        steps = 1 + (draws * depth).astype(np.int64)
        while (up := steps > 0).any():
            nodes = np.where(up, (nodes - 1) // self.branching, nodes)
            steps = steps - up
        return nodes

    def taxonomy(self) -> Taxonomy:
        """The tree as a data set's graph."""
        return build_taxonomy(np.arange(1, self.num_items), self.parents[1:], self.num_items)
