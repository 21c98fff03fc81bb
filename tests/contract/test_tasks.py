"""What every task, sampler, stage, aggregator and server optimiser promises. A new one adds a line to a table.

Manifolds have their own suite in tests/test_manifolds.py; here they appear under the tasks and the optimisers.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import fedemb.stages
from fedemb.aggregate.check import select
from fedemb.aggregate.plain import MEANS, ROW_RULES, Plain
from fedemb.aggregate.secure.ring import Ring
from fedemb.cohort import Full, Poisson, Turns, Uniform
from fedemb.config import conf_dir
from fedemb.data.partition import Natural
from fedemb.data.shards import Shards, offsets_of
from fedemb.data.synthetic import Synthetic
from fedemb.errors import SettingError
from fedemb.gaussian import Gaussian
from fedemb.manifolds import Euclidean, Lorentz, Poincare
from fedemb.privacy.noise import Noise
from fedemb.server.optimizers import RULES, RowOptimizer
from fedemb.server.posterior import Posterior
from fedemb.server.prior import RandomWalk
from fedemb.stages.central_noise import CentralNoise
from fedemb.stages.clip import Clip
from fedemb.stages.distributed_noise import DistributedNoise
from fedemb.stages.local_noise import LocalNoise
from fedemb.stages.silent import Silent
from fedemb.stages.spread import Layout
from fedemb.stages.universe import Universe
from fedemb.stages.weight import WEIGHTS, Weight
from fedemb.tasks.compositional import Compositional
from fedemb.tasks.dynamic import Dynamic
from fedemb.tasks.factorization import Factorization
from fedemb.tasks.hierarchical import Hierarchical
from fedemb.tasks.knowledge_graph import KnowledgeGraph
from fedemb.tasks.probabilistic import build as probabilistic
from fedemb.tasks.skipgram import Skipgram
from fedemb.train.candidates import candidate_tables
from fedemb.train.initial import initial_dense, initial_table
from fedemb.train.optimizers import SGD
from fedemb.train.personal import PersonalRows, personal_rows
from fedemb.train.rows import LocalTraining, concatenate, train_cohort
from fedemb.types import (
    Aggregator,
    Candidates,
    CohortSampler,
    Dataset,
    Dense,
    ListwiseTask,
    RowTotal,
    RowUpdates,
    ServerOptimizer,
    Stage,
    StageContext,
    Table,
    Task,
    Total,
    Updates,
)
from tests.gallery import gallery, with_nobody
from tests.graphs import graph

# --- the tables: one line for each implementation -------------------------------------------------------

_LISTWISE: dict[str, Any] = {"dim": 3, "manifold": "poincare", "negatives": 4, "init_scale": 0.3}
_LISTWISE |= {"shared_negatives": True}
_SKIPGRAM: dict[str, Any] = {"dim": 4, "negatives": 3, "tied": False, "window": 2, "noise_power": 0.75}
_SKIPGRAM |= {"subsample": 0.0, "recent": 0}
_FACTORS: dict[str, Any] = {"dim": 4, "negatives": 3, "objective": "bpr", "bias": True, "noise_power": 0.5}
_FACTORS |= {"init_scale": 0.3}
_GRAPH: dict[str, Any] = {
    "model": "complex",
    "dim": 4,
    "objective": "one_vs_all",
    "against": "own",
    "negatives": 3,
    "n3": 0.0,
}
_GRAPH |= {"temperature": 1.0, "margin": None, "reciprocal": True, "relations": "shared", "init_scale": 0.3}
_SAMPLED: dict[str, Any] = {**_GRAPH, "objective": "sampled"}

_DYNAMIC: dict[str, Any] = {
    "dim": 3,
    "negatives": 3,
    "own_negatives": 2,
    "rows": "slices",
    "state": "exponential",
}
_DYNAMIC |= {"context": "history", "length": 4, "repeats": True, "slice": "day", "walk": 0.5, "num_waves": 2}
_DYNAMIC |= {"l2": 0.01, "init_scale": 0.3}
_PARTS: dict[str, Any] = {
    "dim": 4,
    "combine": "attention",
    "drop": 0.8,
    "drop_values": 0.2,
    "hidden": 3,
    "waves": 2,
}
_PARTS |= {"init_scale": 0.3}
_GAUSSIAN: dict[str, Any] = {
    "dim": 4,
    "posterior": "gaussian",
    "model": "complex",
    "reciprocal": True,
    "prior_precision": 0.5,
    "label_prior_precision": 0.5,
    "floor": 0.1,
    "start": 2.0,
    "scale": 0.5,
    "init_scale": 0.3,
}
_WINDOW: dict[str, Any] = {"context": "window", "length": 2, "state": "mean", "repeats": False}

TASKS: dict[str, Callable[[], tuple[Task, Dataset]]] = {
    "poincare": lambda: of(Hierarchical, tree(), dim=3, manifold="poincare", negatives=4, init_scale=0.3),
    "lorentz": lambda: of(Hierarchical, tree(), dim=3, manifold="lorentz", negatives=4, init_scale=0.3),
    "euclidean": lambda: of(Hierarchical, tree(), dim=3, manifold="euclidean", negatives=4, init_scale=0.3),
    "listwise": lambda: of(Hierarchical, tree(), **_LISTWISE),
    "corrected": lambda: of(
        Hierarchical, tree(), **_LISTWISE, log_q_correction=True, noise_power=0.75, learn_scale=True
    ),
    "learnt-curvature": lambda: of(
        Hierarchical, tree(), **{**_LISTWISE, "manifold": "lorentz", "negatives": 7}, learn_scale=True
    ),
    "skipgram": lambda: of(Skipgram, clusters(), **_SKIPGRAM),
    "subsampled": lambda: of(Skipgram, clusters(), **{**_SKIPGRAM, "subsample": 0.05}),
    "history": lambda: of(Skipgram, clusters(), **_SKIPGRAM, within="history"),
    "tied": lambda: of(Skipgram, clusters(), **{**_SKIPGRAM, "tied": True, "negatives": 0}),
    "bpr": lambda: of(Factorization, clusters(), **_FACTORS),
    "logistic": lambda: of(Factorization, clusters(), **{**_FACTORS, "objective": "logistic", "bias": False}),
    "dynamic": lambda: of(Dynamic, clusters(), **_DYNAMIC),
    "dynamic-gated": lambda: of(Dynamic, clusters(), **{**_DYNAMIC, "state": "gated", "rows": "static"}),
    "dynamic-waves": lambda: of(Dynamic, clusters(), **{**_DYNAMIC, "state": "mean", "rows": "continuous"}),
    "dynamic-window": lambda: of(Dynamic, clusters(), **{**_DYNAMIC, **_WINDOW}),
    "attention": lambda: of(Compositional, with_nobody(gallery()), **_PARTS),
    "one-label": lambda: of(Compositional, with_nobody(gallery("category")), **_PARTS),
    "parts-mean": lambda: of(
        Compositional, with_nobody(gallery()), **{**_PARTS, "combine": "mean", "drop_values": 0.0}
    ),
    "zero-fill": lambda: of(
        Compositional, with_nobody(gallery()), **{**_PARTS, "combine": "zero_fill", "drop": 0.0}
    ),
    "concatenation": lambda: of(
        Compositional, with_nobody(gallery()), **{**_PARTS, "combine": "concatenation", "hidden": 0}
    ),
    "gaussian-labels": lambda: (probabilistic(coded_gallery(), **_GAUSSIAN), coded_gallery()),
    "gaussian-labels-point": lambda: (
        probabilistic(coded_gallery(), **{**_GAUSSIAN, "posterior": "point"}),
        coded_gallery(),
    ),
    "gaussian-links": lambda: (probabilistic(graph(), **_GAUSSIAN), graph()),
    "gaussian-links-distmult": lambda: (
        probabilistic(graph(), **{**_GAUSSIAN, "model": "distmult", "reciprocal": False}),
        graph(),
    ),
    "complex": lambda: of(KnowledgeGraph, graph(), **_GRAPH),
    "complex-all": lambda: of(KnowledgeGraph, graph(), **{**_GRAPH, "against": "all"}),
    "complex-sampled": lambda: of(KnowledgeGraph, graph(), **{**_SAMPLED, "temperature": 0.0}),
    "transe": lambda: of(KnowledgeGraph, graph(), **{**_SAMPLED, "model": "transe", "reciprocal": False}),
    "transe-l2": lambda: of(KnowledgeGraph, graph(), **{**_GRAPH, "model": "transe_l2", "reciprocal": False}),
    "rotate": lambda: of(KnowledgeGraph, graph(), **{**_SAMPLED, "model": "rotate", "n3": 0.1}),
    "distmult": lambda: of(
        KnowledgeGraph, graph(), **{**_GRAPH, "model": "distmult", "relations": "personal", "n3": 0.1}
    ),
}
SAMPLERS: dict[str, CohortSampler] = {
    "full": Full(),
    "uniform": Uniform(7),
    "poisson": Poisson(0.3),
    "turns": Turns(7),
}
STAGES: dict[str, Stage] = {
    "clip": Clip(0.5),
    "weight-examples": Weight("examples"),
    "weight-uniform": Weight("uniform"),
    "weight-capped": Weight("capped", 10),
}
PRIVATE_STAGES: dict[str, Callable[[], Stage]] = {  # of their own each time: some remember rounds
    "universe": lambda: Universe({"flat": torch.arange(NUM_ROWS) % 3 != 1}),
    "silent": Silent,
    "local-noise": lambda: LocalNoise(Layout(TABLES, {}), 0.5, Noise(3)),
    "distributed-noise": lambda: DistributedNoise(Layout(TABLES, {}), 1e-3, 1e4, 900.0, Ring(), Noise(3)),
    "central-noise": lambda: CentralNoise(
        Layout(TABLES, {}), {d.name: d.shape for d in DENSE}, 1.0, 0.5, 6.0, Noise(3)
    ),
}
AGGREGATORS: dict[str, Callable[[], Aggregator]] = {
    f"plain-{rows}-{mean}": lambda rows=rows, mean=mean: Plain(TABLES, rows, mean, HOLDERS, 6)  # type: ignore[misc]
    for rows in ROW_RULES
    for mean in MEANS
    if mean == "tangent" or rows not in ("sum", "heat", "population")
}
OPTIMIZERS: dict[str, Callable[[], ServerOptimizer]] = {
    rule: lambda rule=rule: RowOptimizer(TABLES, rule)
    for rule in RULES  # type: ignore[misc]
}
OPTIMIZERS["posterior"] = lambda: Posterior(RowOptimizer(TABLES, "adagrad"), TABLES)
OPTIMIZERS["walk"] = lambda: RandomWalk(RowOptimizer(TABLES, "adam"), TABLES)

# --- what they are tried on -----------------------------------------------------------------------------

NUM_CLIENTS, NUM_ROWS = 6, 11
TABLES = (
    Table("flat", NUM_ROWS, 3, Euclidean(), 0.5),
    Table("ball", NUM_ROWS, 2, Poincare(), 0.5),
    Table("sheet", NUM_ROWS, 2, Lorentz(-0.7), 0.5),
    Table("gaussian", NUM_ROWS, 4, Gaussian(0.7, dtype=torch.float64), 0.5),
)
DENSE = (Dense("map", (2, 3), 0.5), Dense("bias", (), 0.5))
HOLDERS = {table.name: torch.full((NUM_ROWS,), 4) for table in TABLES}
TRAINING = LocalTraining(SGD(), 2, 4, 0.2)
CONTEXT = StageContext(0, 1)


@lru_cache(maxsize=1)
def clusters() -> Dataset:
    source = Synthetic(
        num_clients=NUM_CLIENTS,
        num_items=30,
        examples_per_client=12,
        num_clusters=4,
        clusters_per_client=2,
        days=2,
    )
    return with_an_empty_client(source.load(Natural(), 0))


def coded_gallery() -> Dataset:
    """Records of one label, without the part that is a plain number."""
    data = with_nobody(gallery("category"))
    return replace(data, components=tuple(part for part in data.components if part.num_values))


@lru_cache(maxsize=1)
def tree() -> Dataset:
    source = Synthetic("tree", num_clients=NUM_CLIENTS, num_items=40, examples_per_client=9, num_clusters=4)
    return with_an_empty_client(source.load(Natural(), 0))


def with_an_empty_client(dataset: Dataset) -> Dataset:
    """The same clients, and the third has nothing."""
    train = dataset.train
    sizes = train.sizes.copy()
    keep = train.owners() != 2
    sizes[2] = 0
    columns = {name: column[keep] for name, column in train.columns.items()}
    return replace(dataset, train=Shards(columns, offsets_of(sizes)))


def of(family: Any, dataset: Dataset, **settings: Any) -> tuple[Task, Dataset]:
    return family.build(dataset, **settings), dataset


@dataclass(frozen=True)
class Model:
    tables: dict[str, Tensor]
    dense: dict[str, Tensor]
    personal: dict[str, PersonalRows]

    @staticmethod
    def of(task: Task, seed: int = 0) -> Model:
        return Model(
            {t.name: initial_table(t, seed) for t in task.tables if t.shared},
            {d.name: initial_dense(d, seed) for d in task.dense},
            personal_rows(task.tables, 0, NUM_CLIENTS),
        )


def trained(
    task: Task, examples: Shards, clients: np.ndarray, model: Model, seed: int = 0, round: int = 1
) -> Updates:
    parts = train_cohort(
        task, model.tables, model.dense, model.personal, examples, clients, TRAINING, seed, round
    )
    return concatenate(list(parts))


def everybody() -> np.ndarray:
    return np.arange(NUM_CLIENTS, dtype=np.int64)


def same(first: Updates, second: Updates, tolerance: float = 0.0) -> bool:
    pairs = [(first.weights, second.weights), *((first.dense[n], second.dense[n]) for n in first.dense)]
    for name, rows in first.tables.items():
        other = second.tables[name]
        if not (torch.equal(rows.rows, other.rows) and torch.equal(rows.offsets, other.offsets)):
            return False
        pairs += [(rows.values, other.values), (rows.counts, other.counts)]
    return all(a.shape == b.shape and torch.allclose(a, b, tolerance, tolerance) for a, b in pairs)


def batch_of(task: Task, examples: Shards, seed: int = 0) -> dict[str, Tensor]:
    """A batch as the trainer makes it, with some candidates known."""
    columns = {name: torch.from_numpy(np.array(column)) for name, column in examples.columns.items()}
    rng = np.random.default_rng(seed)
    uniforms = rng.random((examples.num_examples, task.num_draws))
    uniforms[:1], uniforms[1:2] = 0.0, np.nextafter(1.0, 0.0)  # both ends
    batch = dict(task.sample(columns, torch.from_numpy(uniforms)))
    batch.pop("keep", None)
    if task.exclusion and task.exclusion.candidates:
        shape = tuple(batch[task.exclusion.candidates].shape)
        batch["known"] = torch.from_numpy(rng.random(shape) < 0.3)
    return batch


def whole_tables(task: Task, points: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Candidates]:
    """What a listwise task compares with: the rows of one client that holds everything, the first two known."""
    ids, found = task.lookup(batch), {}
    for table, _ in candidate_tables(task):
        place = ids[table.name]
        known = torch.zeros(len(place), table.num_rows, dtype=torch.bool)
        known[:, :2] = task.exclusion is not None
        weight = torch.ones(1, table.num_rows, dtype=torch.float64)
        client = torch.zeros(len(place), dtype=torch.int64)
        found[table.name] = Candidates(
            points[table.name][None], weight, client, place, known if task.exclusion else None
        )
    return found


def loss_of(
    task: Task,
    vectors: dict[str, Tensor],
    dense: dict[str, Tensor],
    batch: dict[str, Tensor],
    candidates: dict[str, Candidates],
) -> Tensor:
    if candidates and isinstance(task, ListwiseTask):
        return task.loss(vectors, dense, batch, candidates)
    return task.loss(vectors, dense, batch)


def losses(task: Task, model: Model, batch: dict[str, Tensor]) -> Tensor:
    points = {**model.tables, **{n: r.of(everybody()[:1], 0)[0] for n, r in model.personal.items()}}
    vectors = {name: points[name][ids] for name, ids in task.lookup(batch).items()}
    size = len(next(iter(batch.values())))
    dense = {n: v.expand(size, *v.shape) for n, v in model.dense.items()}
    return loss_of(task, vectors, dense, batch, whole_tables(task, points, batch))


every_task = pytest.mark.parametrize("name", TASKS)
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_stage = pytest.mark.parametrize("name", STAGES)
every_aggregator = pytest.mark.parametrize("name", AGGREGATORS)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)

# --- nobody is left out ---------------------------------------------------------------------------------


def targets(group: str) -> set[str]:
    nodes = [OmegaConf.load(path) for path in (conf_dir() / group).glob("*.yaml")]
    return {
        str(node.get(group, node)["_target_"]).removesuffix(".build").rpartition(".")[2] for node in nodes
    }


def test_every_task_is_listed() -> None:
    listed = {type(make()[0]).__name__ for make in TASKS.values()}
    by_data = {"probabilistic": {"GaussianLabels", "GaussianLinks"}}  # one task, by what the data are
    expected = set().union(*(by_data.get(name, {name}) for name in targets("task")))
    assert expected == listed


def test_every_sampler_is_listed() -> None:
    assert targets("cohort") == {type(sampler).__name__ for sampler in SAMPLERS.values()}


def test_every_stage_is_listed() -> None:
    found = set()
    for info in pkgutil.iter_modules(fedemb.stages.__path__, "fedemb.stages."):
        module = importlib.import_module(info.name)
        classes = inspect.getmembers(module, inspect.isclass)
        found |= {c for _, c in classes if c.__module__ == info.name and hasattr(c, "on_clients")}
    assert found == {
        type(stage) for stage in (*STAGES.values(), *(make() for make in PRIVATE_STAGES.values()))
    }
    assert {stage.by for stage in STAGES.values() if isinstance(stage, Weight)} == set(WEIGHTS)


# --- tasks ----------------------------------------------------------------------------------------------


@every_task
def test_tables_have_names_of_their_own_and_a_shared_one_first(name: str) -> None:
    task, dataset = TASKS[name]()
    names = [table.name for table in task.tables] + [dense.name for dense in task.dense]
    assert len(set(names)) == len(names)
    assert task.tables[0].shared
    for table in task.tables:
        if table.shared:
            assert table.num_rows == len(dataset.vocabularies[table.entity]) * table.num_slices


@every_task
def test_lookups_are_rows_of_the_tables(name: str) -> None:
    task, dataset = TASKS[name]()
    batch = batch_of(task, task.examples(dataset.train))
    ids = task.lookup(batch)
    assert set(ids) == {table.name for table in task.tables}
    for table in task.tables:
        found = ids[table.name]
        assert found.dtype == torch.int64
        assert found.dim() == 2
        assert int(found.min()) >= 0
        assert int(found.max()) < table.num_rows


def same_column(one: Tensor, other: Tensor) -> bool:
    """Whether all is the same; a number that is missing is NaN, and equals none."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


