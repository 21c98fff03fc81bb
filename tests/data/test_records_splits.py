"""data/record_splits.py: splits as a file publishes them, and records that no label fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedemb.data.lacking import keys_of
from fedemb.data.partition import IID, ByColumn, Natural
from fedemb.data.records import Records
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset

NAMES = ("", "train", "validation", "test", "train", "test", "train", "out_of_distribution")


def lines(num_rows: int = 80) -> list[dict[str, Any]]:
    """Rows of which every eighth, of labels and kinds of its own, is out of distribution and, mostly, nobody's."""
    found = []
    for n in range(num_rows):
        split, outside = NAMES[n % 8], n % 8 == 7
        row = {
            "id": f"r{n}",
            "client": f"c{n % 5}",
            "split": split,
            "label": f"l{n % 3}",
            "kind": f"k{n % 3}",
        }
        row |= {"time": f"20{99 - n}-01-01"}
        if outside:
            row |= {"client": "c1" if n == 7 else "", "label": f"odd {n}", "kind": f"strange {n}"}
        found.append(row)
    return found


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "r.csv"
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")
    return path


def load(path: Path, partition: Any = None, seed: int = 0, **settings: Any) -> Dataset:
    columns = {"split": "split", **settings.pop("columns", {})}
    return Records(str(path), {"kind": "category"}, columns, **settings).load(partition or Natural(), seed)


def ids_in(data: Dataset) -> dict[str, set[int]]:
    """Keys of the records of each split."""
    parts = {"train": data.train, **data.held_out}
    return {name: set(shards.columns["key"].tolist()) for name, shards in parts.items()}


@pytest.mark.parametrize("columns", [{}, {"client": ""}])
def test_splits_are_those_of_the_file(columns: dict[str, str], tmp_path: Path) -> None:
    rows = lines()
    data = load(write(tmp_path, rows), IID(4) if columns else None, columns=columns)
    expected: dict[str, set[int]] = {}
    for row in rows:
        expected.setdefault(row["split"] or "train", set()).update(keys_of([row["id"]]).tolist())
    assert ids_in(data) == expected
    assert data.counts["out_of_distribution_records"] == 10
    assert "time" not in data.train.columns
    assert data.span is None


def test_what_is_out_of_distribution_has_no_label_and_no_part_in_vocabularies(tmp_path: Path) -> None:
    data = load(write(tmp_path, lines()))
    assert data.vocabularies["label"].to_list() == ["l0", "l1", "l2"]
    assert data.vocabularies["kind"].to_list() == ["", "k0", "k1", "k2"]
    outside = data.held_out["out_of_distribution"]
    assert (outside.columns["label"] == -1).all()
    assert (outside.columns["part_kind"] == -1).all()
    assert all((shards.columns["label"] >= 0).all() for shards in (data.train, data.held_out["test"]))


def test_its_labels_need_not_stand_in_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree.csv"
    tree.write_text("id,parent\nall,\nl0,all\nl1,all\nl2,all\n")
    data = load(write(tmp_path, lines()), label_tree={"path": str(tree), "depth": 1}, labels=["l0", "l1"])
    assert data.counts["labels_not_below_depth"] == 0
    assert data.held_out["out_of_distribution"].num_examples == 10


def test_nobodys_records_are_dealt_out_evenly_to_those_who_train(tmp_path: Path) -> None:
    rows = lines(163)
    rows += [{**rows[3], "id": "x", "client": "tests only"}]
    path = write(tmp_path, rows)
    data = load(path, keep_cold_clients=True)
    assert data.clients is not None
    sizes = dict(
        zip(data.clients.to_list(), data.held_out["out_of_distribution"].sizes.tolist(), strict=True)
    )
    assert sizes.pop("tests only") == 0
    sizes["c1"] -= 1  # its own
    assert sorted(sizes.values()) == [3, 4, 4, 4, 4]
    again, other = load(path, keep_cold_clients=True), load(path, seed=1, keep_cold_clients=True)
    owners = data.held_out["out_of_distribution"].columns["key"]
    assert np.array_equal(owners, again.held_out["out_of_distribution"].columns["key"])
    assert not np.array_equal(owners, other.held_out["out_of_distribution"].columns["key"])


def test_partitions_do_not_see_them(tmp_path: Path) -> None:
    rows = lines()
    path = write(tmp_path, rows)
    whole = load(path, IID(4), columns={"client": ""})
    assert sorted(whole.held_out["out_of_distribution"].sizes) == [2, 2, 3, 3]
    (tmp_path / "inside").mkdir()
    inside = write(tmp_path / "inside", [row for row in rows if row["split"] != "out_of_distribution"])
    alone = load(inside, IID(4), columns={"client": ""})
    assert np.array_equal(whole.train.columns["key"], alone.train.columns["key"])
    by_column = load(path, ByColumn("kind"), columns={"client": ""})
    assert by_column.clients is not None
    assert by_column.clients.to_list() == ["k0", "k1", "k2"]


def test_others_need_a_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = lines()
    rows[1]["client"] = rows[2]["client"] = ""
    data = load(write(tmp_path, rows))
    assert data.counts["rows_missing_client"] == 2
    assert "2 rows have nothing in 'client'" in caplog.text
    assert sum(map(len, ids_in(data).values())) == 78


def test_parquet_with_nothing_for_training(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    rows = [{name: cell or None for name, cell in row.items()} for row in lines()]
    pq.write_table(pa.Table.from_pylist(rows), path)
    csv = write(tmp_path, lines())
    assert ids_in(load(path)) == ids_in(load(csv))


def test_a_record_is_in_one_split(tmp_path: Path) -> None:
    rows = lines()
    rows[12]["id"] = rows[11]["id"]  # train and test
    with pytest.raises(DataError, match=r"r.csv, line 13: .* 'r11' is in test and in train"):
        load(write(tmp_path, rows))
    rows[12]["split"] = rows[11]["split"]
    assert load(write(tmp_path, rows)).counts["records_repeated"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_from": "2020-01-01"}, r"data.test_from must be null where data.columns.split"),
        ({"validation_from": "2020-01-01"}, r"data.validation_from must be null where"),
        ({"columns": {"time": "time"}}, r"data.columns.time must be null where .* got 'time'"),
    ],
)
def test_two_ways_to_split_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message):
        load(write(tmp_path, lines()), **settings)


def test_wrong_splits(tmp_path: Path) -> None:
    rows = lines()
    rows[5]["split"] = "dev"
    with pytest.raises(DataError, match=r"r.csv, line 7: .* train, validation, test, out_of.* got 'dev'"):
        load(write(tmp_path, rows))
    with pytest.raises(DataError, match=r"data.columns.split must name a column of .*r.csv, got 'part'"):
        load(write(tmp_path, rows), columns={"split": "part"})
    held = [{**row, "split": "test"} for row in rows]
    with pytest.raises(DataError, match="some must be of the split train"):
        load(write(tmp_path, held))
    outside = [{**row, "split": "out_of_distribution"} for row in rows]
    with pytest.raises(DataError, match="some must be of the split train"):
        load(write(tmp_path, outside))
