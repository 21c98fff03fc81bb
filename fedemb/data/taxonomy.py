"""Taxonomies as data sets: edges from a file, pairs of their closure as examples."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.data.closure import build_taxonomy, restrict
from fedemb.data.held_out import SPLITS
from fedemb.data.links import check_shares, label_pairs, split_pairs
from fedemb.data.partition import Natural, partitioned
from fedemb.data.shards import Shards, group_by_client, offsets_of, ragged_indices
from fedemb.data.tabular import read_columns
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset, Int64, Partition, Taxonomy

logger = logging.getLogger("fedemb")

ROLES = ("child", "parent", "client")


@dataclass(frozen=True)
class Edges:
    """What a source read: a line is an edge.

    Attributes:
        names: Names of all nodes.
        child, parent: ``(lines,)`` node ids.
        client: ``(lines,)`` whose edge it is, and the clients' names; None where nobody owns edges.
        labels: ``(nodes,)`` per name: what a partition may go by, besides the ids.
        label_names: Names of the values of a label.
    """

    names: Vocabulary
    child: Int64
    parent: Int64
    client: tuple[Int64, Vocabulary] | None = None
    labels: Mapping[str, npt.NDArray[Any]] | None = None
    label_names: Mapping[str, Vocabulary] | None = None


def taxonomy_dataset(
    edges: Edges,
    partition: Partition,
    seed: int,
    counts: MutableMapping[str, int],
    closure: bool = True,
    root: str | None = None,
    exclude: Sequence[str] = (),
    validation_share: float = 0.0,
    test_share: float = 0.0,
) -> Dataset:
    """The data set whose examples are the pairs (child, parent) of a taxonomy.

    Nodes are numbered in alphabetical order of their names. Where edges have owners, the graph is
    the union of all edges, and a client holds each pair (c, a) whose way up starts with an edge
    (c, p) of its own: p = a, or a above p. So several clients may hold one pair, and a client knows
    what stands above its own edges: the upper taxonomy counts as common knowledge, and what is
    private is which nodes a client hangs into it.

    Clients are made before pairs are held out, so they are the same whatever the shares.

    Args:
        edges: What was read.
        partition: Makes clients where edges have no owners.
        seed: Of the partition, and of what is held out.
        counts: What was read and dropped; ``edges_self_loop`` and ``edges_repeated`` are added, and
            ``validation_pairs`` and ``test_pairs`` where there is a share.
        closure: Whether examples are all pairs of the closure, or the edges alone.
        root: Only what is below this node, and itself.
        exclude: Nodes that are left out, with their pairs.
        validation_share: Held out of the pairs that are not direct edges; above 0 only with ``closure``.
        test_share: The same for testing.

    Raises:
        DataError: If there is a cycle, no edge, or no such root or excluded node.
    """
    lines = _distinct(edges, counts)
    everything = build_taxonomy(lines[0], lines[1], len(edges.names), edges.names.name)
    keep = _kept(everything, edges.names, root, exclude)
    taxonomy, nodes = restrict(everything, keep)
    if not len(nodes):
        where = "" if root is None else f" at or below data.root={root}"
        raise DataError(f"a taxonomy must have an edge between two different nodes, got none{where}")
    vocabulary = Vocabulary.of(edges.names.names.take(pa.array(nodes)).to_pylist())
    pairs, owners = _examples(everything, lines, closure)
    kept = keep[everything.child[pairs]] & keep[everything.parent[pairs]]
    columns = {
        "child": np.searchsorted(nodes, everything.child[pairs[kept]]),
        "parent": np.searchsorted(nodes, everything.parent[pairs[kept]]),
    }
    if edges.client is None:
        labels = {key: label[nodes][columns["child"]] for key, label in (edges.labels or {}).items()}
        known = {"child": vocabulary, "parent": vocabulary, **(edges.label_names or {})}
        train, clients = partitioned(partition, columns, seed, taxonomy, labels, known)
    else:
        if not isinstance(partition, Natural):
            logger.warning("data.columns.client decides the clients; the partition is not used")
        present, owners = np.unique(owners[kept], return_inverse=True)
        train = group_by_client(columns, owners.reshape(-1), len(present))
        clients = Vocabulary.of(edges.client[1].names.take(pa.array(present)).to_pylist())
    held_out: dict[str, Shards] = {}
    if validation_share or test_share:
        label = label_pairs(taxonomy, validation_share, test_share, seed)
        counts.update({f"{name}_pairs": int((label == number).sum()) for name, number in SPLITS.items()})
        train, held_out = split_pairs(train, taxonomy, label)
    seen = np.concatenate((train.columns["child"], train.columns["parent"]))
    vocabulary = Vocabulary(vocabulary.names, np.bincount(seen, minlength=len(vocabulary)))
    return Dataset(
        train=train,
        vocabularies={"node": vocabulary},
        clients=clients,
        held_out=held_out,
        taxonomy=taxonomy,
        entity_of={"child": "node", "parent": "node"},
        counts=counts,
    )


def _distinct(edges: Edges, counts: MutableMapping[str, int]) -> Int64:
    """Lines ``(2, edges)`` or, with owners, ``(3, edges)``, without self loops, each once."""
    owners = () if edges.client is None else (edges.client[0],)
    lines = np.stack([edges.child, edges.parent, *owners])
    lines = lines[:, lines[0] != lines[1]]
    lines = lines[:, np.lexsort(lines[::-1])]
    new = np.ones(lines.shape[1], dtype=np.bool_)
    new[1:] = (np.diff(lines, axis=1) != 0).any(axis=0)
    counts["edges_self_loop"] = len(edges.child) - len(new)
    counts["edges_repeated"] = len(new) - int(new.sum())
    return lines[:, new]


def _kept(
    taxonomy: Taxonomy, names: Vocabulary, root: str | None, exclude: Sequence[str]
) -> npt.NDArray[np.bool_]:
    keep = np.ones(len(names), dtype=np.bool_)
    if root is not None:
        top = _node(names, root, "data.root")
        keep[:] = False
        keep[taxonomy.child[taxonomy.parent == top]] = keep[top] = True
    for name in exclude:
        keep[_node(names, name, "data.exclude")] = False
    return keep


def _node(names: Vocabulary, name: str, setting: str) -> int:
    node = int(names.index([name])[0])
    if node < 0:
        near = difflib.get_close_matches(name, names.to_list(), n=1)
        hint = (
            f"; did you mean {near[0]!r}?"
            if near
            else f"; there are {len(names)} others, like {names.name(0)!r}"
        )
        raise DataError(f"{setting} must name a node of the taxonomy, got {name!r}{hint}")
    return node


def _examples(taxonomy: Taxonomy, lines: Int64, closure: bool) -> tuple[Int64, Int64]:
    """Positions of pairs in the closure, and who owns each; owners are empty where lines have none."""
    num_nodes = len(taxonomy.depth)
    keys = taxonomy.child * num_nodes + taxonomy.parent
    child, parent = lines[0], lines[1]
    if closure and len(lines) == 2:
        return np.arange(len(keys), dtype=np.int64), np.empty(0, dtype=np.int64)
    pairs, owners = (
        np.searchsorted(keys, child * num_nodes + parent),
        lines[2] if len(lines) == 3 else 0 * child,
    )
    if closure:
        sizes = np.bincount(taxonomy.child, minlength=num_nodes)
        starts = offsets_of(sizes)[:-1]
        above = taxonomy.parent[ragged_indices(starts[parent], sizes[parent])]
        further = np.searchsorted(keys, np.repeat(child, sizes[parent]) * num_nodes + above)
        pairs, owners = (
            np.concatenate([pairs, further]),
            np.concatenate([owners, np.repeat(owners, sizes[parent])]),
        )
    owners, pairs = np.divmod(np.unique(owners * len(keys) + pairs), max(1, len(keys)))
    return pairs, owners


@dataclass(frozen=True)
class TaxonomyFile:
    """Edges from a CSV, TSV or Parquet file, with a line for each edge.

    Attributes:
        path: The file; compressed text is fine (``.csv.gz``).
        columns: Column name of ``child``, ``parent`` and, optionally, ``client``.
        closure: Whether examples are all pairs of the transitive closure, or the file's edges alone.
            A file that holds the closure already gives the same either way.
        root: Only what is below this node.
        exclude: Nodes to leave out; what was below them stays below what was above them.
        delimiter: Between cells; None: a tab in ``.tsv``, else a comma.
        validation_share: For link prediction: held out of the pairs that are not direct edges. 0: all
            pairs are for training, and the question is how well they are reconstructed.
        test_share: The same for testing.
    """

    path: str
    columns: Mapping[str, str | None]
    closure: bool = True
    root: str | None = None
    exclude: Sequence[str] = ()
    delimiter: str | None = None
    validation_share: float = 0.0
    test_share: float = 0.0

    def __post_init__(self) -> None:
        unknown = [role for role in self.columns if role not in ROLES]
        if unknown:
            near = difflib.get_close_matches(unknown[0], ROLES, n=1)
            hint = f"; did you mean data.columns.{near[0]}?" if near else ""
            raise SettingError(f"data.columns must be among {', '.join(ROLES)}, got {unknown[0]!r}{hint}")
        for role in ("child", "parent"):
            if not self.columns.get(role):
                raise SettingError(f"data.columns.{role} must name a column, got {self.columns.get(role)!r}")
        if isinstance(self.exclude, str):
            raise SettingError(
                f"data.exclude must be a list of nodes, got {self.exclude!r}; write [{self.exclude}]"
            )
        check_shares(self.validation_share, self.test_share, self.closure)

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The taxonomy in the file.

        Raises:
            DataError: If the file, a column, the root or the graph is not as it must be.
            SettingError: If the partition has too many clients for the data.
        """
        counts: dict[str, int] = {}
        required = frozenset(role for role in ROLES if self.columns.get(role))
        batches = read_columns(
            self.path, self.columns, delimiter=self.delimiter, counts=counts, required=required
        )
        parts: dict[str, list[Any]] = {role: [] for role in required}
        for batch in batches:
            for role, column in parts.items():
                column.append(self._strings(batch.column(role), role))
        cells = {role: pa.chunked_array(column, pa.string()) for role, column in parts.items()}
        names = _sorted_names(cells["child"].chunks + cells["parent"].chunks)
        clients = _sorted_names(cells["client"].chunks) if "client" in cells else None
        owners = None if clients is None else (clients.index(cells["client"]), clients)
        edges = Edges(names, names.index(cells["child"]), names.index(cells["parent"]), owners)
        return taxonomy_dataset(
            edges,
            partition,
            seed,
            counts,
            self.closure,
            self.root,
            self.exclude,
            self.validation_share,
            self.test_share,
        )

    def _strings(self, column: Any, role: str) -> Any:
        try:
            return column.cast(pa.string())
        except pa.ArrowException:
            raise DataError(
                f"data.columns.{role} of {self.path} must hold names, got values of type {column.type}"
            ) from None


def _sorted_names(chunks: Sequence[Any]) -> Vocabulary:
    unique = pc.unique(pa.chunked_array(chunks, pa.string()))
    return Vocabulary.of(unique.take(pc.sort_indices(unique)).to_pylist())
