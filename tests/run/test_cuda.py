"""What device=cuda gives beside what device=cpu gives: every task, its baselines, resumed runs. Needs a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fedemb
from fedemb.build import build
from fedemb.config import compose_config
from fedemb.errors import SettingError
from tests.flower.test_strategy import CASES, INTERACTIONS

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO GPU HERE: nothing of device=cuda is tested by this run"
)

MORE = {
    "continuous": [
        *INTERACTIONS, "task=dynamic", "task.dim=4", "task.rows=continuous", "task.state=exponential",
        "task.slice=2 days", "train.learning_rate=0.05",
    ],
    "shared-negatives": [
        *CASES["hierarchical"], "task.shared_negatives=true", "task.learn_scale=true", "task.log_q_correction=true",
    ],
    "rotate": [*CASES["knowledge-graph"], "task.model=rotate", "task.relations=shared"],
    "sampled": [*CASES["knowledge-graph"], "task.objective=sampled"],
    "own": [*CASES["knowledge-graph"], "task.against=own"],
    "optimisers": [
        *INTERACTIONS, "task=factorization", "train.optimizer=adam", "train.keep_state=true", "server.optimizer=yogi",
        "aggregate.clip_norm=0.5", "evaluation.sampled=20",
    ],
}  # fmt: skip


def close(first: fedemb.Run, second: fedemb.Run) -> None:
    """Tables and metrics up to the order in which floats were added."""
    for name in first.tables:
        own, other = first.table(name)[1], second.table(name)[1]
        assert np.linalg.norm(own - other) <= 1e-4 * np.linalg.norm(own), name
    ours, theirs = (
        {"federated": run.summary.get("metrics", {}), **run.summary.get("baselines", {})}
        for run in (first, second)
    )
    assert ours.keys() == theirs.keys()
    for phase, metrics in ours.items():
        for name, value in metrics.items():
            expected = None if value is None else pytest.approx(value, rel=0.01, abs=0.01)
            assert theirs[phase][name] == expected, f"{phase} {name}"


@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_a_gpu_gives_what_the_cpu_gives(case: str, tmp_path: Path) -> None:
    settings = [*(CASES | MORE)[case], "baselines=[centralized,local_only]"]
    one, other = (fedemb.train([*settings, f"device={d}"], tmp_path / d) for d in ("cpu", "cuda"))
    close(one, other)


@pytest.mark.parametrize("case", ["factorization", "dynamic-means", "optimisers"])
def test_a_run_is_taken_up_on_a_gpu(case: str, tmp_path: Path) -> None:
    settings = [*(CASES | MORE)[case], "baselines=[]", "device=cuda", "checkpoint_every=1"]
    whole = fedemb.train(settings, tmp_path / "whole")
    fedemb.train([*settings, "rounds=2"], tmp_path / "begun")
    close(whole, fedemb.train([*settings, f"resume={tmp_path / 'begun'}"], tmp_path / "resumed"))


def test_tables_live_on_the_gpu() -> None:
    parts = build(compose_config([*CASES["dynamic-means"], "device=cuda:0"]))
    assert all(value.is_cuda for part in parts.initial() for value in part.values())


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(SettingError, match="device must name one of"):
        build(compose_config(["device=cuda:99"]))
