"""DP-SGD of a cohort against a slow and obvious one, and its noise against the noise that was promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.manifolds import Euclidean
from fedemb.privacy.noise import Noise
from fedemb.seeds import stream_keys
from fedemb.train.candidates import candidate_tables
from fedemb.train.epochs import examples_of
from fedemb.train.initial import initial_dense, initial_table
from fedemb.train.optimizers import SGD, Adagrad, Adam
from fedemb.train.personal import PersonalRows, personal_rows
from fedemb.train.poisson import Sampling, poisson_epoch, poisson_lines
from fedemb.train.private import ExamplePrivacy, squared_norms
from fedemb.train.rows import LocalTraining, concatenate, train_cohort
from fedemb.types import Candidates, Dataset, Task, Updates
from tests.contract.test_tasks import TASKS
from tests.train.test_rows import Double

SEED, ROUND = 5, 3


def alone(task: Task) -> Task:
    """The task with losses that depend on no other example."""
    return replace(task, exclude_known=False) if task.exclusion else task  # type: ignore[type-var]


def private_tasks() -> list[str]:
    """All but those that compare with whatever the client holds."""
    return [name for name in TASKS if name != "complex" and not name.startswith(("transe-l2", "distmult"))]


def made(name: str) -> tuple[Task, Dataset]:
    task, data = TASKS[name]()
    return alone(task), data


def exact(name: str) -> tuple[Task, Dataset]:
    """The same in double precision, where the task's own vectors are not."""
    task, data = made(name)
    return (task if task.dense or name.startswith("gaussian") else Double(task)), data


def training(clip_norm: float = 0.3, noise: float = 0.0, **settings: Any) -> LocalTraining:
    chosen: dict[str, Any] = {
        "optimizer": SGD(),
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.2,
        **settings,
    }
    lazy = chosen.pop("lazy", True)
    universe = chosen.pop("universe", {})
    privacy = ExamplePrivacy(clip_norm, noise, Noise(SEED), universe, lazy)
    return LocalTraining(**chosen, privacy=privacy)


def trained(
    task: Task, shards: Shards, settings: LocalTraining, clients: np.ndarray, seed: int = SEED
) -> tuple[Updates, dict[str, PersonalRows]]:
    tables = {t.name: initial_table(t, seed) for t in task.tables if t.shared}
    dense = {d.name: initial_dense(d, seed) + 0.1 for d in task.dense}
    personal = personal_rows(task.tables, 0, shards.num_clients)
    own = task.examples(shards).take(clients)
    parts = list(train_cohort(task, tables, dense, personal, own, clients, settings, SEED, ROUND))
    return concatenate(parts), personal


