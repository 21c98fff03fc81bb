"""What a server sees of one client: nearly everything without protection, next to nothing under noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedemb
from fedemb.cli import main
from fedemb.run.leakage import leakage
from tests.gallery import gallery_overrides
from tests.graphs import graph_files

ITEMS = [
    "data=synthetic", "data.num_clients=30", "data.num_items=80", "data.examples_per_client=12", "task.dim=4",
    "rounds=2", "baselines=[]", "train.epochs=2",
]  # fmt: skip
NOISE = [
    "privacy.noise_multiplier=4", "privacy.clip_norm=0.1", "server.learning_rate=0.01", "train.learning_rate=5",
    "privacy.seeded_noise=true",
]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "seen"),
    [
        (["privacy=local"], "own update, with its noise"),
        (["privacy=example", "train.batch_size=4"], "trained under noise"),
        (["privacy=client_distributed", "aggregate=secure"], "the noisy sum of"),
    ],
)
def test_noise_hides_rows_and_examples(mode: list[str], seen: str, tmp_path: Path) -> None:
    fedemb.train([*ITEMS, "task=skipgram", *mode, *NOISE], tmp_path / "run")
    found = leakage(tmp_path / "run", 12, 0)
    assert seen in found["protected"].seen
    assert found["without"].rows_auc > 0.9
    assert found["without"].members_auc > 0.58
    assert abs(found["protected"].rows_auc - 0.5) < 0.15
    assert abs(found["protected"].members_auc - 0.5) < min(0.15, found["without"].members_auc - 0.5)


def test_a_trusted_server_sees_what_it_saw(tmp_path: Path) -> None:
    fedemb.train([*ITEMS, "task=skipgram", "privacy=client_central", *NOISE], tmp_path / "run")
    found = leakage(tmp_path / "run", 12, 0)
    assert "trusted" in found["protected"].seen
    assert found["protected"].rows_auc == pytest.approx(found["without"].rows_auc, abs=0.02)


@pytest.mark.parametrize(
    "overrides",
    [
        [*ITEMS, "task=factorization"],
        [*gallery_overrides(), "task.dim=8", "task.hidden=4", "rounds=2", "baselines=[]"],
        ["data=triples", f"data.path={graph_files()}", "partition=natural", "task=knowledge_graph", "task.dim=8",
         "rounds=2", "baselines=[]"],
    ],
    ids=["personal-rows", "dense-parameters", "listwise"],
)  # fmt: skip
def test_every_kind_of_task_can_be_attacked(overrides: list[str], tmp_path: Path) -> None:
    fedemb.train(overrides, tmp_path / "run")
    found = leakage(tmp_path / "run", 6, 0)
    assert list(found) == ["without"]
    assert 0.5 < found["without"].members_auc <= 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    fedemb.train([*ITEMS, "task=skipgram", "privacy=local", *NOISE], folder)
    assert main(["audit", str(folder), "--leakage", "clients=5"]) == 0
    shown = capsys.readouterr().out
    assert "which rows the client holds: AUC" in shown
    assert set(json.loads((folder / "leakage.json").read_text())) == {"protected", "without"}
    for wrong, words in (
        (["audit", str(folder), "canaries=3"], "canaries must be a whole number, at least 100"),
        (["audit", str(folder), "canares=300"], "did you mean canaries?"),
        (["audit", str(tmp_path / "nothing")], "must be a run folder"),
        (["audit", "canaries=300"], "needs a run folder before its settings"),
    ):
        assert main(wrong) == 2
        assert words in capsys.readouterr().err
    open_run = tmp_path / "open"
    fedemb.train([*ITEMS, "task=skipgram"], open_run)
    assert main(["audit", str(open_run)]) == 2
    assert "got privacy=none" in capsys.readouterr().err
