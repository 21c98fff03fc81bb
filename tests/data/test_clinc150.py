"""data/clinc150.py: queries as their authors publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedemb.data.clinc150 import Clinc150
from fedemb.data.partition import IID, ByColumn, Dirichlet, Natural
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "clinc_oos"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there: CLINC150 NOT TESTED")

COMPONENTS: dict[str, Any] = {
    "text": {"kind": "text", "words": 2, "characters": [3, 5], "buckets": 4096, "length": 320}
}
DOMAINS = {"bank": ["balance", "pay"], "home": ["lights"]}


def queries(per_intent: int) -> list[list[str]]:
    return [[f"my {i} please {n}", i] for i in ("balance", "pay", "lights") for n in range(per_intent)]


def published() -> dict[str, Any]:
    splits: dict[str, Any] = {"train": queries(6), "val": queries(2), "test": queries(3)}
    splits |= {name: [[f"why is the sky {name} {n}", "oos"] for n in range(5)] for name in ("oos_test",)}
    return {**splits, "oos_train": [["sing", "oos"]], "oos_val": [["dance", "oos"], ["jump", "oos"]]}


def write(folder: Path, splits: Any, domains: Any = DOMAINS) -> Path:
    for name, content in (("data_full.json", splits), ("domains.json", domains)):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def load(path: Path, partition: Any = None, components: Any = COMPONENTS) -> Dataset:
    return Clinc150(str(path), components).load(partition or Natural(), 0)


def test_domains_are_clients_and_splits_as_published(tmp_path: Path) -> None:
    data = load(write(tmp_path, published()))
    assert data.clients is not None
    assert data.clients.to_list() == ["bank", "home"]
    assert data.train.sizes.tolist() == [12, 6]
    assert {name: shards.sizes.tolist() for name, shards in data.held_out.items()} == {
        "validation": [4, 2],
        "test": [6, 3],
        "out_of_distribution": [3, 2],
    }
    assert data.vocabularies["label"].to_list() == ["balance", "lights", "pay"]
    assert data.label is not None
    assert data.label.kind == "category"
    assert (data.held_out["out_of_distribution"].columns["label"] == -1).all()
    assert data.counts["oos_train_not_used"] == 1
    assert data.counts["oos_val_not_used"] == 2
    assert data.counts["text_missing"] == data.counts["text_too_long"] == 0


def test_the_file_instead_of_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path, published())
    one, other = load(folder), load(folder / "data_full.json")
    assert np.array_equal(one.train.columns["part_text"], other.train.columns["part_text"])


@pytest.mark.parametrize(
    ("partition", "clients"),
    [
        (IID(4), 4),
        (ByColumn("domain"), 2),
        (Dirichlet("label", 2, 100.0), 2),
        (Dirichlet("domain", 2, 100.0), 2),
    ],
)
def test_other_partitions(partition: Any, clients: int, tmp_path: Path) -> None:
    data = load(write(tmp_path, published()), partition)
    assert data.train.num_clients == clients
    sizes = data.held_out["out_of_distribution"].sizes
    assert sizes.sum() == 5
    assert sizes.max() - sizes.min() <= 1


def test_several_ways_to_read_a_query(tmp_path: Path) -> None:
    ways = {
        "words": {"kind": "text", "column": "text", "words": 1},
        "letters": {"kind": "text", "column": "text", "words": 0, "characters": [3, 3]},
    }
    data = load(write(tmp_path, published()), components=ways)
    assert [part.name for part in data.components] == ["words", "letters"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": None}, r"data_full.json must hold a list 'val' of queries; there is train, "),
        ({"train": []}, r"data_full.json must hold queries of 'train', found none"),
        (
            {"test": [["hi", "pay"], ["hi"]]},
            r"each of 'test' must be \[text, intent\], but number 2 is \['hi'\]",
        ),
        ({"test": [["hi", 3]]}, r"number 1 is \['hi', 3\]"),
        ({"test": [["hi", "fly"]]}, r"domains.json must name the domain of every intent, but 'fly' of test"),
    ],
)
def test_files_that_are_not_as_published(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    splits = {name: rows for name, rows in {**published(), **change}.items() if rows is not None}
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path, splits))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "domains", "message"),
    [
        ("", DOMAINS, r"data_full.json must be JSON, but line 1"),
        ('{"train":\n [', DOMAINS, r"data_full.json must be JSON, but line 2"),
        ("[]", DOMAINS, r"data_full.json must hold an object as published, found list"),
        (published(), '{"bank": ', r"domains.json must be JSON, but line 1"),
        (
            published(),
            {"bank": "pay"},
            r"domains.json must hold a list of intents for each domain, got 'pay'",
        ),
        (published(), {"a": ["pay"], "b": ["pay"]}, r"in one domain, but 'pay' is in 'a' and in 'b'"),
    ],
)
def test_broken_files(splits: Any, domains: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path, splits, domains))
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.path must be the folder .* no file .*nowhere"):
        load(tmp_path / "nowhere")
    write(tmp_path, published())
    (tmp_path / "domains.json").unlink()
    with pytest.raises(DataError, match=r"beside domains.json; there is no file .*domains.json"):
        load(tmp_path)
    (tmp_path / "data_full.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match="must be JSON in UTF-8"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"intent": "text"}, r"data.components.intent.column must be text, .* got 'intent'"),
        ({"text": "category"}, r"data.components.text.kind must be text, .* got 'category'"),
        (
            {"text": {"kind": "text", "word": 2}},
            r"data.components.text.word is no setting; did you mean words",
        ),
    ],
)
def test_wrong_components(components: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Clinc150("x", components)


def test_wrong_partition_column(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"partition.column must be domain or label .* got 'intent'"):
        load(write(tmp_path, published()), ByColumn("intent"))


@needs_shared
def test_the_published_data() -> None:
    data = load(SHARED)
    held = {name: shards.num_examples for name, shards in data.held_out.items()}
    assert data.train.num_examples + held["validation"] + held["test"] == 22_500
    assert held == {"validation": 3000, "test": 4500, "out_of_distribution": 1000}
    assert len(data.vocabularies["label"]) == 150
    assert data.train.sizes.tolist() == [1500] * 10
    assert data.held_out["out_of_distribution"].sizes.tolist() == [100] * 10
    assert data.counts["text_too_long"] == data.counts["text_missing"] == 0
