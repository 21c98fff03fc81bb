"""Runs with a claim: what their summary says, budgets that stop them, and books that survive a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fedemb
from fedemb.errors import RunError
from fedemb.privacy.gaussian_mechanism import gaussian_epsilon
from fedemb.privacy.history import load_history

ITEMS = [
    "data=synthetic", "data.num_clients=30", "data.num_items=40", "data.examples_per_client=12", "task=skipgram",
    "task.dim=4", "rounds=6", "baselines=[]", "privacy.clip_norm=0.5",
]  # fmt: skip
CENTRAL = [*ITEMS, "privacy=client_central", "privacy.noise_multiplier=1.5"]
EXAMPLE = [*ITEMS, "privacy=example", "privacy.noise_multiplier=1.5", "train.batch_size=8"]


def table(run: fedemb.Run) -> np.ndarray:
    return np.asarray(run.table("item")[1])


@pytest.mark.parametrize(
    ("mode", "unit", "trusted"),
    [
        (["privacy=client_central"], "client", "the server, which is trusted"),
        (["privacy=client_distributed", "aggregate=secure"], "client", "the server included, who sees sums"),
        (["privacy=local"], "client", "the server included, who sees every update"),
        (["privacy=example"], "example", "the server included, who sees every update"),
    ],
)
def test_the_summary_says_what_is_claimed(mode: list[str], unit: str, trusted: str, tmp_path: Path) -> None:
    private = ["privacy.target_epsilon=4", "privacy.metrics=none"]
    run = fedemb.train([*ITEMS, *mode, *private], tmp_path / "run")
    found = run.summary["privacy"]
    assert found["unit"] == unit
    assert 3.9 < found["epsilon"] <= 4
    assert found["delta"] == 1e-5
    assert found["clip_norm"] == 0.5
    assert found["noise_multiplier"] > 0.5
    assert trusted in found["adversary"]
    for name in ("mechanism", "sampling", "neighbours", "universe", "accountant"):
        assert found[name]
    assert found["noise_is_reproducible"] is False
    masked = mode[0] != "privacy=client_distributed"
    assert found["private"] is masked  # a real server would see each client's integers
    assert ("not_private_because" in found) is not masked
    assert "metrics" not in run.summary
    assert "data" not in run.summary
    assert run.vocabularies["item"].counts is None
    assert run.summary["work"]["examples"] == 0
    assert all(line["loss"] is None for line in run.metrics)
    assert (table(run) != 0).all()


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (["privacy.seeded_noise=true"], "reproduced from the seed"),
        (["privacy.metrics=raw"], "reported without noise"),
        (["privacy.metrics=raw", "baselines=[local_only]"], "local_only"),
        (["privacy.noise_multiplier=0"], "no noise"),
        (["checkpoint_every=2"], "checkpoint/"),
        (["privacy=client_distributed", "aggregate=secure"], "masks"),
    ],
)
def test_it_says_what_keeps_the_folder_from_being_private(
    setting: list[str], reason: str, tmp_path: Path
) -> None:
    found = fedemb.train([*CENTRAL, "privacy.metrics=none", *setting], tmp_path / "run").summary["privacy"]
    assert found["private"] is False
    assert any(reason in text for text in found["not_private_because"])


def test_noise_is_new_each_time_unless_it_is_seeded(tmp_path: Path) -> None:
    one, other = (table(fedemb.train(CENTRAL, tmp_path / name)) for name in ("a", "b"))
    assert not np.isclose(one, other).any()
    seeded = [*CENTRAL, "privacy.seeded_noise=true"]
    assert np.array_equal(
        table(fedemb.train(seeded, tmp_path / "c")), table(fedemb.train(seeded, tmp_path / "d"))
    )


def test_secret_cohorts_differ_from_run_to_run(tmp_path: Path) -> None:
    poisson = [*CENTRAL, "cohort=poisson", "cohort.rate=0.5"]
    cohorts = [
        [line["client_updates"] for line in fedemb.train(poisson, tmp_path / str(n)).metrics]
        for n in range(3)
    ]
    assert len({tuple(sizes) for sizes in cohorts}) > 1


def test_a_budget_stops_a_run_before_it_is_exceeded(tmp_path: Path) -> None:
    budget = gaussian_epsilon(4**0.5 / 1.5, 1e-5) + 0.01  # of four rounds
    run = fedemb.train([*CENTRAL, f"privacy.budget={budget}"], tmp_path / "run")
    assert run.summary["work"]["rounds"] == 4
    assert run.summary["privacy"]["stopped_before_round"] == 5
    assert run.summary["privacy"]["epsilon"] == pytest.approx(budget - 0.01)
    assert [line["round"] for line in run.metrics] == [1, 2, 3, 4]
    assert run.summary["metrics"]  # the model as it stands was measured
    with pytest.raises(RunError, match=r"round 1 would bring epsilon to .* above the budget of 0\.1"):
        fedemb.train([*CENTRAL, "privacy.budget=0.1"], tmp_path / "none")


def test_a_budget_of_examples_stops_the_run(tmp_path: Path) -> None:
    whole = fedemb.train(EXAMPLE, tmp_path / "whole").summary["privacy"]["epsilon"]
    run = fedemb.train([*EXAMPLE, f"privacy.budget={0.8 * whole}"], tmp_path / "run")
    assert 1 <= run.summary["work"]["rounds"] < 6
    assert run.summary["privacy"]["epsilon"] <= 0.8 * whole
    history = load_history(tmp_path / "run" / "privacy" / "clients-0-30.safetensors")
    assert history.spent(1e-5, "pld") == pytest.approx(run.summary["privacy"]["epsilon"])


@pytest.mark.parametrize(
    "overrides",
    [
        CENTRAL,
        [*CENTRAL, "privacy.adaptive_clip.quantile=0.5"],
        [*CENTRAL, "privacy.bands=3", "cohort=turns", "cohort.size=10"],
        [
            *CENTRAL,
            "privacy.universe=select",
            "privacy.selection.noise_multiplier=0.2",
            "privacy.selection.most_rows=8",
        ],
        EXAMPLE,
    ],
    ids=["central", "adaptive", "correlated", "chosen-rows", "example"],
)
def test_resumed_equals_uninterrupted(overrides: list[str], tmp_path: Path) -> None:
    seeded = [*overrides, "privacy.seeded_noise=true", "checkpoint_every=1"]
    whole = fedemb.train(seeded, tmp_path / "whole")
    fedemb.train([*seeded, "rounds=3"], tmp_path / "first")
    again = fedemb.train([*seeded, f"resume={tmp_path / 'first'}"], tmp_path / "second")
    np.testing.assert_allclose(table(again), table(whole), rtol=1e-6, atol=1e-9)
    assert again.summary["privacy"]["epsilon"] == pytest.approx(whole.summary["privacy"]["epsilon"])


def test_a_killed_run_pays_for_rounds_that_it_runs_twice(tmp_path: Path) -> None:
    """Killed -9 between checkpoints: the same command goes on, and the ledger knows of both."""
    folder = tmp_path / "run"
    settings = [*CENTRAL, "rounds=4000", "checkpoint_every=500", "resume=auto", f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "fedemb", "train", *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not any((folder / "checkpoint").glob("round-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (before,) = json.loads((folder / "privacy" / "ledger.json").read_text())["segments"]
    kept = max(int(path.stem.split("-")[1]) for path in (folder / "checkpoint").glob("round-*.safetensors"))
    assert before["last"] > kept
    run = fedemb.train([*(t for t in settings if "hydra" not in t), f"rounds={kept + 3}"], folder)
    segments = json.loads((folder / "privacy" / "ledger.json").read_text())["segments"]
    assert segments == [before, {"first": kept + 1, "last": kept + 3, "noise_multiplier": 1.5}]
    spent = gaussian_epsilon((before["last"] + 3) ** 0.5 / 1.5, 1e-5)
    assert run.summary["privacy"]["epsilon"] == pytest.approx(spent)


def test_examples_pay_for_rounds_that_are_run_twice(tmp_path: Path) -> None:
    fedemb.train([*EXAMPLE, "checkpoint_every=2", "rounds=5"], tmp_path / "first")
    for path in (tmp_path / "first" / "checkpoint").glob("round-000005*"):
        path.unlink()
    again = fedemb.train([*EXAMPLE, f"resume={tmp_path / 'first'}", "rounds=5"], tmp_path / "second")
    history = load_history(tmp_path / "second" / "privacy" / "clients-0-30.safetensors")
    held = np.unique(history.client)
    assert history.epochs.tolist() == [6] * len(held)  # five rounds, and the fifth again
    assert again.summary["privacy"]["epsilon"] == pytest.approx(history.spent(1e-5, "pld"))


def test_a_killed_run_that_begins_anew_in_its_folder_remembers(tmp_path: Path) -> None:
    fedemb.train([*CENTRAL, "rounds=2"], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    again = fedemb.train([*CENTRAL, "rounds=3"], tmp_path / "run")
    assert again.summary["privacy"]["epsilon"] == pytest.approx(gaussian_epsilon(5**0.5 / 1.5, 1e-5))


def test_an_empty_cohort_is_a_round_of_noise(tmp_path: Path) -> None:
    run = fedemb.train([*CENTRAL, "cohort=poisson", "cohort.rate=1e-9"], tmp_path / "run")
    assert run.summary["work"]["client_updates"] == 0
    assert (table(run) != 0).all()
    assert len(run.metrics) == 6


def test_a_chosen_universe_stays_and_is_paid_for(tmp_path: Path) -> None:
    chosen = [
        "privacy.universe=select",
        "privacy.selection.noise_multiplier=0.2",
        "privacy.selection.most_rows=8",
    ]
    run = fedemb.train([*CENTRAL, *chosen], tmp_path / "run")
    start = fedemb.train(
        [*ITEMS[:-2], "rounds=1", "train.learning_rate=1e-30", "baselines=[]"], tmp_path / "start"
    )
    moved = (np.abs(table(run) - table(start)) > 1e-6).all(1)
    assert 0 < moved.sum() < 40
    plain = fedemb.train(CENTRAL, tmp_path / "plain").summary["privacy"]["epsilon"]
    assert run.summary["privacy"]["epsilon"] > plain
    assert "paid for" in run.summary["privacy"]["universe"]
    (tmp_path / "run" / "summary.json").unlink()  # killed before a checkpoint, it chooses again
    again = fedemb.train([*CENTRAL, *chosen, "rounds=1"], tmp_path / "run")
    assert json.loads((tmp_path / "run" / "privacy" / "ledger.json").read_text())["choices"] == 2
    cost = gaussian_epsilon((7 / 1.5**2 + 2 / 0.2**2) ** 0.5, 1e-5 - 2e-6)
    assert again.summary["privacy"]["epsilon"] == pytest.approx(cost)
    silent = fedemb.train([*CENTRAL, *chosen, "privacy.metrics=none"], tmp_path / "silent")
    named = [not name.startswith("unreleased/") for name in silent.table("item")[0]]
    assert 0 < sum(named) < 40
