from __future__ import annotations

import numpy as np
import pytest

from fedemb.data.known import with_names_of
from fedemb.data.shards import Shards
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import DataError
from fedemb.types import Dataset, Taxonomy

KNOWN = {"item": Vocabulary.of(["a", "b", "c"], np.array([5, 6, 7]))}


def dataset(items: list[int], offsets: list[int], names: list[str], **more: object) -> Dataset:
    columns = {"item": np.array(items), "time": np.arange(len(items))}
    shards = Shards(columns, np.array(offsets))
    parts = {"train": shards, "held_out": {"test": shards}, "vocabularies": {"item": Vocabulary.of(names)}}
    return Dataset(**{**parts, "entity_of": {"item": "item"}, **more})  # type: ignore[arg-type]


def test_lines_get_the_ids_of_the_model_and_new_names_go() -> None:
    found = with_names_of(dataset([0, 1, 2, 1], [0, 2, 4], ["c", "x", "a"]), KNOWN)
    for shards in (found.train, found.held_out["test"]):
        assert shards.columns["item"].tolist() == [2, 0]
        assert shards.columns["time"].tolist() == [0, 2]
        assert shards.offsets.tolist() == [0, 1, 2]
    assert dict(found.counts) == {"training_of_new_names": 2, "test_of_new_names": 2}
    assert found.vocabularies["item"] is KNOWN["item"]


def test_the_same_names_change_nothing() -> None:
    one = dataset([0, 1], [0, 2], ["a", "b", "c"])
    assert with_names_of(one, KNOWN) is one


def test_components_that_are_missing_stay_missing() -> None:
    parts = Shards({"parts": np.array([[0, -1], [1, 0]])}, np.array([0, 2]))
    data = Dataset(parts, {"part": Vocabulary.of(["x", "b"])}, entity_of={"parts": "part"})
    found = with_names_of(data, {"part": KNOWN["item"]})
    assert found.train.columns["parts"].tolist() == [[-1, -1], [1, -1]]


def test_nothing_that_is_known_is_an_error() -> None:
    with pytest.raises(DataError, match="none of its names stands in these data"):
        with_names_of(dataset([0], [0, 1], ["x"]), KNOWN)


def test_a_graph_of_other_names_is_an_error() -> None:
    none = np.zeros(0, dtype=np.int64)
    graph = Taxonomy(none, none, none, none.astype(bool))
    with pytest.raises(DataError, match="must have the names"):
        with_names_of(dataset([0], [0, 1], ["x"], taxonomy=graph), KNOWN)
