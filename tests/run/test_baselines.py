"""Baselines: pooled training is a federation of one; local-only is every client by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedemb.build import build
from fedemb.config import compose_config
from fedemb.run.baselines import centralized, local_only, participations
from fedemb.train.personal import personal_rows, rows_of
from tests.flower.test_strategy import SMALL, run

INTERACTIONS = [
    "data=synthetic", "data.num_clients=9", "data.num_items=40", "data.examples_per_client=8", "data.spread=0.5",
    "task=factorization", "task.dim=6", "rounds=4", "cohort=full", "train.epochs=1", "train.optimizer=sgd",
]  # fmt: skip


def quiet(line: object) -> None:
    """Nobody is told."""


def test_centralized_is_a_federation_of_one_client(tmp_path: Path) -> None:
    one_client = ["data.num_clients=1", "data.examples_per_client=80", "server.optimizer=sgd"]
    overrides = [*SMALL, *one_client, "server.learning_rate=1.0", "aggregate.rows=uniform"]
    parts = build(compose_config([*overrides, "baselines=[]"]))
    federated = run(overrides, tmp_path)
    _, tables = centralized(parts, parts.training, 3, 0, quiet)
    torch.testing.assert_close(tables["node"], federated.tables["node"], rtol=1e-7, atol=1e-10)


def test_local_only_is_each_client_alone() -> None:
    parts = build(compose_config([*INTERACTIONS, "baselines=[]"]))
    found = local_only(parts, parts.training, 4, quiet)
    assert found is not None
    assert parts.evaluation is not None
    for client in range(9):
        tables, _ = parts.initial()
        personal = personal_rows(parts.task.tables, 0, 9)
        shard = parts.task.examples(parts.dataset.train.take(np.array([client])))
        alone = np.array([client])
        from fedemb.train.rows import train_cohort

        for number in range(1, 5):
            for updates in train_cohort(
                parts.task, tables, {}, personal, shard, alone, parts.training, 0, number
            ):
                for name, rows in updates.tables.items():
                    tables[name][rows.rows] += rows.values
        expected = parts.evaluation(tables, rows_of(personal, alone, 0), alone)
        for name, values in expected.per_client.items():
            np.testing.assert_allclose(found.per_client[name][client], values[0], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("cohort", "expected"),
    [(["cohort=full"], 10), (["cohort=uniform", "cohort.size=3"], 3), (["cohort=poisson"], 1)],
)
def test_the_budget_of_a_baseline_is_a_clients_own(cohort: list[str], expected: int) -> None:
    parts = build(compose_config([*INTERACTIONS, *cohort, "baselines=[]", "data.num_clients=9"]))
    eligible = int((parts.dataset.train.sizes > 0).sum())
    rounds = 10 * eligible // 9 if expected == 3 else 10
    assert participations(parts, rounds) == expected
