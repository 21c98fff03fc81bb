"""build.py: data that two runs share are read once, and again where a file has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

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


def test_a_run_among_the_data_does_not_change_them(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        (tmp_path / f"{name}.txt").write_text("a cat and a dog\n" * 30)
    given = ["data=text", f"data.path={tmp_path}", "task=skipgram", "data.min_count=1"]
    before = load_data(compose_config(given))
    (tmp_path / "runs").mkdir()
    assert load_data(compose_config(given)) is before


@pytest.mark.parametrize("length", [300, 5000])
def test_a_setting_may_be_longer_than_a_name_of_a_file(length: int, tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("client,item,time\n" + "".join(f"c{n % 3},i{n % 5},{n}\n" for n in range(60)))
    given = [
        "data=interactions",
        f"data.path={path}",
        "task=factorization",
        f"+data.drop.item={'x' * length}",
    ]
    assert load_data(compose_config(given)).counts["rows_read"] == 60


def test_settings_of_the_data_may_refer_to_others(tmp_path: Path) -> None:
    given = [*SETTINGS, f"data.path={pairs(tmp_path / 'pairs.csv', 60)}"]
    assert load_data(compose_config([*given, "data.min_count=${rounds}"])).counts["rows_read"] == 60


def test_a_model_that_was_trained_on_is_taken_up_anew(tmp_path: Path) -> None:
    given = [*SETTINGS, f"data.path={pairs(tmp_path / 'pairs.csv', 60)}", "data.min_count=1"]
    resumed = compose_config([*given, f"resume={tmp_path / 'first'}"])
    for lines in (60, 90):
        pairs(tmp_path / "pairs.csv", lines)
        fedemb.train(given, folder=tmp_path / f"of-{lines}")
    names = []
    for lines in (60, 90):
        shutil.rmtree(tmp_path / "first", ignore_errors=True)
        shutil.copytree(tmp_path / f"of-{lines}", tmp_path / "first")
        names.append(build(resumed).dataset.vocabularies["item"])
    assert len(names[0]) < len(names[1])
