"""Partitions: complete, deterministic, as skewed as asked, and plain about what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedemb.data.closure import build_taxonomy
from fedemb.data.partition import IID, ByColumn, Dirichlet, Natural, Subtree, partitioned
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import DataError, SettingError
from fedemb.types import Partition, Taxonomy


def graph(seed: int, num_nodes: int = 40) -> Taxonomy:
    """A random graph with two roots and some nodes below several parents."""
    generator = np.random.default_rng(seed)
    child = np.concatenate([np.arange(2, num_nodes), generator.integers(2, num_nodes, 15)])
    return build_taxonomy(child, generator.integers(0, child), num_nodes)


def data(seed: int) -> tuple[dict[str, np.ndarray[Any, Any]], Taxonomy]:
    taxonomy = graph(seed)
    label = np.random.default_rng(seed).choice(["x", "y", "z"], len(taxonomy.child))
    return {"child": taxonomy.child, "parent": taxonomy.parent, "label": label}, taxonomy


PARTITIONS: list[Callable[[int], Partition]] = [
    IID,
    Subtree,
    lambda num_clients: ByColumn("label"),
    lambda num_clients: Dirichlet("label", num_clients, 0.3),
]


@pytest.mark.parametrize("make", PARTITIONS)
@given(num_clients=st.integers(1, 38), graph_seed=st.integers(0, 5), seed=st.integers(0, 2**40))
def test_every_example_has_one_client(
    make: Callable[[int], Partition], num_clients: int, graph_seed: int, seed: int
) -> None:
    columns, taxonomy = data(graph_seed)
    partition = make(num_clients)
    clients, names = partition.assign(columns, taxonomy, seed)
    assert clients.dtype == np.int64
    assert clients.shape == columns["child"].shape
    total = num_clients if names is None else len(names)
    assert names is None or len(set(names)) == total
    assert clients.min() >= 0
    assert clients.max() < total
    if not isinstance(partition, ByColumn):
        assert total == num_clients
    if not isinstance(partition, Dirichlet):
        assert len(np.unique(clients)) == total
    again, same = partition.assign(columns, taxonomy, seed)
    assert np.array_equal(clients, again)
    assert names == same
    examples = {**columns, "line": np.arange(len(clients))}
    shards, _ = partitioned(partition, examples, seed, taxonomy)
    assert shards.num_clients == total
    assert np.array_equal(clients[shards.columns["line"]], shards.owners())
    for position in range(total):
        assert (np.diff(shards.take(np.array([position])).columns["line"]) > 0).all(), "order is kept"


def test_seeds_matter_where_there_is_chance() -> None:
    columns, taxonomy = data(0)
    chances: list[tuple[Partition, bool]] = [
        (IID(5), True),
        (Dirichlet("label", 5, 1.0), True),
        (Subtree(5), False),
        (ByColumn("label"), False),
    ]
    for partition, random in chances:
        first, second = (partition.assign(columns, taxonomy, seed)[0] for seed in (1, 2))
        assert np.array_equal(first, second) != random


def test_iid_is_even_and_mixed() -> None:
    clients, _ = IID(7).assign({"label": np.arange(1_000)}, None, 3)
    sizes = np.bincount(clients)
    assert sizes.max() - sizes.min() <= 1
    assert len(np.unique(clients[:50])) == 7


def test_by_column_is_named_by_its_values() -> None:
    columns = {"label": np.array([2, 0, 2, 5])}
    clients, names = ByColumn("label").assign(columns, None, 0)
    assert clients.tolist() == [1, 0, 1, 2]
    assert names == ("0", "2", "5")
    known = {"label": Vocabulary.of(["a", "b", "c", "d", "e", "f"])}
    shards, clients_named = partitioned(ByColumn("label"), columns, 0, vocabularies=known)
    assert clients_named is not None
    assert clients_named.to_list() == ["a", "c", "f"]
    assert shards.sizes.tolist() == [1, 2, 1]
    only_label = partitioned(ByColumn("kind"), columns, 0, labels={"kind": np.array(["p", "q", "q", "q"])})
    assert list(only_label[0].columns) == ["label"]
    assert only_label[0].sizes.tolist() == [1, 3]
    objects = {"label": np.array(["b", "a"], dtype=object)}
    assert ByColumn("label").assign(objects, None, 0)[1] == ("a", "b")


def test_dirichlet_shares_follow_the_concentration() -> None:
    """Mean and variance of a client's share of a label are those of the Dirichlet distribution."""
    num_labels, num_clients, size = 400, 5, 1_000
    columns = {"label": np.repeat(np.arange(num_labels), size)}
    for concentration in (0.1, 1.0, 100.0):
        clients, names = Dirichlet("label", num_clients, concentration).assign(columns, None, 0)
        assert names == ("0", "1", "2", "3", "4")
        counts = np.bincount(columns["label"] * num_clients + clients, minlength=num_labels * num_clients)
        shares = counts.reshape(num_labels, num_clients) / size
        assert shares.sum(axis=1) == pytest.approx(1)
        assert shares.mean(axis=0) == pytest.approx(0.2, abs=0.08)
        variance = 0.2 * 0.8 / (num_clients * concentration + 1)
        assert shares.var() == pytest.approx(variance, rel=0.15)


