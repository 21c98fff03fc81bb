"""Clients for data that have none: who gets which example."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedemb.data.shards import Column, Shards, group_by_client
from fedemb.data.subtree import cut_forest, spanning_forest
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import DataError, SettingError
from fedemb.types import Int64, Partition, Taxonomy

Columns = Mapping[str, npt.NDArray[Any]]
Assignment = tuple[Int64, tuple[str, ...] | None]

# Purposes of the generators: no two partitions share draws.
IID_DRAWS, DIRICHLET_DRAWS, RELATION_DRAWS, ENTITY_DRAWS = 101, 102, 103, 104


def partitioned(
    partition: Partition,
    columns: Mapping[str, Column],
    seed: int,
    taxonomy: Taxonomy | None = None,
    labels: Columns | None = None,
    vocabularies: Mapping[str, Vocabulary] | None = None,
) -> tuple[Shards, Vocabulary | None]:
    """The shards that a partition makes of ``columns``, and the names of its clients.

    Args:
        partition: Who gets what.
        columns: ``(examples, ...)`` per name; go into the shards.
        seed: Of what is random in the partition.
        taxonomy: The graph behind the examples.
        labels: ``(examples,)`` per name: more columns for the partition only.
        vocabularies: Per column of ids: clients named by such an id get its name instead.

    Raises:
        DataError: If the data cannot be partitioned so.
        SettingError: If there are too many clients for the data.
    """
    clients, names = assigned(partition, {**columns, **(labels or {})}, seed, taxonomy, vocabularies)
    num_clients = int(clients.max()) + 1 if names is None else len(names)
    return group_by_client(columns, clients, num_clients), names


def assigned(
    partition: Partition,
    columns: Columns,
    seed: int,
    taxonomy: Taxonomy | None = None,
    vocabularies: Mapping[str, Vocabulary] | None = None,
) -> tuple[Int64, Vocabulary | None]:
    """Client of each example ``(examples,)``, and the clients' names: readable ones where there are any.

    Arguments and errors are those of ``partitioned``.
    """
    clients, names = partition.assign(columns, taxonomy, seed)
    known = vocabularies or {}
    match partition:
        case Subtree() if names is not None and "child" in known:
            names = tuple(known["child"].name(int(name)) for name in names)
        case ByColumn() if names is not None and partition.column in known:
            names = tuple(known[partition.column].name(int(name)) for name in names)
        case Relation() if names is not None and "relation" in known:
            names = _named_by_relation(names, clients, columns["relation"], known["relation"])
        case _:
            pass
    return clients, None if names is None else Vocabulary.of(names)


def _named_by_relation(
    names: tuple[str, ...], clients: Int64, relation: npt.NDArray[Any], known: Vocabulary
) -> tuple[str, ...]:
    """A client that has one relation gets its name, unless another client is called so."""
    relations, first = np.unique(relation, return_index=True)
    owners = clients[first]
    alone = np.bincount(owners, minlength=len(names))[owners] == 1
    readable = list(names)
    for client, only in zip(owners[alone], relations[alone], strict=True):
        readable[client] = known.name(int(only))
    return tuple(readable) if len(set(readable)) == len(names) else names


@dataclass(frozen=True)
class Natural:
    """The clients that the data bring themselves; refuses data that bring none."""

    def assign(self, columns: Columns, taxonomy: Taxonomy | None, seed: int) -> Assignment:
        """Never returns: a source asks a partition only where its data have no clients.

        Raises:
            DataError: Always.
        """
        more = (
            " or subtree" if taxonomy is not None else ", relation or entity" if "relation" in columns else ""
        )
        raise DataError(
            "data must have a client column for partition=natural, got none; name it in data.columns.client, "
            f"or choose partition=iid, column, dirichlet{more}"
        )


@dataclass(frozen=True)
class IID:
    """Examples dealt out at random: sizes differ by one at most, and clients have no names."""

    num_clients: int

    def __post_init__(self) -> None:
        _check_num_clients(self.num_clients)

    def assign(self, columns: Columns, taxonomy: Taxonomy | None, seed: int) -> Assignment:
        """A client for each example.

        Raises:
            SettingError: If there are more clients than examples.
        """
        num_examples = _num_examples(columns)
        _check_enough(self.num_clients, num_examples, "examples")
        dealt = np.arange(num_examples, dtype=np.int64) % self.num_clients
        return np.random.default_rng([seed, IID_DRAWS]).permutation(dealt), None


@dataclass(frozen=True)
class ByColumn:
    """A client for each value of a column, in the order of the values, and named by it."""

    column: str

    def assign(self, columns: Columns, taxonomy: Taxonomy | None, seed: int) -> Assignment:
        """A client for each example.

        Raises:
            DataError: If there is no such column.
        """
        values, clients = np.unique(_labels(columns, self.column), return_inverse=True)
        return clients.astype(np.int64).reshape(-1), tuple(str(value) for value in values)


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: each label is spread over the clients in proportions from a Dirichlet distribution.

    A client may end up empty; clients are named by their numbers.

    Attributes:
        column: The column of labels.
        num_clients: How many clients.
        concentration: Of the symmetric distribution: 100 is nearly iid, 0.1 gives a client few labels.

    Reference:
        Li, Diao, Chen, He, "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE
        2022, section IV-A: ``p_k ~ Dir_N(beta)`` per label k. (Hsu, Qi, Brown, "Measuring the
        Effects of Non-Identical Data Distribution", 2019, draw the labels per client instead.)
    """

    column: str
    num_clients: int
    concentration: float

    def __post_init__(self) -> None:
        _check_num_clients(self.num_clients)
        if not (isinstance(self.concentration, int | float) and 0 < self.concentration < math.inf):
            raise SettingError(
                f"partition.concentration must be a number above 0, got {self.concentration!r}; "
                "0.1 is very skewed, 1 skewed, 100 nearly iid"
            )

    def assign(self, columns: Columns, taxonomy: Taxonomy | None, seed: int) -> Assignment:
        """A client for each example.

        Raises:
            DataError: If there is no such column.
            SettingError: If there are more clients than examples.
        """
        labels = _labels(columns, self.column)
        _check_enough(self.num_clients, len(labels), "examples")
        generator = np.random.default_rng([seed, DIRICHLET_DRAWS])
        clients = np.empty(len(labels), dtype=np.int64)
        order = np.argsort(labels, kind="stable")
        _, starts = np.unique(labels[order], return_index=True)
        for examples in np.split(order, starts[1:]):
            shares = generator.dirichlet(np.full(self.num_clients, self.concentration))
            ends = np.rint(np.cumsum(shares)[:-1] * len(examples))
            dealt = np.searchsorted(ends, np.arange(len(examples)), side="right")
            clients[generator.permutation(examples)] = dealt
        return clients, tuple(str(client) for client in range(self.num_clients))