def reference(task: Task, shards: Shards, settings: LocalTraining, client: int) -> dict[str, Tensor]:
    """One client, one example at a time, with gradients of whole tables."""
    assert settings.privacy is not None
    tables = {t.name: initial_table(t, SEED) for t in task.tables if t.shared}
    stored = personal_rows(task.tables, 0, shards.num_clients)
    tables |= {name: rows.of(np.array([client]), SEED)[0].clone() for name, rows in stored.items()}
    dense = {d.name: initial_dense(d, SEED) + 0.1 for d in task.dense}
    own, ids = task.examples(shards).take(np.array([client])), np.array([client])
    examples, sizes = examples_of(task, own, ids), own.sizes
    sampling = Sampling.of(sizes, settings.batch_size)
    divisor = 1.0 if settings.reduction == "sum" else float(sampling.expected[0])
    for number in range(settings.epochs):
        epoch = poisson_epoch(task, examples, settings.batch_size, SEED, SEED, ROUND, number, ids)
        for step in range(len(epoch.steps) - 1):
            sums = {name: torch.zeros_like(t) for name, t in tables.items()}
            sums = {
                t.name: torch.zeros(len(tables[t.name]), t.dim, dtype=tables[t.name].dtype)
                for t in task.tables
            }
            dense_sums = {name: torch.zeros_like(value) for name, value in dense.items()}
            for line in range(epoch.steps[step], epoch.steps[step + 1]):
                leaves = {
                    name: value.clone().requires_grad_() for name, value in (*tables.items(), *dense.items())
                }
                batch = {name: column[line : line + 1] for name, column in epoch.columns.items()}
                vectors = {t.name: leaves[t.name][epoch.ids[t.name][line]][None] for t in task.tables}
                copies = {name: leaves[name][None] for name in dense}
                extra = _candidates(task, epoch, step, line, leaves)
                loss = (
                    task.loss(vectors, copies, batch, extra) if extra else task.loss(vectors, copies, batch)
                )
                (loss[0] * epoch.scale[line]).backward()
                frames = {}
                for table in task.tables:
                    gradient, points = leaves[table.name].grad, tables[table.name]
                    gradient = torch.zeros_like(points) if gradient is None else gradient
                    touched = (gradient != 0).any(1)[:, None]
                    space = table.manifold
                    frame = space.to_frame(points, space.riemannian_gradient(points, gradient))
                    frames[table.name] = torch.where(touched, frame, 0.0)
                own_dense = {name: leaves[name].grad for name in dense}
                own_dense = {n: torch.zeros_like(dense[n]) if g is None else g for n, g in own_dense.items()}
                square = sum(g.double().square().sum() for g in (*frames.values(), *own_dense.values()))
                factor = min(1.0, settings.privacy.clip_norm / max(float(square) ** 0.5, 1e-30))
                for name, frame in frames.items():
                    sums[name] += factor * frame
                for name, gradient in own_dense.items():
                    dense_sums[name] += factor * gradient
            for table in task.tables:
                points, space = tables[table.name], table.manifold
                tangent = space.from_frame(points, sums[table.name] * (-settings.learning_rate / divisor))
                tables[table.name] = space.project(space.exp(points, tangent))
            for name in dense:
                dense[name] = dense[name] - settings.learning_rate / divisor * dense_sums[name]
    return {**tables, **dense}


def _candidates(
    task: Task, epoch: Any, step: int, line: int, leaves: Mapping[str, Tensor]
) -> dict[str, Candidates]:
    found = {}
    for table, _ in candidate_tables(task):
        draw = epoch.draws[table.name]
        rows = draw.draw[draw.bounds[step]]
        ids, weight = draw.ids[rows], draw.weight[rows]
        place = torch.full_like(epoch.ids[table.name][line], -1)
        for k, row in enumerate(epoch.ids[table.name][line].tolist()):
            at = torch.nonzero(ids == row).view(-1)
            place[k] = at[0] if len(at) else -1
        points = leaves[table.name][ids][None]
        found[table.name] = Candidates(points, weight[None], torch.zeros(1, dtype=torch.int64), place[None])
    return found


def moved(task: Task, updates: Updates, personal: Mapping[str, PersonalRows], at: int) -> dict[str, Tensor]:
    """Where the client in this place of the cohort has its rows afterwards."""
    client, found = int(updates.clients[at]), {}
    for table in task.tables:
        if not table.shared:
            found[table.name] = personal[table.name].of(np.array([client]), SEED)[0]
            continue
        rows, start = updates.tables[table.name], initial_table(table, SEED)
        own = slice(int(rows.offsets[at]), int(rows.offsets[at + 1]))
        assert torch.equal(rows.rows[own], torch.arange(table.num_rows))  # every row, touched or not
        tangent = table.manifold.from_frame(start, rows.values[own])
        found[table.name] = table.manifold.exp(start, tangent)
    for part in task.dense:
        found[part.name] = initial_dense(part, SEED) + 0.1 + updates.dense[part.name][at]
    return found


