"""Ablations: the run with some settings changed, beside the run itself, which does not notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedemb
from fedemb.errors import SettingError
from tests.flower.test_strategy import CASES

GRAPH = [*CASES["knowledge-graph"], "train.optimizer=adagrad", "rounds=6"]
SHARED = '+ablations.shared=["task.relations=shared"]'


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_ablation_is_the_run_with_its_settings(tmp_path: Path) -> None:
    """Of two, of which one changes how many take part; the run checkpoints, which the ablations must not."""
    base = [*GRAPH, "checkpoint_every=2", "baselines=[fine_tuned]"]
    plain = fedemb.train(base, tmp_path / "plain")
    ablated = fedemb.train(
        [*base, SHARED, '+ablations.all-at-once=["cohort.size=4", "train.epochs=2"]'], tmp_path / "ablated"
    )
    others = {
        "shared": fedemb.train([*GRAPH, "baselines=[]", "task.relations=shared"], tmp_path / "shared"),
        "all-at-once": fedemb.train(
            [*GRAPH, "baselines=[]", "cohort.size=4", "train.epochs=2"], tmp_path / "full"
        ),
    }
    assert list(ablated.summary["baselines"]) == ["fine_tuned", "shared", "all-at-once"]
    for name, other in others.items():
        found = ablated.summary["baselines"][name]
        assert found == other.summary["metrics"]
        assert found != plain.summary["metrics"]
    assert ablated.summary["metrics"] == plain.summary["metrics"]
    assert ablated.summary["baselines"]["fine_tuned"] == plain.summary["baselines"]["fine_tuned"]
    assert ablated.summary["communication"] == plain.summary["communication"]
    assert ablated.summary["config_digest"] == plain.summary["config_digest"]
    assert (ablated.table("entity")[1] == plain.table("entity")[1]).all()
    assert files(tmp_path / "ablated") == files(tmp_path / "plain")
    assert "checkpoint/personal-0-5-6.safetensors" in files(tmp_path / "plain")
    for path in files(tmp_path / "plain"):
        if "personal-" in path:
            one, other = (tmp_path / name / path for name in ("plain", "ablated"))
            assert one.read_bytes() == other.read_bytes(), path
    lines = [json.loads(line) for line in (tmp_path / "ablated" / "metrics.jsonl").read_text().splitlines()]
    rounds = [line["round"] for line in lines if line["phase"] == "shared" and "round" in line]
    assert rounds == [1, 2, 3, 4, 5, 6]


def test_a_resumed_run_trains_its_ablations_from_the_start(tmp_path: Path) -> None:
    whole = fedemb.train([*GRAPH, SHARED, "baselines=[]"], tmp_path / "whole")
    fedemb.train([*GRAPH, "baselines=[]", "rounds=2", "checkpoint_every=2"], tmp_path / "first")
    resume = f"resume={tmp_path / 'first'}"
    rest = fedemb.train([*GRAPH, SHARED, "baselines=[]", resume], tmp_path / "rest")
    assert rest.summary["metrics"] == whole.summary["metrics"]
    assert rest.summary["baselines"] == whole.summary["baselines"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            '+ablations.flat=["task.dimension=3"]',
            r"^ablations\.flat: task\.dimension is not a setting here.*dim",
        ),
        ('+ablations.flat=["task.dim=three"]', r"^ablations\.flat: .*'three'"),
        ('+ablations.flat=["cohort=everybody"]', r"^ablations\.flat: cohort must be one of .*'everybody'"),
        ('+ablations.flat=["rounds=0"]', r"^ablations\.flat: rounds must be at least 1, got 0"),
        ('+ablations.flat=["task.dim=7"]', r"^ablations\.flat: task\.dim must be even"),
        (
            '+ablations.flat=["task=factorization"]',
            r"^ablations\.flat: task\.relations is not a setting of the chosen task",
        ),
        ('+ablations.federated=["task.dim=4"]', r"^ablations must have names of their own, got 'federated'"),
        (
            '+ablations.local_only=["task.dim=4"]',
            r"^ablations must have names of their own, got 'local_only'",
        ),
        (
            '+ablations.popularity=["task.dim=4"]',
            r"^ablations must have names of their own, got 'popularity'",
        ),
        ("+ablations.flat=task.dim", r"^ablations\.flat must be a list"),
        (
            'ablations.flat=["task.dim=4"]',
            r"ablations are added one by one, quoted within, as in '\+ablations",
        ),
    ],
)
def test_wrong_ablations_are_refused_before_anything_is_trained(
    override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message) as error:
        fedemb.train([*GRAPH, "baselines=[]", override], tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "metrics.jsonl").is_file()