@dataclass(frozen=True)
class Subtree:
    """A part of the taxonomy for each client: every pair is at the client that holds its child.

    Nothing is random and no client is empty. How the parts are cut: ``subtree.cut_forest``.
    ``assign`` names a client by the id of the root of its part, and ``partitioned`` turns that id
    into the node's name.
    """

    num_clients: int

    def __post_init__(self) -> None:
        _check_num_clients(self.num_clients)

    def assign(self, columns: Columns, taxonomy: Taxonomy | None, seed: int) -> Assignment:
        """A client for each example, from its column ``child``.

        Raises:
            DataError: If the data have no taxonomy.
            SettingError: If there are more clients than nodes with a parent.
        """
        if taxonomy is None or "child" not in columns:
            raise DataError(
                "partition=subtree must be given a taxonomy, got none; choose partition=iid or column"
            )
        child = columns["child"]
        weights = np.bincount(child, minlength=len(taxonomy.depth))
        _check_enough(self.num_clients, int(np.count_nonzero(weights)), "nodes with a parent")
        part_of_node, roots = cut_forest(spanning_forest(taxonomy), weights, self.num_clients)
        return part_of_node[child], tuple(str(root) for root in roots)


@dataclass(frozen=True)
class Relation:
    """Every relation of a knowledge graph at one client; clients are about equally large.

    The largest relation comes first, and each goes to the client with the fewest triples so far, so that two
    clients differ by no more than the largest relation, and none is empty. ``assign`` names clients by
    their numbers, and ``partitioned`` names one that has a single relation by it.
    """

    num_clients: int

    def __post_init__(self) -> None:
        _check_num_clients(self.num_clients)

    def assign(self, columns: Columns, taxonomy: Taxonomy | None, seed: int) -> Assignment:
        """A client for each example, from its column ``relation``.

        Raises:
            DataError: If the data are not triples.
            SettingError: If there are more clients than relations.
        """
        _check_triples("relation", columns)
        _, relation, sizes = np.unique(columns["relation"], return_inverse=True, return_counts=True)
        _check_enough(self.num_clients, len(sizes), "relations")
        clients = _dealt_evenly(sizes, self.num_clients, np.random.default_rng([seed, RELATION_DRAWS]))
        return clients[relation.reshape(-1)], tuple(str(client) for client in range(self.num_clients))


