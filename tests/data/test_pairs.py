"""data/pairs.py: tied and untied vocabularies, labels, splits by time or at random per client."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedemb.data.pairs import Pairs
from fedemb.data.partition import IID, Natural
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset

ROWS = """user,left,right,label
ann,a,b,1
ann,b,c,0
ann,c,,1
ann,c,d,no
bob,d,a,0.5
bob,a,c,-1
"""


def written(folder: Path, rows: str = ROWS, name: str = "pairs.csv") -> str:
    (folder / name).write_text(rows)
    return str(folder / name)


def load(path: str, seed: int = 0, **settings: Any) -> Dataset:
    return Pairs(path, **settings).load(Natural(), seed)


ALL: dict[str, Any] = {"validation_share": 0, "test_share": 0}


def test_tied(tmp_path: Path) -> None:
    data = load(written(tmp_path), **ALL)
    names = data.vocabularies["item"]
    assert names.to_list() == ["a", "b", "c", "d"]
    assert data.entity_of == {"left": "item", "right": "item"}
    assert names.counts is not None
    assert names.counts.tolist() == [3, 2, 2, 1]
    assert [names.name(i) for i in data.train.columns["left"]] == ["a", "b", "d", "a"]
    assert [names.name(i) for i in data.train.columns["right"]] == ["b", "c", "a", "c"]
    assert data.train.columns["label"].tolist() == [1, 0, 0.5, -1]
    assert {name: column.dtype for name, column in data.train.columns.items()} == {
        "left": np.int64, "right": np.int64, "label": np.float32,
    }  # fmt: skip
    assert data.counts["rows_bad_label"] == 1
    assert data.counts["rows_missing_right"] == 1
    assert data.clients is not None
    assert data.clients.to_list() == ["ann", "bob"]


def test_untied(tmp_path: Path) -> None:
    data = load(written(tmp_path), tied=False, **ALL)
    assert data.vocabularies["left"].to_list() == ["a", "b", "d"]
    assert data.vocabularies["right"].to_list() == ["a", "b", "c"]
    assert data.entity_of == {"left": "left", "right": "right"}
    assert data.train.columns["right"].tolist() == [1, 2, 0, 2]


def test_no_label_means_similar(tmp_path: Path) -> None:
    data = load(written(tmp_path, "user,left,right\nann,a,b\n"), **ALL)
    assert data.train.columns["label"].tolist() == [1.0]
    assert data.train.columns["label"].dtype == np.float32
    other = load(written(tmp_path, "user,left,right,label\nann,a,b,0\n"), columns={"label": ""}, **ALL)
    assert other.train.columns["label"].tolist() == [1.0]


def many(folder: Path, time: bool) -> str:
    lines = [
        f"u{n % 7},i{n % 11},i{n % 13}" + (f",{1_600_000_000 + (n * 37 % 500) * 86_400}" if time else "")
        for n in range(500)
    ]
    return written(folder, "\n".join(["user,left,right" + ",time" * time, *lines]))


def test_random_part_of_each_client(tmp_path: Path) -> None:
    path = many(tmp_path, time=False)
    data = load(path, test_share=0.2, validation_share=0.1)
    rounded = {n: (int(n * 0.2 + 0.5), int(n * 0.1 + 0.5)) for n in (71, 72)}
    for train, validation, test in zip(
        data.train.sizes, data.held_out["validation"].sizes, data.held_out["test"].sizes, strict=True
    ):
        assert (test, validation) == rounded[int(train + validation + test)]
    same, other = load(path, test_share=0.2), load(path, 1, test_share=0.2)
    np.testing.assert_array_equal(
        same.held_out["test"].columns["left"], data.held_out["test"].columns["left"]
    )
    assert same.held_out["test"].columns["left"].tolist() != other.held_out["test"].columns["left"].tolist()
    small = load(path, test_share=0.2, memory_bytes=4_000)
    np.testing.assert_array_equal(small.train.columns["left"], data.train.columns["left"])


def test_time_cuts_all_clients_at_one_moment(tmp_path: Path) -> None:
    data = load(many(tmp_path, time=True))
    assert {*data.held_out} == {"validation", "test"}
    train, validation, test = (s.columns["time"] for s in (data.train, *data.held_out.values()))
    assert train.max() < validation.min() <= validation.max() < test.min()
    assert data.counts["test_events"] == data.counts["validation_events"] == 50
    for client in range(7):
        assert (np.diff(data.train.take(np.array([client])).columns["time"]) >= 0).all()


def test_rare_and_declared_names(tmp_path: Path) -> None:
    data = load(written(tmp_path), min_count=2, **ALL)
    assert data.vocabularies["item"].to_list() == ["a", "b", "c"]
    assert data.counts["items_below_min_count"] == 1
    assert data.counts["training_out_of_vocabulary"] == 1
    declared = written(tmp_path, "c\nb\na\n", "names.txt")
    assert load(written(tmp_path), vocabulary=declared, **ALL).train.columns["left"].tolist() == [2, 1, 2]
    with pytest.raises(SettingError, match=r"data.vocabulary must be null where data.tied is false"):
        Pairs("x", tied=False, vocabulary=declared)


def test_a_partition_makes_clients(tmp_path: Path) -> None:
    rows = "left,right\n" + "".join(f"i{n % 5},i{n % 3}\n" for n in range(40))
    data = Pairs(written(tmp_path, rows), **ALL).load(IID(4), 0)
    assert data.train.sizes.tolist() == [10] * 4
    assert data.clients is None


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data.columns must be among client, left, .* got 'item'"):
        Pairs("x", columns={"item": "x"})
    with pytest.raises(SettingError, match=r"data.min_count must be at least 1, got 0"):
        Pairs("x", min_count=0)
    with pytest.raises(
        DataError, match=r"data.columns.right must name a column of .* got none; there are 'left'"
    ):
        load(written(tmp_path, "left,other\na,b\n"))
    with pytest.raises(DataError, match=r"must be an existing file"):
        load(str(tmp_path / "none.csv"))
