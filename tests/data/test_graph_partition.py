"""Relation and Entity: one client for each, balanced, drawn by the seed, and readable names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedemb.data.partition import Entity, Natural, Relation, assigned
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import DataError, SettingError

Graph = dict[str, np.ndarray]  # type: ignore[type-arg]


def graph(seed: int, num_triples: int = 300) -> Graph:
    generator = np.random.default_rng(seed)
    columns: Graph = {
        "head": generator.zipf(1.5, num_triples) % 50,
        "relation": np.minimum(generator.zipf(1.3, num_triples), 30) - 1,
        "tail": generator.integers(0, 50, num_triples),
    }
    columns["head"][:50], columns["relation"][:30] = np.arange(50), np.arange(30)
    return columns


@pytest.mark.parametrize(("make", "column"), [(Relation, "relation"), (Entity, "head")])
@given(num_clients=st.integers(1, 30), graph_seed=st.integers(0, 30), seed=st.integers(0, 2**40))
def test_each_at_one_client_and_balanced(
    make: type[Relation] | type[Entity], column: str, num_clients: int, graph_seed: int, seed: int
) -> None:
    columns = graph(graph_seed)
    clients, names = make(num_clients).assign(columns, None, seed)
    assert clients.dtype == np.int64
    assert clients.shape == columns["head"].shape
    assert names == tuple(str(client) for client in range(num_clients))
    pairs = np.unique(np.stack([columns[column], clients]), axis=1)
    assert len(np.unique(columns[column])) == pairs.shape[1]
    loads = np.bincount(clients, minlength=num_clients)
    assert loads.min() > 0
    assert loads.max() - loads.min() <= np.bincount(columns[column]).max()
    again, _ = make(num_clients).assign(columns, None, seed)
    np.testing.assert_array_equal(again, clients)


@pytest.mark.parametrize(("make", "column"), [(Relation, "relation"), (Entity, "head")])
def test_seeds_break_ties(make: type[Relation] | type[Entity], column: str) -> None:
    """Equal things fall differently, equal clients too, and the loads stay as even as they can be."""
    columns = graph(0)
    columns[column] = np.repeat(np.arange(12), 25)
    first, second = (make(4).assign(columns, None, seed)[0] for seed in (1, 2))
    assert not np.array_equal(first, second)
    for clients in (first, second):
        assert np.bincount(clients).tolist() == [75] * 4
    assert {int(make(3).assign(columns, None, seed)[0][0]) for seed in range(20)} == {0, 1, 2}


def test_largest_first() -> None:
    sizes = [7, 6, 5, 4, 3, 2]
    relation = np.repeat(np.arange(6), sizes)
    columns = {"head": relation, "relation": relation, "tail": relation}
    clients, _ = Relation(3).assign(columns, None, 0)
    assert sorted(np.bincount(clients).tolist()) == [9, 9, 9]
    assert {tuple(np.unique(relation[clients == client])) for client in range(3)} == {(0, 5), (1, 4), (2, 3)}


def test_a_client_of_one_relation_has_its_name() -> None:
    relation = np.repeat([4, 2, 0, 1], [9, 3, 3, 2])
    columns = {"head": relation, "relation": relation, "tail": relation}
    known = {"relation": Vocabulary.of(["born in", "works at", "likes", "unused", "knows"])}
    clients, names = assigned(Relation(2), columns, 0, vocabularies=known)
    assert names is not None
    assert names.name(int(clients[0])) == "knows"
    assert names.name(int(clients[-1])) == str(clients[-1])
    numbers = {"relation": Vocabulary.of(["5", "6", "7", "8", str(clients[-1])])}
    _, same = assigned(Relation(2), columns, 0, vocabularies=numbers)
    assert same is not None
    assert same.to_list() == ["0", "1"], "a relation may be called as another client"


def test_what_does_not_fit_is_refused() -> None:
    columns = {name: np.array([0, 1, 1]) for name in ("head", "relation", "tail")}
    with pytest.raises(SettingError, match=r"at most the number of relations, 2, got 3; lower it"):
        Relation(3).assign(columns, None, 0)
    with pytest.raises(SettingError, match=r"at most the number of entities that are a head, 2, got 3"):
        Entity(3).assign(columns, None, 0)
    for make in (Relation, Entity):
        with pytest.raises(
            SettingError, match=r"partition.num_clients must be a whole number, 1 or more, got 0"
        ):
            make(0)
        with pytest.raises(DataError, match=r"must be given triples .* got item; choose data=triples, or"):
            make(2).assign({"item": np.zeros(4)}, None, 0)
    with pytest.raises(DataError, match=r"dirichlet, relation or entity$"):
        Natural().assign(columns, None, 0)