def test_dirichlet_deals_examples_of_a_label_at_random_and_may_leave_clients_empty() -> None:
    clients, _ = Dirichlet("label", 2, 100.0).assign({"label": np.zeros(1_000, dtype=int)}, None, 0)
    assert 100 < clients[:500].sum() < 400
    columns = {"label": np.zeros(100, dtype=int)}
    shards, _ = partitioned(Dirichlet("label", 50, 0.01), columns, 1)
    assert shards.num_clients == 50
    assert (shards.sizes == 0).any()


@pytest.mark.parametrize("num_clients", [2, 5, 20])
def test_subtree_clients_hold_what_is_below_their_root(num_clients: int) -> None:
    for seed in range(5):
        columns, taxonomy = data(seed)
        clients, names = Subtree(num_clients).assign(columns, taxonomy, 0)
        assert names is not None
        held = {node: set(clients[columns["child"] == node]) for node in np.unique(columns["child"])}
        assert all(len(owners) == 1 for owners in held.values()), "a child is at one client"
        ancestors = {
            node: {node, *taxonomy.parent[taxonomy.child == node].tolist()}
            for node in range(len(taxonomy.depth))
        }
        for client, name in enumerate(names):
            root = int(name)
            members = [node for node, owners in held.items() if client in owners]
            inside = [node for node in members if root in ancestors[node]]
            common = set.intersection(*(ancestors[node] for node in members))
            assert inside, "the root has something at or below it"
            assert len(inside) == len(members) or common & ancestors[root] or taxonomy.depth[root] == 0


def test_subtree_names_are_nodes() -> None:
    columns, taxonomy = data(1)
    nodes = Vocabulary.of([f"node{i}" for i in range(len(taxonomy.depth))])
    _, names = partitioned(Subtree(4), columns, 0, taxonomy, vocabularies={"child": nodes})
    assert names is not None
    raw = Subtree(4).assign(columns, taxonomy, 0)[1]
    assert names.to_list() == [f"node{name}" for name in raw or ()]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: IID(0), "partition.num_clients must be a whole number, 1 or more, got 0"),
        (lambda: Subtree(-1), "partition.num_clients must be a whole number, 1 or more, got -1"),
        (lambda: IID("3"), "partition.num_clients must be a whole number, 1 or more, got '3'"),  # type: ignore[arg-type]
        (
            lambda: Dirichlet("label", 0, 1.0),
            "partition.num_clients must be a whole number, 1 or more, got 0",
        ),
        (
            lambda: Dirichlet("label", 2, 0.0),
            "partition.concentration must be a number above 0, got 0.0; 0.1 is",
        ),
        (
            lambda: Dirichlet("label", 2, float("nan")),
            "partition.concentration must be a number above 0, got nan",
        ),
        (
            lambda: Dirichlet("label", 2, float("inf")),
            "partition.concentration must be a number above 0, got inf",
        ),
    ],
)
def test_wrong_settings_are_refused_at_once(make: Callable[[], Partition], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("partition", "error", "said"),
    [
        (IID(5), SettingError, "must be at most the number of examples, 4, got 5; lower it"),
        (Dirichlet("label", 5, 1.0), SettingError, "must be at most the number of examples, 4, got 5"),
        (Subtree(4), SettingError, "must be at most the number of nodes with a parent, 3, got 4"),
        (ByColumn("labels"), DataError, "got 'labels'; there are child, parent, label, hole"),
        (Dirichlet("what", 2, 1.0), DataError, "partition.column must be a column of the data, got 'what'"),
        (ByColumn("hole"), DataError, "must have a value in every example, but 'hole' lacks some"),
        (
            Natural(),
            DataError,
            "name it in data.columns.client, or choose partition=iid, column, dirichlet or sub",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(partition: Partition, error: type[Exception], said: str) -> None:
    taxonomy = build_taxonomy(np.array([1, 2, 3]), np.array([0, 1, 0]), 4)
    columns = {
        "child": taxonomy.child,
        "parent": taxonomy.parent,
        "label": np.zeros(4),
        "hole": np.array(["a", None, "b", "c"], dtype=object),
    }
    with pytest.raises(error) as caught:
        partition.assign(columns, taxonomy, 0)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_taxonomy_there_are_no_subtrees() -> None:
    with pytest.raises(DataError, match="partition=subtree must be given a taxonomy, got none"):
        Subtree(2).assign({"item": np.zeros(4)}, None, 0)
    with pytest.raises(DataError, match=r"dirichlet$"):
        Natural().assign({"item": np.zeros(4)}, None, 0)
