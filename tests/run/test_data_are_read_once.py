"""build.py: data that two runs share are read once, and again where a file has changed."""

from __future__ import annotations

import os
from pathlib import Path

import fedemb
from fedemb.build import build, load_data
from fedemb.config import compose_config

SETTINGS = ["data=pairs", "task=skipgram", "task.tied=true", "task.negatives=0", "baselines=[]", "rounds=1"]


def pairs(path: Path, lines: int) -> Path:
    path.write_text(
        "client,left,right,label\n" + "".join(f"c{n % 3},a{n},b{n % 5},1\n" for n in range(lines))
    )
    return path


def test_other_tasks_share_the_data(tmp_path: Path) -> None:
    given = [*SETTINGS, f"data.path={pairs(tmp_path / 'pairs.csv', 60)}", "data.min_count=1"]
    one, other = (build(compose_config([*given, f"task.dim={dim}"])) for dim in (4, 8))
    assert one.dataset is other.dataset
    assert one.task is not other.task
    assert load_data(compose_config([*given, "seed=1"])) is not one.dataset


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = pairs(tmp_path / "pairs.csv", 60)
    given = [*SETTINGS, f"data.path={path}", "data.min_count=1"]
    first = fedemb.train(given, folder=tmp_path / "first")
    pairs(path, 90)
    second = fedemb.train(given, folder=tmp_path / "second")
    assert len(first.table("item")[0]) < len(second.table("item")[0])
    same_size = path.read_text().replace("a0,", "z0,")
    path.write_text(same_size)
    os.utime(path, ns=(1, 1))
    third = fedemb.train(given, folder=tmp_path / "third")
    assert "z0" in third.table("item")[0]


def test_a_file_of_a_folder_that_has_changed_is_read_again(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("ann", "bob"):
        (notes / f"{name}.txt").write_text("a cat and a dog\n" * 30)
    given = ["data=text", f"data.path={notes}", "task=skipgram", "data.min_count=1"]
    before = load_data(compose_config(given))
    for name in ("ann", "bob"):
        (notes / f"{name}.txt").write_text("a cat and a cow\n" * 30)
    assert "cow" not in before.vocabularies["item"].to_list()
    assert "cow" in load_data(compose_config(given)).vocabularies["item"].to_list()