@dataclass(frozen=True)
class Entity:
    """Every entity of a knowledge graph at one client, which holds the triples whose head it is.

    Clients are made equally large as for ``Relation``, and named by their numbers.
    """

    num_clients: int

    def __post_init__(self) -> None:
        _check_num_clients(self.num_clients)

    def assign(self, columns: Columns, taxonomy: Taxonomy | None, seed: int) -> Assignment:
        """A client for each example, from its column ``head``.

        Raises:
            DataError: If the data are not triples.
            SettingError: If there are more clients than entities that are a head.
        """
        _check_triples("entity", columns)
        _, head, sizes = np.unique(columns["head"], return_inverse=True, return_counts=True)
        _check_enough(self.num_clients, len(sizes), "entities that are a head")
        clients = _dealt_evenly(sizes, self.num_clients, np.random.default_rng([seed, ENTITY_DRAWS]))
        return clients[head.reshape(-1)], tuple(str(client) for client in range(self.num_clients))


def _dealt_evenly(sizes: Int64, num_clients: int, generator: np.random.Generator) -> Int64:
    """Client of each thing ``(things,)``: largest first, to the least loaded; equals in an order drawn at random.

    Reference:
        Graham, "Bounds on Multiprocessing Timing Anomalies", 1969 (longest processing time first).
    """
    order = np.lexsort((generator.permutation(len(sizes)), -sizes))
    loads = [(0, int(place), client) for client, place in enumerate(generator.permutation(num_clients))]
    heapq.heapify(loads)
    clients = np.empty(len(sizes), dtype=np.int64)
    for thing, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        load, place, client = loads[0]
        heapq.heapreplace(loads, (load + size, place, client))
        clients[thing] = client
    return clients


def _check_triples(option: str, columns: Columns) -> None:
    if not {"head", "relation", "tail"} <= columns.keys():
        raise DataError(
            f"partition={option} must be given triples (columns head, relation and tail), "
            f"got {', '.join(columns)}; choose data=triples, or partition=iid or column"
        )


def _num_examples(columns: Columns) -> int:
    return len(next(iter(columns.values()), ()))


def _labels(columns: Columns, column: str) -> npt.NDArray[Any]:
    if column not in columns:
        there = ", ".join(columns)
        raise DataError(f"partition.column must be a column of the data, got {column!r}; there are {there}")
    labels = columns[column]
    if labels.dtype != object:
        return labels
    if any(label is None for label in labels):
        raise DataError(f"partition.column must have a value in every example, but {column!r} lacks some")
    return labels.astype(np.str_)


def _check_num_clients(num_clients: int) -> None:
    if not isinstance(num_clients, int) or num_clients < 1:
        raise SettingError(f"partition.num_clients must be a whole number, 1 or more, got {num_clients!r}")


def _check_enough(num_clients: int, available: int, what: str) -> None:
    if num_clients > available:
        raise SettingError(
            f"partition.num_clients must be at most the number of {what}, {available}, "
            f"got {num_clients}; lower it"
        )