@pytest.mark.parametrize("name", private_tasks())
def test_without_noise_it_is_the_obvious_one(name: str) -> None:
    task, data = exact(name)
    settings = training(reduction="sum" if name.startswith("gaussian") else "mean", learning_rate=0.05)
    held = np.flatnonzero(task.examples(data.train).sizes > 0)[:3]
    updates, personal = trained(task, data.train, settings, held)
    for at, client in enumerate(held):
        ours, theirs = moved(task, updates, personal, at), reference(task, data.train, settings, int(client))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value.to(ours[key]), rtol=1e-5, atol=1e-5)


def test_clipping_bites_in_that_comparison() -> None:
    task, data = made("skipgram")
    bounded, _ = trained(task, data.train, training(clip_norm=0.01), np.arange(3))
    free, _ = trained(task, data.train, training(clip_norm=1e9), np.arange(3))
    assert any(
        not torch.allclose(rows.values, free.tables[n].values, rtol=0.05)
        for n, rows in bounded.tables.items()
    )


@pytest.mark.parametrize("name", ["skipgram", "bpr", "attention", "poincare", "listwise"])
@pytest.mark.parametrize("optimizer", [SGD(), Adagrad(), Adam()], ids=lambda one: type(one).__name__)
def test_company_and_chunks_change_nothing(name: str, optimizer: Any) -> None:
    task, data = made(name)
    settings = training(noise=0.7, optimizer=optimizer)
    together, _ = trained(task, data.train, settings, np.arange(4))
    chunked, _ = trained(task, data.train, replace(settings, chunk_bytes=1), np.arange(4))
    for key, rows in together.tables.items():
        torch.testing.assert_close(rows.values, chunked.tables[key].values, rtol=1e-5, atol=1e-6)
    for client in range(4):
        own, _ = trained(task, data.train, settings, np.array([client]))
        for key, rows in together.tables.items():
            part = slice(int(rows.offsets[client]), int(rows.offsets[client + 1]))
            torch.testing.assert_close(own.tables[key].values, rows.values[part], rtol=1e-5, atol=1e-6)
        for key, value in together.dense.items():
            torch.testing.assert_close(own.dense[key][0], value[client], rtol=1e-5, atol=1e-6)


def values_of(task: Task, data: Dataset, settings: LocalTraining, repeats: int) -> np.ndarray:
    """All values of one client's update of the first table, from as many sources of noise ``(repeats, rows, dim)``."""
    name, found = task.tables[0].name, []
    assert settings.privacy is not None
    for repeat in range(repeats):
        privacy = replace(settings.privacy, noise=_FixedCoins(1000 + repeat))
        updates, _ = trained(task, data.train, replace(settings, privacy=privacy), np.array([1]))
        found.append(updates.tables[name].values.double().numpy())
    return np.stack(found)


class _FixedCoins(Noise):
    """Noise of its own, and the coins of the others."""

    def coins(self, seed: int) -> int:
        return seed


def test_owed_noise_has_the_distribution_of_noise_in_every_step() -> None:
    task, data = made("skipgram")
    settings = training(noise=0.8, clip_norm=0.5, learning_rate=0.5, epochs=2)
    lazy = values_of(task, data, settings, 400)
    eager = values_of(task, data, training(noise=0.8, clip_norm=0.5, learning_rate=0.5, lazy=False), 400)
    # Gradients depend on the noise through the rows, so touched rows are compared with rows, not with a formula.
    for row in range(lazy.shape[1]):
        for axis in range(2):
            assert stats.ks_2samp(lazy[:, row, axis], eager[:, row, axis]).pvalue > 1e-4
    np.testing.assert_allclose(lazy.mean(0), eager.mean(0), atol=6 * lazy.std() / np.sqrt(400))
    np.testing.assert_allclose(lazy.std(0), eager.std(0), rtol=0.25)


