"""``flwr run`` on a real SuperLink with two SuperNodes gives the tables of the in-process run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import fedemb
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


@pytest.mark.slow
def test_deployed_run_equals_in_process(tmp_path: Path) -> None:
    folder = tmp_path / "deployed"
    overrides = " ".join([*OVERRIDES, "runner=deployment", "runner.num_nodes=2"])
    with federation(tmp_path, 2) as env:
        run_config = f'overrides="{overrides}" folder="{folder}"'
        command = [str(BIN / "flwr"), "run", str(PROJECT), "test", "--run-config", run_config, "--stream"]
        done = subprocess.run(command, env=env, check=False, timeout=400, capture_output=True, text=True)
    assert (folder / "report.html").is_file(), done.stdout + done.stderr
    deployed, ours = fedemb.load(folder), fedemb.train(OVERRIDES, folder=tmp_path / "here")
    assert deployed.tables == ours.tables
    names, matrix = deployed.table("node")
    own_names, own = ours.table("node")
    assert names == own_names
    assert np.linalg.norm(matrix - own) <= 1e-6 * np.linalg.norm(own)
    assert deployed.summary["work"]["client_updates"] == ours.summary["work"]["client_updates"] == 14
    assert deployed.summary["metrics"] == pytest.approx(ours.summary["metrics"])
