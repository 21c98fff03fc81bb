"""A dynamic run from its folder: rows of slices have names, and a federation goes on in them with newer data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fedemb
from fedemb.build import build
from fedemb.config import compose_config
from fedemb.errors import SettingError
from fedemb.manifolds import Euclidean
from fedemb.run.resume import with_evidence, with_more_slices
from fedemb.server.optimizers import RowOptimizer
from fedemb.server.prior import RandomWalk
from fedemb.types import Table

SETTINGS = [
    "data=interactions",
    "task=dynamic",
    "task.dim=4",
    "task.slice=month",
    "data.min_count=1",
    "baselines=[]",
]


def events(path: Path, step: int, width: int) -> Path:
    """Purchases of a dozen clients over five months; ``width`` items, of which ``step`` go and come each month."""
    rng, rows = np.random.default_rng(0), ["client,item,time"]
    for client in range(12):
        for _ in range(40):
            month = rng.integers(1, 6)
            item = (
                "new" if month == 5 and rng.random() < 0.5 else f"i{step * (month - 1) + rng.integers(width)}"
            )
            rows.append(f"c{client},{item},2020-{month:02d}-{rng.integers(1, 28):02d}")
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return events(tmp_path_factory.mktemp("data") / "events.csv", step=0, width=10)


@pytest.fixture(scope="module")
def begun(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "begun"
    data = [f"data.path={path}", "data.until=2020-05-01", "data.test_from=2020-04-01", "checkpoint_every=2"]
    fedemb.train([*SETTINGS, *data, "rounds=2"], folder=folder)
    return folder


def test_rows_of_slices_have_names(begun: Path) -> None:
    run = fedemb.load(begun)
    ids, matrix = run.table("item_slice")
    assert len(ids) == len(matrix) == 3 * 10
    assert ids[:4] == ["i0@2020-01-01", "i0@2020-02-01", "i0@2020-03-01", "i1@2020-01-01"]
    assert run.summary["leak_check"]["examples"] == run.summary["data"]["training_events"]


def test_the_server_knows_the_prior(path: Path) -> None:
    parts = build(compose_config([*SETTINGS, f"data.path={path}", "task.walk=3.0"]))
    assert isinstance(parts.optimizer_of(), RandomWalk)
    assert {t.walk for t in parts.shared if t.num_slices > 1} == {3.0}
    still = build(compose_config([*SETTINGS, f"data.path={path}", "task.rows=static"]))
    assert isinstance(still.optimizer_of(), RowOptimizer)


def test_a_federation_goes_on_with_newer_data(path: Path, begun: Path, tmp_path: Path) -> None:
    newer = [
        f"data.path={path}",
        "data.since=2020-04-01",
        "data.test_from=2020-05-15",
        "checkpoint_every=2",
    ]
    run = fedemb.train([*SETTINGS, *newer, "rounds=4", f"resume={begun}"], folder=tmp_path / "run")
    (ids, after), (names, before) = (fedemb.load(f).table("bias_slice") for f in (run.folder, begun))
    assert ids[:5] == [*names[:3], "i0@2020-04-01", "i0@2020-05-01"], (
        "two more slices; the items are the same"
    )
    after, before = after.reshape(10, 5), before.reshape(10, 3)
    moved = np.abs(after - before[:, [0, 1, 2, 2, 2]])
    assert (moved[:, 3:].min(1) > moved[:, 0]).mean() > 0.7, "newer events belong to the new slices"
    evidence = load_file(run.folder / "checkpoint" / "round-000004.safetensors")[
        "optimizer/bias_slice/evidence"
    ]
    assert evidence[-1] == 4, "of rounds, those before counted"
    assert (evidence[:-1].view(10, 5).mean(0)[[0, 3]] > 1).all()
    assert run.summary["data"]["training_of_new_names"] > 0
    with pytest.raises(SettingError, match=r"task\.dim"):
        fedemb.train(
            [*SETTINGS, *newer, "task.dim=5", "rounds=4", f"resume={begun}"], folder=tmp_path / "other"
        )


def test_rows_of_more_slices_by_hand() -> None:
    """Two items of two slices; new slices are where the last was, and an optimiser has not seen them."""
    table = Table("item_slice", 8, 1, Euclidean(), 0.0, num_slices=4, walk=1.0)
    column = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    tensors = {
        "table/item_slice": column,
        "optimizer/item_slice/mean": column,
        "optimizer/item_slice/evidence": torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0]),
        "optimizer/item/mean": column,
        "dense/wave": torch.ones(2),
    }
    found = with_more_slices(tensors, (table,))
    assert found["table/item_slice"].flatten().tolist() == [1, 2, 2, 2, 3, 4, 4, 4]
    assert found["optimizer/item_slice/mean"].flatten().tolist() == [1, 2, 0, 0, 3, 4, 0, 0]
    assert found["optimizer/item_slice/evidence"].tolist() == [1, 2, 0, 0, 3, 4, 0, 0, 9]
    assert all(found[name] is tensors[name] for name in ("optimizer/item/mean", "dense/wave"))
    assert with_more_slices(found, (table,)) is found


def test_what_was_learnt_counts_in_the_walk_though_no_checkpoint_says_so() -> None:
    table = Table("item_slice", 4, 1, Euclidean(), 0.0, num_slices=2, walk=1.0)
    rows = {"table/item_slice": torch.tensor([[0.0], [2.0], [0.0], [4.0]])}
    found = with_evidence(rows, (table,), None)
    assert found["optimizer/item_slice/evidence"].tolist() == [0, 1, 0, 1, 1]
    seen = {**rows, "optimizer/item_slice/evidence": torch.tensor([0.0, 6.0, 0.0, 0.0, 3.0])}
    assert with_evidence(seen, (table,), None)["optimizer/item_slice/evidence"].tolist() == [0, 6, 0, 0, 3]
    trained = {"item_slice": torch.tensor([[0.0], [1.0], [0.0], [3.0]])}
    served = with_evidence(seen, (table,), trained)
    assert served["optimizer/item_slice/evidence"].tolist() == [0, 6, 0, 3, 3], "an example a round"


def test_shuffled_times_are_told_apart_from_true_ones(tmp_path: Path) -> None:
    path = events(tmp_path / "events.csv", step=2, width=4)
    ablation = '+ablations.shuffled=["data.shuffle_times=true"]'
    data = [f"data.path={path}", "data.test_from=2020-05-01"]
    run = fedemb.train([*SETTINGS, *data, "rounds=3", ablation], folder=tmp_path / "run")
    check = run.summary["leak_check"]["shuffled"]
    assert check["ndcg@10"] == run.summary["metrics"]["ndcg@10"]
    assert check["shuffled_ndcg@10"] == run.summary["baselines"]["shuffled"]["ndcg@10"]
    assert check["shuffled_ndcg@10"] < 0.9 * check["ndcg@10"]