@pytest.mark.parametrize("lazy", [True, False])
def test_untouched_rows_get_the_noise_of_every_step(lazy: bool) -> None:
    task, data = made("skipgram")
    sizes = task.examples(data.train).sizes
    settings = training(noise=0.8, clip_norm=0.5, learning_rate=0.5, epochs=2, lazy=lazy)
    values = values_of(task, data, settings, 300)
    silent, _ = trained(task, data.train, training(noise=0.0, clip_norm=0.5, epochs=2), np.array([1]))
    untouched = (silent.tables[task.tables[0].name].values == 0).all(1).numpy()
    assert untouched.any()
    sampling = Sampling.of(sizes[1:2], 4)
    steps = 2 * int(sampling.steps[0])
    promised = 0.5 * 0.8 * 0.5 / sampling.expected[0] * np.sqrt(steps)
    found = values[:, untouched] / promised
    assert abs(found.mean()) < 4 / np.sqrt(found.size)
    assert abs(found.std() - 1) < 4 / np.sqrt(2 * found.size)
    assert stats.kstest(found.ravel(), "norm").pvalue > 1e-3


def test_dense_parameters_and_personal_rows_get_noise() -> None:
    for name in ("attention", "bpr"):
        task, data = made(name)
        one, own = trained(task, data.train, training(noise=1.0), np.array([1]))
        silent, still = trained(task, data.train, training(noise=0.0), np.array([1]))
        for key, value in one.dense.items():
            assert not torch.isclose(value, silent.dense[key], rtol=1e-6, atol=0).any()
        for key, rows in own.items():
            assert not torch.isclose(rows.of(np.array([1]), SEED), still[key].of(np.array([1]), SEED)).any()


def test_an_empty_batch_is_a_step_of_noise_alone() -> None:
    task, data = made("skipgram")
    settings = training(noise=1.0, batch_size=1, epochs=1, learning_rate=1.0)
    own = task.examples(data.train).take(np.array([1]))
    epoch = poisson_epoch(task, examples_of(task, own, np.array([1])), 1, SEED, SEED, ROUND, 0, np.array([1]))
    assert (np.diff(epoch.steps) == 0).any()
    for lazy in (True, False):
        assert settings.privacy is not None
        chosen = replace(settings, privacy=replace(settings.privacy, lazy=lazy))
        updates, _ = trained(task, data.train, chosen, np.array([1]))
        assert (updates.tables[task.tables[0].name].values != 0).all()


def test_rows_outside_the_universe_do_not_move() -> None:
    task, data = made("skipgram")
    table = task.tables[0]
    universe = torch.arange(table.num_rows) % 2 == 0
    for lazy in (True, False):
        settings = training(noise=1.0, universe={t.name: universe for t in task.tables}, lazy=lazy)
        updates, _ = trained(task, data.train, settings, np.array([1]))
        still = (updates.tables[table.name].values == 0).all(1)
        assert torch.equal(still, ~universe)


def test_one_example_moves_a_step_by_the_clip_norm_at_most() -> None:
    """With and without one of its examples, all else alike, a client's single step differs by at most the bound."""
    for name in ("skipgram", "poincare", "listwise", "attention", "bpr", "gaussian-labels", "complex-all"):
        task, data = made(name)
        settings = training(clip_norm=0.05, batch_size=0, epochs=1, learning_rate=1.0, reduction="sum")
        client = int(np.flatnonzero(task.examples(data.train).sizes > 1)[0])
        own = task.examples(data.train).take(np.array([client]))
        with_it = _one_step(task, own, settings)
        without = Shards({n: c[:-1] for n, c in own.columns.items()}, own.offsets - np.array([0, 1]))
        difference = 0.0
        for key, value in _one_step(task, without, settings).items():
            difference += float((value - with_it[key]).double().square().sum())
        assert 0 < difference**0.5 <= 0.05 * (1 + 1e-4)


def _one_step(task: Task, own: Shards, settings: LocalTraining) -> dict[str, Tensor]:
    tables = {t.name: initial_table(t, SEED) for t in task.tables if t.shared}
    dense = {d.name: initial_dense(d, SEED) + 0.1 for d in task.dense}
    personal, client = personal_rows(task.tables, 0, 1), np.array([0])
    (updates,) = train_cohort(task, tables, dense, personal, own, client, settings, SEED, ROUND)
    found = {name: rows.values for name, rows in updates.tables.items()} | dict(updates.dense)
    for name, rows in personal.items():
        fresh = PersonalRows.empty(rows.table, 0, 1).of(client, SEED)
        found[name] = rows.of(client, SEED) - fresh
    return found