@every_task
def test_sample_is_pure(name: str) -> None:
    task, dataset = TASKS[name]()
    shards = task.examples(dataset.train)
    columns = {n: torch.from_numpy(np.array(column)) for n, column in shards.columns.items()}
    before = {n: column.clone() for n, column in columns.items()}
    uniforms = torch.rand(shards.num_examples, task.num_draws, dtype=torch.float64)
    first, second = (task.sample(columns, uniforms.clone()) for _ in range(2))
    assert set(columns) == set(before)
    assert all(same_column(columns[n], before[n]) for n in before)
    assert set(first) == set(second)
    assert all(same_column(first[n], second[n]) for n in first)
    assert all(len(column) == shards.num_examples for column in first.values())


@every_task
def test_loss_is_per_example_and_of_that_example_alone(name: str) -> None:
    task, dataset = TASKS[name]()
    batch = batch_of(task, task.examples(dataset.train))
    model = Model.of(task)
    whole = losses(task, model, batch)
    size = len(next(iter(batch.values())))
    assert whole.shape == (size,)
    assert whole.isfinite().all()
    assert whole.dtype == task.tables[0].manifold.dtype
    order = torch.from_numpy(np.random.default_rng(0).permutation(size))
    for chosen in (order, order[: size // 3], order[:1]):
        part = losses(task, model, {n: column[chosen] for n, column in batch.items()})
        torch.testing.assert_close(part, whole[chosen], rtol=1e-6, atol=1e-7)
    nothing = losses(task, model, {n: column[:0] for n, column in batch.items()})
    assert nothing.shape == (0,)


@every_task
def test_gradient_reaches_every_table(name: str) -> None:
    task, dataset = TASKS[name]()
    model = Model.of(task, seed=3)
    # A table that starts at zero may have no gradient yet: move everything a little.
    moved = {n: t + 0.05 * torch.rand(t.shape, dtype=t.dtype) for n, t in model.tables.items()}
    moved = {t.name: t.manifold.project(moved[t.name]) for t in task.tables if t.shared}
    batch = batch_of(task, task.examples(dataset.train))
    points = {**moved, **{n: r.of(everybody()[:1], 0)[0] for n, r in model.personal.items()}}
    vectors = {n: points[n][ids].requires_grad_() for n, ids in task.lookup(batch).items()}
    rows = whole_tables(task, points, batch)
    inputs = [*vectors.values(), *(c.points.requires_grad_() for c in rows.values())]
    size = len(next(iter(batch.values())))
    dense = {n: v.expand(size, *v.shape) for n, v in model.dense.items()}
    gradients = torch.autograd.grad(loss_of(task, vectors, dense, batch, rows).sum(), inputs)
    for table, gradient in zip([*vectors, *(f"{n}, compared" for n in rows)], gradients, strict=True):
        assert gradient.isfinite().all(), table
        assert gradient.abs().sum() > 0, table


@pytest.mark.parametrize("name", [name for name, make in TASKS.items() if candidate_tables(make()[0])])
def test_of_candidates_only_their_set_counts(name: str) -> None:
    """Another order, rows that fill up and clients without examples change no loss, of whoever's example."""
    task, dataset = TASKS[name]()
    batch, model = batch_of(task, task.examples(dataset.train)), Model.of(task)
    points = {**model.tables, **{n: r.of(everybody()[:1], 0)[0] for n, r in model.personal.items()}}
    vectors = {n: points[n][ids] for n, ids in task.lookup(batch).items()}
    size = len(next(iter(batch.values())))
    client = torch.from_numpy(np.random.default_rng(0).integers(0, 3, size))
    rows, others = whole_tables(task, points, batch), {}
    for table, own in rows.items():
        order = torch.randperm(own.points.shape[1], generator=torch.Generator().manual_seed(0))
        filled = torch.cat((own.points[0][order], own.points[0, order[-1:]].expand(2, -1)))
        weight = (torch.arange(len(filled)) < len(order)).double()
        known = own.known if own.known is None else torch.nn.functional.pad(own.known[:, order], (0, 2))
        others[table] = Candidates(
            filled.expand(4, -1, -1), weight.expand(4, -1), client, torch.argsort(order)[own.place], known
        )
    whole = loss_of(task, vectors, model.dense, batch, rows)
    same_set = loss_of(task, vectors, model.dense, batch, others)
    torch.testing.assert_close(same_set, whole, rtol=1e-5, atol=1e-6)


@every_task
def test_examples_of_nobody_are_nothing(name: str) -> None:
    task, dataset = TASKS[name]()
    empty = dataset.train.take(np.array([2, 2]))
    once = task.examples(empty)
    assert (once.num_clients, once.num_examples) == (2, 0)
    model = Model.of(task)
    updates = trained(task, once, np.array([2, 4]), model)
    assert updates.metrics["examples"].tolist() == [0, 0]
    for rows in updates.tables.values():
        assert len(rows.rows) == len(rows.values) == len(rows.counts) == 0
        assert rows.offsets.tolist() == [0, 0, 0]
    assert all((value == 0).all() for value in updates.dense.values())
    assert not any(rows.known.any() for rows in model.personal.values())


@every_task
def test_empty_client_among_others_changes_nothing(name: str) -> None:
    task, dataset = TASKS[name]()
    shards = task.examples(dataset.train)
    updates = trained(task, shards, everybody(), Model.of(task))
    assert updates.metrics["examples"][2] == 0
    others = np.delete(everybody(), 2)
    without = trained(task, shards.take(others), others, Model.of(task))
    assert same(select(updates, others), without, 1e-6)


@every_task
def test_clients_together_equal_clients_one_by_one(name: str) -> None:
    task, dataset = TASKS[name]()
    shards = task.examples(dataset.train)
    together_model, model = Model.of(task), Model.of(task)
    together = trained(task, shards, everybody(), together_model)
    alone = [
        trained(task, shards.take(everybody()[c : c + 1]), everybody()[c : c + 1], model) for c in everybody()
    ]
    assert same(together, concatenate(alone), 1e-6)
    for table, rows in together_model.personal.items():
        torch.testing.assert_close(rows.points, model.personal[table].points)


@every_task
def test_same_seed_same_result_another_seed_another(name: str) -> None:
    task, dataset = TASKS[name]()
    shards = task.examples(dataset.train)
    first, again = (trained(task, shards, everybody(), Model.of(task)) for _ in range(2))
    assert same(first, again)
    assert not same(first, trained(task, shards, everybody(), Model.of(task), seed=1))
    assert not same(first, trained(task, shards, everybody(), Model.of(task), round=2))
    for table in task.tables:
        if table.init_scale:
            assert torch.equal(initial_table(table, 5), initial_table(table, 5))
            assert not torch.equal(initial_table(table, 5), initial_table(table, 6))


@every_task
def test_dtype_is_kept_and_updates_are_in_frames(name: str) -> None:
    task, dataset = TASKS[name]()
    updates = trained(task, task.examples(dataset.train), everybody(), Model.of(task))
    for table in task.tables:
        if table.shared:
            rows = updates.tables[table.name]
            assert rows.values.dtype == rows.counts.dtype == table.manifold.dtype
            assert rows.values.shape == (len(rows.rows), table.dim)
            assert rows.rows.dtype == rows.offsets.dtype == torch.int64
            assert rows.values.isfinite().all()
            drawn = bool(task.num_draws) or any(t is table and how for t, how in candidate_tables(task))
            assert (rows.counts >= (0 if drawn else 1)).all()
    assert updates.weights.dtype == torch.float64


@every_task
def test_training_lowers_the_loss(name: str) -> None:
    task, dataset = TASKS[name]()
    shards, model = task.examples(dataset.train), Model.of(task)
    optimizer = RowOptimizer(tuple(t for t in task.tables if t.shared))
    first = last = 0.0
    for round in range(1, 16):
        updates = trained(task, shards, everybody(), model, round=round)
        last = float(updates.metrics["loss"].sum() / updates.metrics["examples"].sum())
        first = first or last
        aggregator = Plain(tuple(t for t in task.tables if t.shared))
        aggregator.add(updates, model.tables)
        optimizer.step(model.tables, model.dense, aggregator.finish(model.tables))
    assert last < first


# --- samplers -------------------------------------------------------------------------------------------

ELIGIBLE = np.array([0, 3, 4, 7, 11, 12, 13, 20, 29, 31, 32, 40, 41, 55, 56, 57, 80, 81, 90, 99])
DRAWS = 3000


@every_sampler
def test_cohort_is_an_ascending_subset(name: str) -> None:
    for round in range(1, 50):
        cohort = SAMPLERS[name](0, round, ELIGIBLE)
        assert cohort.dtype == np.int64
        assert (np.diff(cohort) > 0).all()
        assert np.isin(cohort, ELIGIBLE).all()


@every_sampler
def test_cohort_follows_from_seed_and_round(name: str) -> None:
    sampler = SAMPLERS[name]
    eligible = ELIGIBLE.copy()
    first = [sampler(0, round, eligible).tolist() for round in range(1, 30)]
    assert [sampler(0, round, eligible).tolist() for round in range(1, 30)] == first
    assert np.array_equal(eligible, ELIGIBLE)
    if name == "turns":
        assert [sampler(1, round, eligible).tolist() for round in range(1, 30)] != first
    elif name != "full":
        assert len({tuple(cohort) for cohort in first}) > 20
        assert [sampler(1, round, eligible).tolist() for round in range(1, 30)] != first


@every_sampler
def test_every_client_is_taken_as_often_as_promised(name: str) -> None:
    sampler = SAMPLERS[name]
    cohorts = [sampler(0, round, ELIGIBLE) for round in range(1, DRAWS + 1)]
    rate = sampler.participation(len(ELIGIBLE)).size / len(ELIGIBLE)
    taken = np.bincount(np.searchsorted(ELIGIBLE, np.concatenate(cohorts)), minlength=len(ELIGIBLE))
    error = 4.5 * np.sqrt(DRAWS * rate * (1 - rate))
    assert np.abs(taken - DRAWS * rate).max() <= error


def test_poisson_is_an_independent_coin() -> None:
    """Sizes are binomial (so a cohort may be empty) and two clients are together as often as chance has it."""
    sampler, rate = SAMPLERS["poisson"], 0.3
    member = np.stack([np.isin(ELIGIBLE, sampler(0, round, ELIGIBLE)) for round in range(1, DRAWS + 1)])
    sizes = member.sum(1)
    variance = len(ELIGIBLE) * rate * (1 - rate)
    assert abs(sizes.var() - variance) < 5 * variance * np.sqrt(2 / DRAWS)
    together = member.T.astype(float) @ member / DRAWS
    off = together[~np.eye(len(ELIGIBLE), dtype=bool)]
    assert np.abs(off - rate**2).max() < 5.5 * np.sqrt(rate**2 * (1 - rate**2) / DRAWS)
    assert len(Poisson(1e-9)(0, 1, ELIGIBLE)) == 0
    assert np.array_equal(Poisson(1.0)(0, 1, ELIGIBLE), ELIGIBLE)


def test_uniform_has_its_exact_size() -> None:
    assert {len(SAMPLERS["uniform"](0, round, ELIGIBLE)) for round in range(1, 100)} == {7}
    assert np.array_equal(Uniform(len(ELIGIBLE))(0, 1, ELIGIBLE), ELIGIBLE)


def test_turns_come_in_order_and_never_sooner() -> None:
    sampler, rounds = Turns(7), 12
    separation = sampler.participation(len(ELIGIBLE)).separation
    assert separation == 3
    assert [len(sampler(5, round, ELIGIBLE)) for round in (1, 2, 3)] == [7, 7, 6]
    assert [len(Turns(4)(5, round, ELIGIBLE[:13])) for round in (1, 2, 3, 4)] == [4, 3, 3, 3]
    taken: dict[int, list[int]] = {int(client): [] for client in ELIGIBLE}
    for round in range(1, rounds + 1):
        for client in sampler(5, round, ELIGIBLE):
            taken[int(client)].append(round)
    assert all((np.diff(rounds_of) == separation).all() for rounds_of in taken.values())
    assert all(len(rounds_of) == rounds / separation for rounds_of in taken.values())


@every_sampler
def test_population_is_checked(name: str) -> None:
    sampler = SAMPLERS[name]
    sampler.check(1000)
    if name == "uniform":
        sampler.check(7)
        with pytest.raises(SettingError, match=r"cohort\.size must be at most 6, .* got 7"):
            sampler.check(6)


# --- stages ---------------------------------------------------------------------------------------------


def updates_of(seed: int = 0, scale: float = 1.0) -> Updates:
    """What six clients, the third of them with nothing, did to three tables and two dense parameters."""
    rng = np.random.default_rng(seed)
    tables = {}
    for table in TABLES:
        held = [np.sort(rng.choice(NUM_ROWS, n, replace=False)) for n in (4, 1, 0, 7, 2, 11)]
        rows = torch.from_numpy(np.concatenate(held))
        offsets = torch.from_numpy(offsets_of(np.array([len(part) for part in held])))
        values = torch.from_numpy(rng.normal(size=(len(rows), table.dim)) * scale).to(table.manifold.dtype)
        counts = torch.from_numpy(rng.integers(1, 9, len(rows))).to(values.dtype)
        tables[table.name] = RowUpdates(rows, values, counts, offsets)
    dense = {d.name: torch.from_numpy(rng.normal(size=(6, *d.shape)) * scale).float() for d in DENSE}
    for value in dense.values():
        value[2] = 0
    metrics = {"examples": torch.tensor([3.0, 25, 0, 10, 9, 40]).double(), "loss": torch.ones(6).double()}
    return Updates(everybody(), tables, dense, torch.ones(6, dtype=torch.float64), metrics)


def clone(updates: Updates) -> Updates:
    tables = {n: RowUpdates(*(v.clone() for v in vars(r).values())) for n, r in updates.tables.items()}
    return replace(updates, tables=tables, dense={n: v.clone() for n, v in updates.dense.items()})


def joint_norms(updates: Updates) -> list[float]:
    """Norm of everything that a client sends, the obvious way."""
    norms = []
    for client in range(len(updates.clients)):
        own = select(updates, np.array([client]))
        parts = [
            *(rows.values.flatten() for rows in own.tables.values()),
            *(v.flatten() for v in own.dense.values()),
        ]
        norms.append(float(torch.cat([part.double() for part in parts]).norm()))
    return norms


@every_stage
def test_stage_keeps_who_sent_what_where(name: str) -> None:
    before = updates_of()
    untouched = clone(before)
    after = STAGES[name].on_clients(before, CONTEXT)
    assert same(before, untouched), "the stage changed what it was given"
    assert np.array_equal(after.clients, before.clients)
    assert set(before.metrics) <= set(after.metrics)
    for table, rows in after.tables.items():
        assert torch.equal(rows.rows, before.tables[table].rows)
        assert torch.equal(rows.offsets, before.tables[table].offsets)
        assert torch.equal(rows.counts, before.tables[table].counts)
        assert rows.values.dtype == before.tables[table].values.dtype
    for part, value in after.dense.items():
        assert (value.dtype, value.shape) == (before.dense[part].dtype, before.dense[part].shape)
    assert (after.weights.shape, after.weights.dtype) == ((6,), torch.float64)


@every_stage
def test_stage_treats_clients_alike_in_any_company(name: str) -> None:
    together = STAGES[name].on_clients(updates_of(), CONTEXT)
    for client in range(6):
        at = np.array([client])
        alone = STAGES[name].on_clients(select(updates_of(), at), CONTEXT)
        assert same(alone, select(together, at), 1e-12)
        for metric, value in alone.metrics.items():
            assert value.tolist() == together.metrics[metric][client : client + 1].tolist()


@every_stage
def test_stage_leaves_nothing_as_nothing(name: str) -> None:
    after = STAGES[name].on_clients(updates_of(scale=0.0), CONTEXT)
    assert joint_norms(after) == [0] * 6
    nobody = STAGES[name].on_clients(select(updates_of(), np.zeros(0, dtype=np.int64)), CONTEXT)
    assert len(nobody.clients) == len(nobody.weights) == 0
    empty = Total({}, {}, 0)
    assert STAGES[name].on_server(empty, CONTEXT) == empty


@every_stage
def test_bounded_stage_bounds_the_whole_update_and_spares_short_ones(name: str) -> None:
    stage = STAGES[name]
    long, short = updates_of(scale=3.0), updates_of(scale=0.01)
    if not stage.bounded:
        assert joint_norms(stage.on_clients(long, CONTEXT)) == joint_norms(long)
        return
    assert isinstance(stage, Clip)
    before, after = joint_norms(long), joint_norms(stage.on_clients(long, CONTEXT))
    assert max(after) <= stage.clip_norm * (1 + 1e-6)
    assert after == pytest.approx([min(norm, stage.clip_norm) for norm in before], rel=1e-6)
    clipped = stage.on_clients(long, CONTEXT)
    assert clipped.metrics["clipped"].tolist() == [float(norm > stage.clip_norm) for norm in before]
    for table, rows in clipped.tables.items():  # the direction stays, over all tables by one factor
        factor = torch.tensor(after).div(torch.tensor(before).clamp(min=1e-30))
        own = torch.repeat_interleave(factor, rows.offsets.diff())[:, None]
        torch.testing.assert_close(
            rows.values, long.tables[table].values * own.to(rows.values), rtol=1e-5, atol=1e-7
        )
    assert same(stage.on_clients(short, CONTEXT), short), "a short update is not touched at all"


every_private_stage = pytest.mark.parametrize("name", PRIVATE_STAGES)


@every_private_stage
def test_private_stage_treats_clients_alike_in_any_company(name: str) -> None:
    before = updates_of()
    untouched = clone(before)
    together = PRIVATE_STAGES[name]().on_clients(before, CONTEXT)
    assert same(before, untouched), "the stage changed what it was given"
    assert np.array_equal(together.clients, before.clients)
    for client in range(6):
        at = np.array([client])
        alone = PRIVATE_STAGES[name]().on_clients(select(updates_of(), at), CONTEXT)
        assert same(alone, select(together, at), 1e-12)
    nobody = PRIVATE_STAGES[name]().on_clients(select(updates_of(), np.zeros(0, dtype=np.int64)), CONTEXT)
    assert len(nobody.clients) == len(nobody.weights) == 0
    assert all(len(rows.rows) == 0 for rows in nobody.tables.values())


@every_private_stage
def test_private_stage_follows_from_seed_and_round(name: str) -> None:
    first, again = (PRIVATE_STAGES[name]().on_clients(updates_of(), CONTEXT) for _ in range(2))
    assert same(first, again)
    if name.endswith("-noise") and name != "central-noise":
        later = PRIVATE_STAGES[name]().on_clients(updates_of(), replace(CONTEXT, round=CONTEXT.round + 1))
        assert not same(first, later)


def test_weights() -> None:
    examples = [3, 25, 0, 10, 9, 40]
    expected = {"examples": examples, "uniform": [1] * 6, "capped": [min(n, 10) / 10 for n in examples]}
    for stage in STAGES.values():
        if isinstance(stage, Weight):
            assert stage.on_clients(updates_of(), CONTEXT).weights.tolist() == pytest.approx(
                expected[stage.by]
            )


# --- aggregators and server optimisers ------------------------------------------------------------------


def points() -> dict[str, Tensor]:
    return {table.name: initial_table(table, 1) for table in TABLES}


def dense_points() -> dict[str, Tensor]:
    return {dense.name: initial_dense(dense, 1) for dense in DENSE}


def totals_agree(first: Total, second: Total, tolerance: float = 1e-6) -> None:
    assert first.num_clients == second.num_clients
    assert set(first.tables) == set(second.tables)
    for name, rows in first.tables.items():
        assert torch.equal(rows.rows, second.tables[name].rows)
        torch.testing.assert_close(rows.steps, second.tables[name].steps, rtol=tolerance, atol=tolerance)
    for name, value in first.dense.items():
        torch.testing.assert_close(value, second.dense[name], rtol=tolerance, atol=tolerance)


@every_aggregator
def test_cohort_at_once_equals_clients_one_by_one(name: str) -> None:
    whole, parts, tables = AGGREGATORS[name](), AGGREGATORS[name](), points()
    whole.add(updates_of(), tables)
    for client in everybody():
        parts.add(select(updates_of(), np.array([client])), tables)
    totals_agree(whole.finish(tables), parts.finish(tables))


@every_aggregator
def test_total_has_ascending_rows_and_the_dtype_of_its_table(name: str) -> None:
    aggregator, tables = AGGREGATORS[name](), points()
    aggregator.add(updates_of(), tables)
    total = aggregator.finish(tables)
    for table in TABLES:
        rows = total.tables[table.name]
        assert (rows.rows.diff() > 0).all()
        assert rows.steps.shape == (len(rows.rows), table.dim)
        assert rows.steps.dtype == table.manifold.dtype
        assert rows.steps.isfinite().all()
    assert {n: tuple(v.shape) for n, v in total.dense.items()} == {d.name: d.shape for d in DENSE}


@every_aggregator
def test_round_leaves_nothing_behind(name: str) -> None:
    used, fresh, tables = AGGREGATORS[name](), AGGREGATORS[name](), points()
    used.add(updates_of(seed=1), tables)
    used.finish(tables)
    empty = used.finish(tables)
    assert (empty.num_clients, dict(empty.tables), dict(empty.dense)) == (0, {}, {})
    for aggregator in (used, fresh):
        aggregator.add(updates_of(seed=2), tables)
    totals_agree(used.finish(tables), fresh.finish(tables), 1e-12)


@every_aggregator
def test_updates_of_zero_are_steps_of_zero(name: str) -> None:
    aggregator, tables = AGGREGATORS[name](), points()
    aggregator.add(updates_of(scale=0.0), tables)
    total = aggregator.finish(tables)
    for rows in total.tables.values():
        torch.testing.assert_close(rows.steps, torch.zeros_like(rows.steps), rtol=0, atol=1e-12)
    assert all((value == 0).all() for value in total.dense.values())


def total_of(scale: float, rows: list[int]) -> Total:
    rng = np.random.default_rng(3)
    tables = {}
    for table in TABLES:
        steps = torch.from_numpy(rng.normal(size=(len(rows), table.dim)) * scale).to(table.manifold.dtype)
        tables[table.name] = RowTotal(torch.tensor(rows), steps)
    return Total(tables, {d.name: torch.full(d.shape, 0.3 * scale) for d in DENSE}, 3)


@every_optimizer
def test_step_of_zero_leaves_everything_where_it_is(name: str) -> None:
    tables, dense = points(), dense_points()
    optimizer = OPTIMIZERS[name]()
    optimizer.step(tables, dense, total_of(0.0, list(range(NUM_ROWS))))
    optimizer.step(tables, dense, Total({}, {}, 0))
    for key, value in points().items():
        if (name, key) != ("posterior", "gaussian"):  # no evidence: back to the prior
            torch.testing.assert_close(tables[key], value, rtol=0, atol=1e-12)
    for key, value in dense_points().items():
        assert torch.equal(dense[key], value)


@every_optimizer
def test_untouched_rows_never_move_and_dtype_is_kept(name: str) -> None:
    tables, dense, start = points(), dense_points(), points()
    optimizer = OPTIMIZERS[name]()
    for _ in range(3):
        optimizer.step(tables, dense, total_of(0.2, [1, 4, 9]))
    for table in TABLES:
        moved = (tables[table.name] != start[table.name]).any(1)
        assert moved.nonzero().view(-1).tolist() == [1, 4, 9]
        assert tables[table.name].dtype == table.manifold.dtype
        torch.testing.assert_close(table.manifold.project(tables[table.name]), tables[table.name])
    assert all(value.dtype == torch.float32 for value in dense.values())


@every_optimizer
def test_state_is_all_that_there_is_to_a_resume(name: str) -> None:
    tables, dense = points(), dense_points()
    whole = OPTIMIZERS[name]()
    whole.step(tables, dense, total_of(0.2, [1, 4, 9]))
    resumed = OPTIMIZERS[name]()
    resumed.restore({key: value.clone() for key, value in whole.state().items()})
    copies = (
        {key: value.clone() for key, value in tables.items()},
        {key: v.clone() for key, v in dense.items()},
    )
    whole.step(tables, dense, total_of(0.1, [0, 1, 9]))
    resumed.step(*copies, total_of(0.1, [0, 1, 9]))
    assert all(torch.equal(tables[key], copies[0][key]) for key in tables)
    assert all(torch.equal(dense[key], copies[1][key]) for key in dense)
