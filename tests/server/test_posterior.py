"""The prior counts once, however many clients and rounds there are: against the posterior that is known exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from fedemb.aggregate.plain import Plain
from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.gaussian import Gaussian, split
from fedemb.server.optimizers import RowOptimizer, Settings
from fedemb.server.posterior import Posterior, check_evidence
from fedemb.train.initial import initial_table
from fedemb.train.optimizers import SGD, Adam
from fedemb.train.rows import LocalTraining, concatenate, train_cohort
from fedemb.types import Batch, Dense, Exclusion, Table

SPACE = Gaussian(0.5, dtype=torch.float64)
TRAINING = LocalTraining(SGD(), 1, 0, 1.0, reduction="sum")


@dataclass(frozen=True)
class Measured:
    """Noisy readings of what a row is: ``reading ~ N(row, 1)``. Its posterior is Gaussian and known."""

    tables: tuple[Table, ...] = (Table("item", 6, 2, SPACE, 0.0),)
    dense: tuple[Dense, ...] = ()
    num_draws: int = 0
    exclusion: Exclusion | None = None

    def examples(self, shards: Shards) -> Shards:
        return shards

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        return batch

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        return {"item": batch["item"][:, None]}

    def loss(self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch) -> Tensor:
        mean, precision = split(vectors["item"][:, 0])
        return (((batch["reading"][:, None] - mean).square() + 1 / precision) / 2).sum(1)


def readings(num_clients: int = 5) -> Shards:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, num_clients)
    items = rng.integers(0, 5, sizes.sum())  # nobody has seen the last item
    columns = {"item": items, "reading": rng.normal(3.0, 1.0, sizes.sum())}
    return Shards(columns, np.concatenate(([0], np.cumsum(sizes))))


def exact(shards: Shards) -> Tensor:
    count = np.bincount(shards.columns["item"], minlength=6)
    total = np.bincount(shards.columns["item"], shards.columns["reading"], minlength=6)
    precision = 0.5 + count
    return torch.from_numpy(np.stack((total / precision, precision), 1))


def learnt(
    shards: Shards,
    rounds: int,
    settings: Settings | None = None,
    rule: str = "sgd",
    batch_size: int = 0,
    cohort: int | None = None,
) -> Tensor:
    task, settings = Measured(), settings or Settings()
    training = LocalTraining(SGD(), 1, batch_size, 1.0, reduction="sum")
    tables = {"item": initial_table(task.tables[0], 0)}
    everybody = np.arange(shards.num_clients, dtype=np.int64)
    items = shards.columns["item"]
    held = [len({c for c, i in zip(shards.owners(), items, strict=True) if i == row}) for row in range(6)]
    rows = "sum" if cohort is None else "population"
    aggregator = Plain(task.tables, rows, holders={"item": torch.tensor(held)}, num_clients=len(everybody))
    server = Posterior(RowOptimizer(task.tables, rule, settings), task.tables)
    rng = np.random.default_rng(1)
    history = []
    for number in range(1, rounds + 1):
        asked = everybody if cohort is None else np.sort(rng.choice(everybody, cohort, replace=False))
        parts = list(train_cohort(task, tables, {}, {}, shards.take(asked), asked, training, 0, number))
        aggregator.add(concatenate(parts), tables)
        server.step(tables, {}, aggregator.finish(tables))
        history.append(tables["item"].clone())
    return torch.stack(history[len(history) // 2 :]).mean(0) if cohort else tables["item"]


@pytest.mark.parametrize("rounds", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [0, 2])
def test_the_posterior_is_exact_after_any_number_of_rounds(rounds: int, batch_size: int) -> None:
    shards = readings()
    found = learnt(shards, rounds, batch_size=batch_size if rounds == 1 else 0)
    torch.testing.assert_close(found, exact(shards))


def test_clients_do_not_matter_only_what_they_saw() -> None:
    shards = readings()
    torch.testing.assert_close(learnt(shards, 3), learnt(shards.pooled(), 3))


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adagrad", "adam"])
def test_every_rule_and_damping_lead_to_the_same_posterior(rule: str) -> None:
    shards = readings()
    rate = {"adagrad": 2.0, "adam": 0.05, "momentum": 0.1}.get(rule, 1.0)
    found = learnt(shards, 500, Settings(learning_rate=rate, damping=0.3), rule)
    torch.testing.assert_close(found, exact(shards), rtol=0.01, atol=0.02)


def test_sampled_cohorts_stand_for_everybody() -> None:
    """Of 40 clients 20 are asked each time: on average the rows are the posterior of all 40."""
    shards = readings(40)
    found = learnt(shards, 400, Settings(learning_rate=0.05, damping=0.05), cohort=20)
    torch.testing.assert_close(found, exact(shards), rtol=0.05, atol=0.05)


def test_without_the_prior_evidence_is_counted_in_every_round() -> None:
    """The wrong way: received rows taken for a prior round after round."""
    shards, task = readings(), Measured()
    tables = {"item": initial_table(task.tables[0], 0)}
    aggregator, server = Plain(task.tables, "sum"), RowOptimizer(task.tables)
    everybody = np.arange(shards.num_clients, dtype=np.int64)
    for number in (1, 2, 3):
        parts = list(train_cohort(task, tables, {}, {}, shards, everybody, TRAINING, 0, number))
        aggregator.add(concatenate(parts), tables)
        server.step(tables, {}, aggregator.finish(tables))
    count = exact(shards)[:, 1] - 0.5
    torch.testing.assert_close(tables["item"][:, 1], 0.5 + 3 * count)


def test_what_nobody_saw_stays_at_the_prior() -> None:
    assert learnt(readings(), 4)[5].tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("change", "rows", "weights", "sampled", "message"),
    [
        ({"epochs": 2}, "sum", "uniform", False, r"train\.epochs must be 1 for Gaussian rows"),
        ({"reduction": "mean"}, "sum", "uniform", False, r"train\.reduction must be sum .* got mean"),
        ({"learning_rate": 0.1}, "sum", "uniform", False, r"train\.learning_rate must be 1"),
        ({"share": 0.5}, "sum", "uniform", False, r"train\.share must be 1 for"),
        ({"decay": 0.9}, "sum", "uniform", False, r"train\.decay must be 1"),
        ({"burn_in_rounds": 3}, "sum", "uniform", False, r"train\.burn_in_rounds must be 0"),
        ({"optimizer": Adam()}, "sum", "uniform", False, r"train\.optimizer must be sgd"),
        ({}, "sum", "capped", False, r"aggregate\.weights must be uniform .* got capped"),
        ({}, "sum", "uniform", True, r"aggregate\.rows must be population"),
    ],
)
def test_what_would_count_evidence_wrongly_is_refused(
    change: dict[str, object], rows: str, weights: str, sampled: bool, message: str
) -> None:
    settings = {"optimizer": SGD(), "epochs": 1, "batch_size": 0, "learning_rate": 1.0, "reduction": "sum"}
    training = LocalTraining(**{**settings, **change})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=message):
        check_evidence(training, rows, weights, sampled)
    check_evidence(TRAINING, "population", "uniform", True)
    check_evidence(TRAINING, "fedavg", "examples", True)
