"""The Python interface: ``fedemb.train`` is a function and a package, as often as one likes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fedemb

SMALL = [
    "data=synthetic", "data.structure=tree", "data.num_items=90", "data.num_clients=5", "rounds=2", "task.dim=3",
    "task.negatives=4", "evaluate_every=0", "baselines=[]",
]  # fmt: skip


def test_train_twice_and_load(tmp_path: Path) -> None:
    first = fedemb.train(SMALL, folder=tmp_path / "first")
    second = fedemb.train(SMALL, folder=tmp_path / "second")
    assert fedemb.train.rows.train_cohort is not None  # type: ignore[attr-defined]
    loaded = fedemb.load(tmp_path / "first")
    assert loaded.tables == first.tables == ["node"]
    for run in (second, loaded):
        names, matrix = run.table("node")
        assert names == first.table("node")[0]
        assert len(names) == 90
        np.testing.assert_array_equal(matrix, first.table("node")[1])
    assert [line["round"] for line in loaded.metrics] == [1, 2]
    assert loaded.summary["work"]["rounds"] == 2
    with pytest.raises(KeyError, match="table must be one of node, got 'item'"):
        loaded.table("item")
    with pytest.raises(fedemb_error(), match="must be the folder of a finished run"):
        fedemb.load(tmp_path)


def fedemb_error() -> type[Exception]:
    from fedemb.errors import DataError

    return DataError


def test_the_interface_is_complete() -> None:
    assert sorted(fedemb.__all__) == ["Run", "load", "train"]
    assert all(hasattr(fedemb, name) for name in fedemb.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        _ = fedemb.fit  # type: ignore[attr-defined]