def test_examples_that_are_not_finite_count_for_nothing() -> None:
    task, data = made("skipgram")

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(task, name)

        def loss(self, vectors: Any, dense: Any, batch: Any) -> Tensor:
            found = task.loss(vectors, dense, batch)
            return found * torch.where(torch.arange(len(found)) % 3 == 0, float("inf"), 1.0)

    updates, _ = trained(Broken(), data.train, training(), np.arange(3))  # type: ignore[arg-type]
    for rows in updates.tables.values():
        assert torch.isfinite(rows.values).all()
    assert any((rows.values != 0).any() for rows in updates.tables.values())


def test_norms_add_repeated_rows_first() -> None:
    ids = torch.tensor([[3, 3, 1], [0, 1, 2], [4, 4, 4]])
    gradients = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0))
    whole = torch.zeros(3, 6, 5)
    for example in range(3):
        for k in range(3):
            whole[example, ids[example, k]] += gradients[example, k]
    torch.testing.assert_close(squared_norms(ids, gradients), whole.double().square().sum((1, 2)))


@pytest.mark.parametrize(("size", "batch_size"), [(1, 4), (7, 4), (40, 8), (1000, 32), (50, 1), (30, 0)])
def test_coins_are_fair_and_independent(size: int, batch_size: int) -> None:
    clients = np.arange(400)
    sizes = np.full(400, size)
    sampling = Sampling.of(sizes, batch_size)
    client, step, line = poisson_lines(sampling, sizes, stream_keys(3, "poisson", 1, 0, clients))
    assert (np.lexsort((line, client, step)) == np.arange(len(step))).all()
    cells = (client * sampling.steps[client] + step) * size + line
    assert len(np.unique(cells)) == len(cells)
    total, rate = 400 * int(sampling.steps[0]) * size, float(sampling.rate[0])
    assert abs(len(cells) - total * rate) <= 5 * np.sqrt(total * rate * (1 - rate))
    if rate == 1:
        assert len(cells) == total
        return
    per_line = np.bincount(line, minlength=size)
    expected = 400 * sampling.steps[0] * rate
    if expected > 20:
        spread = (per_line - expected) ** 2 / (expected * (1 - rate))
        assert stats.chi2.sf(spread.sum(), size) > 1e-4
    there = np.zeros(total, dtype=bool)
    there[cells] = True
    assert abs(np.corrcoef(there[1:], there[:-1])[0, 1]) < 5 / np.sqrt(total)


def test_coins_do_not_depend_on_company() -> None:
    sizes, clients = np.array([5, 0, 40, 9]), np.array([2, 3, 8, 9])
    whole = poisson_lines(Sampling.of(sizes, 4), sizes, stream_keys(3, "poisson", 1, 0, clients))
    for at in range(4):
        own = poisson_lines(
            Sampling.of(sizes[[at]], 4), sizes[[at]], stream_keys(3, "poisson", 1, 0, clients[[at]])
        )
        mine = whole[0] == at
        assert np.array_equal(whole[1][mine], own[1])
        assert np.array_equal(whole[2][mine], own[2])


def test_system_noise_differs_from_round_to_round() -> None:
    task, data = made("skipgram")
    settings = training(noise=1.0)
    assert settings.privacy is not None
    settings = replace(settings, privacy=replace(settings.privacy, noise=Noise()))
    one, _ = trained(task, data.train, settings, np.arange(2))
    other, _ = trained(task, data.train, settings, np.arange(2))
    name = task.tables[0].name
    assert isinstance(task.tables[0].manifold, Euclidean)
    assert not torch.isclose(one.tables[name].values, other.tables[name].values, rtol=1e-9, atol=0).any()
