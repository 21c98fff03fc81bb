"""``flwr run`` on a real SuperLink with two SuperNodes gives the tables of the in-process run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import fedemb
from fedemb.privacy.history import load_history
from tests.run.deploy import BIN, federation

PROJECT = Path(__file__).resolve().parents[2]
OVERRIDES = [
    "rounds=2",
    "task.dim=3",
    "task.negatives=4",
    "partition.num_clients=7",
    "baselines=[]",
    "evaluate_every=0",
]


PRIVATE = [
    *OVERRIDES, "privacy=example", "privacy.noise_multiplier=0.5", "privacy.metrics=none", "privacy.seeded_noise=true",
    "train.batch_size=32",
]  # fmt: skip


def deployed_run(overrides: list[str], tmp_path: Path) -> fedemb.Run:
    """The run of two SuperNodes on a SuperLink of their own."""
    folder = tmp_path / "deployed"
    text = " ".join([*overrides, "runner=deployment", "runner.num_nodes=2"])
    with federation(tmp_path, 2) as env:
        run_config = f'overrides="{text}" folder="{folder}"'
        command = [str(BIN / "flwr"), "run", str(PROJECT), "test", "--run-config", run_config, "--stream"]
        done = subprocess.run(command, env=env, check=False, timeout=400, capture_output=True, text=True)
    assert (folder / "report.html").is_file(), done.stdout + done.stderr
    return fedemb.load(folder)


@pytest.mark.slow
def test_deployed_clients_keep_their_own_books(tmp_path: Path) -> None:
    deployed, ours = deployed_run(PRIVATE, tmp_path), fedemb.train(PRIVATE, folder=tmp_path / "here")
    matrix, own = (np.asarray(run.table("node")[1]) for run in (deployed, ours))
    assert np.linalg.norm(matrix - own) <= 1e-6 * np.linalg.norm(own)
    files = sorted(
        (tmp_path / "deployed" / "privacy").glob("clients-*.safetensors")
    )  # each node writes its own
    assert len(files) == 2
    spent = [load_history(path).spent(1e-5, "pld") for path in files]
    assert max(spent) == pytest.approx(deployed.summary["privacy"]["epsilon"])
    assert deployed.summary["privacy"]["epsilon"] == pytest.approx(ours.summary["privacy"]["epsilon"])


@pytest.mark.slow
def test_deployed_run_equals_in_process(tmp_path: Path) -> None:
    deployed, ours = deployed_run(OVERRIDES, tmp_path), fedemb.train(OVERRIDES, folder=tmp_path / "here")
    assert deployed.tables == ours.tables
    names, matrix = deployed.table("node")
    own_names, own = ours.table("node")
    assert names == own_names
    assert np.linalg.norm(matrix - own) <= 1e-6 * np.linalg.norm(own)
    assert deployed.summary["work"]["client_updates"] == ours.summary["work"]["client_updates"] == 14
    assert deployed.summary["metrics"] == pytest.approx(ours.summary["metrics"])
