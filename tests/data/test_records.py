"""data/records.py: formats agree, parts that are missing, labels, splits, and what is wrong with a file."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedemb.data.grams import GramRule, bucket_of
from fedemb.data.lacking import Lacking, keys_of
from fedemb.data.partition import IID, ByColumn, Dirichlet, Natural
from fedemb.data.records import Records
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset
from tests.gallery import COMPONENTS, gallery, rows

SETTINGS: dict[str, Any] = {"components": COMPONENTS, "label": "multi", "test_share": 0.3}


def as_csv(given: Sequence[dict[str, Any]], delimiter: str = ",") -> str:
    lines = [delimiter.join(given[0])]
    for row in given:
        cells = (";".join(cell) if isinstance(cell, list) else cell for cell in row.values())
        lines.append(delimiter.join("" if cell is None else str(cell) for cell in cells))
    return "\n".join(lines) + "\n"


def load(path: Path, seed: int = 0, partition: Any = None, **settings: Any) -> Dataset:
    return Records(str(path), **{**SETTINGS, **settings}).load(partition or Natural(), seed)


def write(folder: Path, given: Sequence[dict[str, Any]], name: str = "r.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "jsonl.gz", "parquet"])
def test_formats_agree(suffix: str, tmp_path: Path) -> None:
    given, path = rows(), tmp_path / f"gallery.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(given), path)
    elif suffix == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in given).encode()))
    else:
        text = as_csv(given, "\t" if suffix == "tsv" else ",")
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    one, other = gallery(), load(path)
    assert one.components == other.components
    for name, names in one.vocabularies.items():
        assert names.to_list() == other.vocabularies[name].to_list()
    for split, shards in {"train": one.train, **one.held_out}.items():
        found = {"train": other.train, **other.held_out}[split]
        assert np.array_equal(shards.offsets, found.offsets)
        for name, column in shards.columns.items():
            np.testing.assert_array_equal(column, found.columns[name])


def test_cells_become_ids() -> None:
    data = gallery()
    of = {row["id"]: row for row in rows()}
    key_of = dict(zip(keys_of(list(of)).tolist(), of.values(), strict=True))
    assert data.clients is not None
    names = {name: data.vocabularies[name].to_list() for name in ("medium", "tags", "label")}
    assert names["medium"] == ["", "bronze", "ink", "oil"]
    for shards in (data.train, *data.held_out.values()):
        for line, owner in enumerate(shards.owners()):
            row = key_of[int(shards.columns["key"][line])]
            assert row["client"] == data.clients.name(int(owner))
            ids = {name: shards.columns[name][line] for name in shards.columns}
            assert [names["label"][i] for i in ids["label"] if i >= 0] == row["label"]
            assert [names["medium"][i + 1] for i in ids["part_medium"] if i >= 0] == [row["medium"]] * bool(
                row["medium"]
            )
            assert [names["tags"][i + 1] for i in ids["part_tags"] if i >= 0] == row["tags"]
            assert (ids["part_year"][0] >= 0) == (row["year"] is not None)
            assert np.isnan(ids["part_height"]) == (row["height"] is None)
            rule = GramRule(2, (3, 4), 64, 24)
            grams = dict.fromkeys(bucket_of(g, 64) for g in rule.grams(row["title"] or ""))
            assert [i for i in ids["part_title"] if i >= 0] == list(grams)[:24]
    binned = data.vocabularies["year"].counts
    assert binned is not None
    assert binned[0] == 0
    assert binned[1:].max() - binned[1:].min() <= 6  # quantiles of training
    assert data.vocabularies["label"].counts is not None


def test_hash_is_the_same_in_another_process() -> None:
    code = "from fedemb.data.grams import bucket_of; print(bucket_of('Straße von Dover', 1 << 20))"
    found = set()
    for seed in ("1", "2"):
        environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed, "PYTHONUTF8": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        found.add(int(done.stdout))
    assert found == {bucket_of("Straße von Dover", 1 << 20)}


def test_split_does_not_depend_on_who_holds_a_record(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    natural = load(path)
    dealt = load(path, columns={"client": ""}, partition=IID(4))
    by_label = load(path, columns={"client": ""}, partition=Dirichlet("label", 3, 1.0))
    by_column = load(path, columns={"client": ""}, partition=ByColumn("client"))
    for other in (dealt, by_label, by_column):
        for split in ("validation", "test"):
            one = set(natural.held_out[split].columns["key"].tolist())
            assert one == set(other.held_out[split].columns["key"].tolist())
    assert by_column.clients == natural.clients
    kept = load(path, validation_share=0.1, test_share=0.0)  # a tuning run's validation is no test
    assert set(kept.held_out["validation"].columns["key"]) == set(
        natural.held_out["validation"].columns["key"]
    )


def test_split_by_time(tmp_path: Path) -> None:
    given = [{**row, "time": f"20{n % 20:02}-01-01"} for n, row in enumerate(rows())]
    data = load(write(tmp_path, given), validation_from="2012-01-01", test_from="2016-01-01")
    early, late = data.train.columns["time"], data.held_out["test"].columns["time"]
    assert early.max() < data.held_out["validation"].columns["time"].min()
    assert data.held_out["validation"].columns["time"].max() < late.min()
    given[3]["time"] = "noon"
    assert load(write(tmp_path, given)).counts["records_bad_time"] == 1


def test_labels_are_restricted_and_taken_up_a_tree(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    two = load(path, labels=["dark", "about king"])
    assert two.vocabularies["label"].to_list() == ["dark", "about king"]
    assert two.counts["records_of_other_labels"] > 0
    assert len(load(path, labels=3).vocabularies["label"]) == 3
    tree = tmp_path / "tree.csv"
    topics = [f"about {word}" for word in ("river", "saint", "horse", "bowl", "storm", "king")]
    lines = ["all,,", "mood,all,Mood", "thing,all,Thing", "dark,mood,Dark", *(f"{t},thing," for t in topics)]
    tree.write_text("\n".join(["id,parent,name", *lines]))
    data = load(path, label_tree={"path": str(tree), "depth": 1})
    assert data.vocabularies["label"].to_list() == ["Mood", "Thing"]
    assert data.counts["labels_not_below_depth"] == 0
    with pytest.raises(DataError, match=r"nothing stands at data.label_tree.depth=5"):
        load(path, label_tree={"path": str(tree), "depth": 5})
    tree.write_text("id,parent\na,b\nb,a\n")
    with pytest.raises(DataError, match="ancestor of itself"):
        load(path, label_tree={"path": str(tree), "depth": 0})
    tree.write_text("id,parent\na,b\n")
    with pytest.raises(DataError, match="has no row of its own"):
        load(path, label_tree={"path": str(tree), "depth": 0})


def test_one_label(tmp_path: Path) -> None:
    given = [{**row, "label": row["label"][0]} for row in rows()]
    data = load(write(tmp_path, given), label="category")
    assert data.train.columns["label"].shape[1] == 1
    assert data.label is not None
    assert data.label.kind == "category"


def missing_in(data: Dataset, name: str) -> np.ndarray:
    column = data.train.columns[f"part_{name}"]
    return np.isnan(column) if column.dtype == np.float32 else (column < 0).all(1)


def test_missing_patterns(tmp_path: Path) -> None:
    given = [{**row, "medium": "oil", "tags": ["t"]} for row in rows(600, 30)]
    path = write(tmp_path, given)
    at_random = load(path, missing={"random": 0.3})
    assert missing_in(at_random, "medium").mean() == pytest.approx(0.3, abs=0.08)
    assert not np.array_equal(missing_in(at_random, "medium"), missing_in(at_random, "tags"))
    of_clients = load(path, missing={"client": 0.5})
    lost = missing_in(of_clients, "medium")
    per_client = [
        set(lost[a:b]) for a, b in zip(of_clients.train.offsets, of_clients.train.offsets[1:], strict=False)
    ]
    assert all(len(kinds) <= 1 for kinds in per_client)
    assert {True} in per_client
    assert {False} in per_client
    of_column = load(path, missing={"column": {"medium": 1.0}})
    assert missing_in(of_column, "medium").all()
    assert not missing_in(of_column, "tags").any()
    assert of_column.counts["medium_taken_away"] == 600
    # whoever holds a record, it lacks the same
    dealt = load(path, columns={"client": ""}, partition=IID(4), missing={"random": 0.3})
    one, other = (
        dict(zip(d.train.columns["key"].tolist(), missing_in(d, "medium").tolist(), strict=True))
        for d in (at_random, dealt)
    )
    assert one == other


def test_everything_may_be_missing(tmp_path: Path) -> None:
    given = [{**row, "title": None, "medium": "", "tags": [], "year": None, "height": None} for row in rows()]
    data = load(write(tmp_path, given))
    assert all(missing_in(data, name).all() for name in COMPONENTS)


def test_dropped_and_bad_things_are_counted(tmp_path: Path) -> None:
    given = rows()
    given[0]["year"], given[1]["label"], given[2]["client"] = "unknown", [], None
    given[4]["id"] = given[3]["id"]
    data = load(write(tmp_path, given))
    counts = data.counts
    assert counts["year_bad"] == 1
    assert counts["records_without_label"] == 1
    assert counts["rows_missing_client"] == 1
    assert counts["records_repeated"] == 1
    assert sum(counts[f"{split}_records"] for split in ("training", "validation", "test")) == 147
    few = load(write(tmp_path, given), min_client_count=22)
    assert few.counts["clients_below_min_count"] > 0
    assert (few.train.sizes >= 22).all()


def test_cold_clients(tmp_path: Path) -> None:
    given = rows()
    given[10]["client"], given[11]["client"] = "only one", "just one"
    kept, left = (
        load(write(tmp_path, given), keep_cold_clients=keep, test_share=0.8) for keep in (True, False)
    )
    assert kept.counts["clients_without_training"] > 0
    assert kept.train.num_clients == left.train.num_clients + kept.counts["clients_without_training"]
    assert (left.train.sizes > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": {}}, "at least one component"),
        ({"components": {"title": "txt"}}, r"data.components.title.kind must be one of category"),
        ({"components": {"../x": "text"}}, "names of letters"),
        ({"components": {"label": "text"}}, "other than label"),
        ({"components": {"title": {"kind": "text", "bucket": 5}}}, "did you mean buckets"),
        ({"components": {"title": {"kind": "text", "words": 0}}}, "words must be 1 or more"),
        ({"components": {"title": {"kind": "text", "characters": [5, 3]}}}, "shortest, longest"),
        ({"components": {"title": {"kind": "text", "buckets": 0}}}, "buckets must be at least 1"),
        ({"components": {"title": {"kind": "text", "words": "abc"}}}, r"title.words must be a whole number, got 'abc'"),
        ({"components": {"title": {"kind": "text", "characters": 3}}}, r"title.characters must be \[.* got 3"),
        ({"components": {"title": {"kind": "text", "characters": "35"}}}, r"title.characters must be \[.* got '35'"),
        ({"components": {"title": {"kind": "text", "characters": [3, 4, 5]}}}, r"shortest, longest.* got \[3, 4, 5\]"),
        ({"components": {"title": {"kind": "text", "characters": [3, None]}}}, r"shortest, longest.* got \[3, None\]"),
        ({"components": {"title": {"kind": "text", "column": 3}}}, r"title.column must be the name of a column, got 3"),
        ({"components": {"tags": {"kind": "multi", "separator": 3}}}, r"tags.separator must be text such as .* got 3"),
        ({"components": {"tags": {"kind": "multi", "min_count": True}}}, r"tags.min_count must be a whole number"),
        ({"components": {"year": {"kind": "number", "bins": "x"}}}, r"year.bins must be a whole number, got .x"),
        ({"components": {"year": {"kind": "number", "bins": 1}}}, "bins must be 2 or more"),
        ({"label": "many"}, "data.label must be category or multi"),
        ({"labels": 1}, "data.labels must be a number from 2 on"),
        ({"labels": "dark"}, "a list of names"),
        ({"labels": ["light"]}, "must name labels of training records, got 'light'"),
        ({"missing": {"random": 2.0}}, "data.missing.random must be a number in"),
        ({"missing": {"column": {"titel": 0.5}}}, "did you mean 'title'"),
        ({"missing": {"often": 0.5}}, "data.missing must have random, client and column"),
        ({"label_tree": {"path": "x", "depth": -1}}, "depth, a number from 0 on"),
        ({"columns": {"labels": "x"}}, "did you mean data.columns.label"),
    ],
)  # fmt: skip
def test_wrong_settings(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message):
        load(write(tmp_path, rows()), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": {"titel": "text"}}, "data.components.titel.column must name a column of .*'title'"),
        ({"components": {"titel": {"kind": "text", "column": "tittle"}}}, "did you mean 'title'"),
        ({"columns": {"label": "labels"}}, "data.columns.label must name a column"),
        (
            {"test_share": 0.999, "validation_share": 0.0, "min_client_count": 50},
            "nothing is left to train on",
        ),
    ],
)
def test_wrong_files(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, rows()), **settings)


def test_lists_where_there_should_be_none(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist(rows()), path)
    with pytest.raises(DataError, match=r"data.components.tags must be of kind multi"):
        load(path, components={"tags": "category"})
    with pytest.raises(DataError, match=r"data.label must be multi"):
        load(path, label="category")
    with pytest.raises(DataError, match="malformed"):
        load(write(tmp_path, rows()), components={"tags": "category"})


def test_no_clients_no_natural_partition(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="partition=natural"):
        load(write(tmp_path, rows()), columns={"client": ""})
    with pytest.raises(DataError, match=r"partition.column must name a column"):
        load(write(tmp_path, rows()), columns={"client": ""}, partition=ByColumn("artist"))


def test_lacking_is_nested_in_nothing_but_its_key() -> None:
    keys = keys_of([f"a{n}" for n in range(1000)])
    lacking = Lacking(random=0.4)
    whole = lacking.lacks("title", keys, keys, 3)
    assert np.array_equal(whole[::7], lacking.lacks("title", keys[::7], keys[::7], 3))
    assert not np.array_equal(whole, lacking.lacks("title", keys, keys, 4))
    assert replace(lacking, random=0.0).lacks("title", keys, keys, 3).sum() == 0
