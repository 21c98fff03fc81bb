"""Clients for data that have none: who gets which example."""

from __future__ import annotations

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

IID_DRAWS, DIRICHLET_DRAWS = 101, 102  # purposes of the generators: iid and Dirichlet never share draws


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
    clients, names = partition.assign({**columns, **(labels or {})}, taxonomy, seed)
    num_clients = int(clients.max()) + 1 if names is None else len(names)
    match partition:
        case Subtree():
            known = (vocabularies or {}).get("child")
        case ByColumn():
            known = (vocabularies or {}).get(partition.column)
        case _:
            known = None
    if names is not None and known is not None:
        names = tuple(known.name(int(name)) for name in names)
    return group_by_client(columns, clients, num_clients), None if names is None else Vocabulary.of(names)


@dataclass(frozen=True)
class Natural:
    """The clients that the data bring themselves; refuses data that bring none."""

    def assign(self, columns: Columns, taxonomy: Taxonomy | None, seed: int) -> Assignment:
        """Never returns: a source asks a partition only where its data have no clients.

        Raises:
            DataError: Always.
        """
        raise DataError(
            "data must have a client column for partition=natural, got none; name it in data.columns.client, "
            "or choose partition=iid, column, dirichlet" + (" or subtree" if taxonomy is not None else "")
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
