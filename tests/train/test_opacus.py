"""Opacus, one client after another, against the cohort trainer: the same updates, and the same noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fedemb.privacy.noise import Noise
from fedemb.train.epochs import examples_of
from fedemb.train.initial import initial_dense, initial_table
from fedemb.train.opacus import train_with_opacus
from fedemb.train.optimizers import Adagrad
from fedemb.train.personal import PersonalRows, personal_rows
from fedemb.train.poisson import poisson_epoch
from fedemb.train.rows import LocalTraining, concatenate, train_cohort
from fedemb.types import Dataset, Task, Updates
from tests.train.test_private import ROUND, SEED, exact, made, private_tasks, training


def both(task: Task, data: Dataset, settings: LocalTraining, clients: np.ndarray) -> tuple[Any, Any]:
    """Updates and personal rows by Opacus, and by the cohort trainer."""
    found = []
    for trainer in (train_with_opacus, lambda *a: concatenate(list(train_cohort(*a)))):
        tables = {t.name: initial_table(t, SEED) for t in task.tables if t.shared}
        dense = {d.name: initial_dense(d, SEED) + 0.1 for d in task.dense}
        personal = personal_rows(task.tables, 0, data.train.num_clients)
        own = task.examples(data.train).take(clients)
        updates: Updates = trainer(task, tables, dense, personal, own, clients, settings, SEED, ROUND)
        found.append((updates, personal))
    return found[0], found[1]


def compared(
    first: tuple[Updates, dict[str, PersonalRows]], second: tuple[Updates, dict[str, PersonalRows]]
) -> None:
    (one, own), (other, others) = first, second
    assert one.tables.keys() == other.tables.keys()
    for name, rows in one.tables.items():
        assert torch.equal(rows.rows, other.tables[name].rows)
        assert torch.equal(rows.offsets, other.tables[name].offsets)
        assert torch.equal(rows.counts, other.tables[name].counts)
        torch.testing.assert_close(rows.values, other.tables[name].values, rtol=1e-5, atol=1e-5)
    for name, value in one.dense.items():
        torch.testing.assert_close(value, other.dense[name], rtol=1e-5, atol=1e-5)
    for name, kept in own.items():
        torch.testing.assert_close(kept.points, others[name].points, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.metrics["examples"], other.metrics["examples"])
    torch.testing.assert_close(one.metrics["loss"], other.metrics["loss"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", private_tasks())
def test_without_noise_it_is_the_cohort_trainer(name: str) -> None:
    task, data = exact(name)
    summed = "sum" if name.startswith("gaussian") else "mean"
    settings = training(clip_norm=0.2, reduction=summed, learning_rate=0.05, dense_learning_rate=0.02)
    clients = np.flatnonzero(task.examples(data.train).sizes > 0)[:3]
    compared(*both(task, data, settings, clients))


@pytest.mark.parametrize("name", ["bpr", "attention", "poincare", "lorentz", "gaussian-links", "complex-all"])
def test_clipping_bites_in_that_comparison(name: str) -> None:
    task, data = exact(name)
    clients = np.flatnonzero(task.examples(data.train).sizes > 0)[:3]
    bounded, free = (
        both(task, data, training(clip_norm=c, learning_rate=0.05), clients)[0][0] for c in (0.2, 1e9)
    )
    assert any(
        not torch.allclose(r.values, free.tables[n].values, rtol=0.05) for n, r in bounded.tables.items()
    )


def test_rows_outside_the_universe_stay() -> None:
    task, data = exact("skipgram")
    universe = {t.name: torch.arange(t.num_rows) % 3 != 0 for t in task.tables}
    first, second = both(task, data, training(clip_norm=0.02, universe=universe), np.arange(3))
    compared(first, second)
    for name, rows in first[0].tables.items():
        assert not rows.values[~universe[name].repeat(3)].any()


def test_a_batch_without_examples_is_a_step_of_noise() -> None:
    task, data = made("skipgram")
    settings = training(noise=1.0, batch_size=1, epochs=1)
    own = task.examples(data.train).take(np.array([1]))
    epoch = poisson_epoch(task, examples_of(task, own, np.array([1])), 1, SEED, SEED, ROUND, 0, np.array([1]))
    assert (np.diff(epoch.steps) == 0).any()
    (updates, _), _ = both(task, data, settings, np.array([1]))
    assert all((rows.values != 0).all() for rows in updates.tables.values())


class _FixedCoins(Noise):
    """Noise of its own, and the coins of the others."""

    def coins(self, seed: int) -> int:
        return SEED


@pytest.mark.parametrize(("name", "batch_size"), [("skipgram", 0), ("skipgram", 6), ("with-dense", 6)])
def test_with_noise_means_and_variances_agree(name: str, batch_size: int) -> None:
    """Over repeats: a deviation that is off by a twentieth fails, and a mean that is off by five errors."""
    task, data = made("attention" if name == "with-dense" else name)
    settings = training(noise=0.8, clip_norm=0.3, batch_size=batch_size, epochs=1, learning_rate=0.5)
    found: dict[str, list[np.ndarray]] = {"opacus": [], "cohort": []}
    repeats = 150
    assert settings.privacy is not None
    for repeat in range(repeats):
        chosen = replace(settings, privacy=replace(settings.privacy, noise=_FixedCoins(500 + repeat)))
        for where, (updates, _) in zip(found, both(task, data, chosen, np.array([1])), strict=True):
            values = [rows.values.double().numpy().ravel() for rows in updates.tables.values()]
            values += [value.double().numpy().ravel() for value in updates.dense.values()]
            found[where].append(np.concatenate(values))
    one, other = np.stack(found["opacus"]), np.stack(found["cohort"])
    ratio = one.var(0, ddof=1).mean() / other.var(0, ddof=1).mean()
    assert abs(ratio - 1) < 0.05  # of hundreds of values, each with an error of sqrt(4 / repeats)
    each = one.var(0, ddof=1) / other.var(0, ddof=1)
    assert stats.f.sf(each, repeats - 1, repeats - 1).min() > 1e-7
    assert stats.f.cdf(each, repeats - 1, repeats - 1).min() > 1e-7
    error = np.sqrt((one.var(0) + other.var(0)) / repeats)
    assert (np.abs(one.mean(0) - other.mean(0)) / error).max() < 5


def test_what_it_cannot_do_is_refused() -> None:
    task, data = made("skipgram")
    with pytest.raises(ValueError, match=r"train\.optimizer=sgd"):
        both(task, data, training(optimizer=Adagrad()), np.array([1]))
    with pytest.raises(ValueError, match=r"settings\.privacy"):
        both(task, data, replace(training(), privacy=None), np.array([1]))
