"""A cohort trained at once equals its clients trained one after another with autograd on full tables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedemb.data.shards import Shards, offsets_of
from fedemb.gaussian import Gaussian
from fedemb.manifolds import Euclidean
from fedemb.tasks.compositional import Compositional
from fedemb.tasks.dynamic import Dynamic
from fedemb.tasks.factorization import Factorization
from fedemb.tasks.gaussian_links import GaussianLinks
from fedemb.tasks.hierarchical import Hierarchical
from fedemb.tasks.knowledge_graph import KnowledgeGraph
from fedemb.tasks.probabilistic import GaussianLabels
from fedemb.tasks.skipgram import Skipgram
from fedemb.train.initial import initial_dense, initial_table
from fedemb.train.optimizers import SGD, Adagrad, Adam
from fedemb.train.personal import personal_rows
from fedemb.train.phases import in_turn
from fedemb.train.rows import LocalTraining, concatenate, train_cohort
from fedemb.types import Component, Dense, Drawn, Exclusion, ListwiseTask, Table, Task
from tests.reference import train_client

NUM_ITEMS, NUM_RELATIONS, SIZES = 23, 3, np.array([7, 0, 1, 12, 5])


@dataclass(frozen=True)
class Double:
    """A task whose Euclidean tables are float64, so that equality can be asked for to 1e-9."""

    inner: Task
    tables: tuple[Table, ...] = field(init=False)

    def __post_init__(self) -> None:
        tables = tuple(
            replace(t, manifold=Euclidean(torch.float64)) if isinstance(t.manifold, Euclidean) else t
            for t in self.inner.tables
        )
        object.__setattr__(self, "tables", tables)

    @property
    def candidates(self) -> Mapping[str, Drawn | None]:
        return self.inner.candidates if isinstance(self.inner, ListwiseTask) else {}

    def loss(self, *args) -> Tensor:  # named, so that a Protocol finds it
        return self.inner.loss(*args)

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


@dataclass(frozen=True)
class WithDense:
    """A table behind a dense map and bias: what later families of embeddings need."""

    tables: tuple[Table, ...] = (Table("item", NUM_ITEMS, 4, Euclidean(torch.float64), 0.5),)
    dense: tuple[Dense, ...] = (Dense("map", (4, 4), 0.5), Dense("bias", (), 0.1))
    num_draws: int = 2
    exclusion: Exclusion | None = None

    def examples(self, shards: Shards) -> Shards:
        return shards

    def sample(self, batch: Mapping[str, Tensor], uniforms: Tensor) -> Mapping[str, Tensor]:
        return {**batch, "negatives": (uniforms[:, :1] * NUM_ITEMS).long(), "keep": uniforms[:, 1] < 0.8}

    def lookup(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"item": torch.cat((batch["left"][:, None], batch["right"][:, None], batch["negatives"]), 1)}

    def loss(
        self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Tensor:
        item = vectors["item"]
        mapped = torch.einsum("nd,nde->ne", item[:, 0], dense["map"].to(item))
        scores = torch.einsum("ne,nke->nk", mapped, item[:, 1:]) + dense["bias"].to(item)[:, None]
        return softplus(-scores[:, 0]) + softplus(scores[:, 1])


def shards(*names: str) -> Shards:
    rng = np.random.default_rng(1)
    total = int(SIZES.sum())
    columns = {name: rng.integers(0, NUM_ITEMS, total) for name in names}
    if "right" in names:
        columns["label"] = (rng.random(total) < 0.7).astype(np.float32)
    if "child" in names:
        columns["parent"] = (columns["child"] + 1 + rng.integers(0, 5, total)) % NUM_ITEMS
    if "time" in names:
        columns["time"] = np.sort(rng.integers(0, 100 * 86_400, total))
        columns["session"] = np.arange(total) // 2
    if "relation" in names:
        columns["relation"] %= NUM_RELATIONS
    if "medium" in names:
        columns["medium"] = rng.integers(-1, 5, (total, 1)).astype(np.int32)
        columns["tags"] = rng.integers(-1, 9, (total, 3)).astype(np.int32)
        columns["year"] = np.where(rng.random(total) < 0.3, np.nan, rng.random(total)).astype(np.float32)
        columns["label"] = rng.integers(-1, 4, (total, 2)).astype(np.int32)
    if "intent" in names:
        columns["label"] = rng.integers(0, 4, (total, 1)).astype(np.int32)
    columns["weight"] = rng.random(total).astype(np.float32) + 0.5
    return Shards(columns, offsets_of(SIZES))


def cdf() -> Tensor:
    return torch.linspace(1 / NUM_ITEMS, 1, NUM_ITEMS, dtype=torch.float64)


def graph_task(
    model: str, objective: str, reciprocal: bool, relations: str, n3: float = 0.0, against: str = "own"
) -> Task:
    margin = 1.0 if objective == "sampled" else 0.0
    settings = (model, 4, objective, against, 5, 0.7, margin, reciprocal, relations, n3, 0.5)
    return Double(KnowledgeGraph(NUM_ITEMS, NUM_RELATIONS, *settings))


def dynamic(**changes: Any) -> Task:
    bounds = np.array([0, 40, 60, 100]) * 86_400
    task = Dynamic(NUM_ITEMS, bounds, 3, 4, 2, "slices", "exponential", "history", 3, True, 1.0, 2, 0.1, 0.5)
    return Double(replace(task, **changes))


def parts(combine: str) -> Task:
    medium, tags = Component("medium", "category", "medium", 5), Component("tags", "multi", "tags", 9, 3)
    year, label = Component("year", "number", "year", 0), Component("label", "multi", "label", 4, 2)
    return Double(Compositional((medium, tags, year), label, 4, combine, 0.5, 0.2, 3, 2, 0.4))


def gaussian_labels() -> Task:
    medium, tags = Component("medium", "category", "medium", 5), Component("tags", "multi", "tags", 9, 3)
    values, labels = Gaussian(0.5, dtype=torch.float64), Gaussian(0.7, start=3.0, dtype=torch.float64)
    intent = Component("label", "category", "label", 4)
    return GaussianLabels((medium, tags), intent, 4, values, labels, False, 0.5, 0.3)


def gaussian_links() -> Task:
    space = Gaussian(0.5, dtype=torch.float64)
    return GaussianLinks(NUM_ITEMS, NUM_RELATIONS, 4, "complex", True, space, space, False, 0.5, 0.3)


PAIRS, TRIPLES = ("left", "right"), ("head", "relation", "tail")
TASKS = {
    "poincare": (
        lambda: Hierarchical(NUM_ITEMS, 3, "poincare", negatives=6, init_scale=0.3),
        ("child", "parent"),
    ),
    "lorentz": (lambda: Hierarchical(NUM_ITEMS, 3, "lorentz", -0.7, 6, 0.3), ("child", "parent")),
    "euclidean": (lambda: Double(Hierarchical(NUM_ITEMS, 3, "euclidean", -1, 6, 0.3)), ("child", "parent")),
    "skipgram": (
        lambda: Double(Skipgram(NUM_ITEMS, cdf(), (torch.full((NUM_ITEMS,), 0.8),) * 2, 4, 3, False, 2)),
        PAIRS,
    ),
    "tied": (lambda: Double(Skipgram(NUM_ITEMS, cdf(), None, 4, 0, True, 2)), PAIRS),
    "bpr": (lambda: Double(Factorization(NUM_ITEMS, cdf(), 4, 3, "bpr", True, 0.3)), ("item",)),
    "logistic": (lambda: Double(Factorization(NUM_ITEMS, cdf(), 4, 3, "logistic", False, 0.3)), ("item",)),
    "dense": (WithDense, PAIRS),
    "dynamic": (dynamic, ("item", "time")),
    "dynamic-gated": (lambda: dynamic(state="gated", rows="static"), ("item", "time")),
    "dynamic-waves": (lambda: dynamic(state="mean", rows="continuous"), ("item", "time")),
    "dynamic-window": (
        lambda: dynamic(context="window", state="mean", repeats=False, own_negatives=0),
        ("item", "time"),
    ),
    "curved": (
        lambda: Hierarchical(NUM_ITEMS, 3, "lorentz", -0.7, 9, 0.3, shared_negatives=True, learn_scale=True),
        ("child", "parent"),
    ),
    "flat": (
        lambda: Double(
            Hierarchical(NUM_ITEMS, 3, "euclidean", -1, 99, 0.3, shared_negatives=True, learn_scale=True)
        ),
        ("child", "parent"),
    ),
    "complex": (lambda: graph_task("complex", "one_vs_all", True, "shared"), TRIPLES),
    "complex-all": (lambda: graph_task("complex", "one_vs_all", True, "shared", against="all"), TRIPLES),
    "complex-sampled": (lambda: graph_task("complex", "sampled", True, "shared"), TRIPLES),
    "transe": (lambda: graph_task("transe_l2", "one_vs_all", False, "shared"), TRIPLES),
    "distmult": (lambda: graph_task("distmult", "one_vs_all", True, "personal", 0.1), TRIPLES),
    "listwise": (
        lambda: Hierarchical(NUM_ITEMS, 3, "poincare", negatives=6, init_scale=0.3, shared_negatives=True),
        ("child", "parent"),
    ),
    "corrected": (
        lambda: Hierarchical(
            NUM_ITEMS, 3, "poincare", -1.0, 9, 0.3, True, True, True, log_q_correction=True, cdf=cdf() ** 2
        ),
        ("child", "parent"),
    ),
    "corrected-alone": (
        lambda: Hierarchical(NUM_ITEMS, 3, "lorentz", -1.0, 6, 0.3, log_q_correction=True, cdf=cdf() ** 2),
        ("child", "parent"),
    ),
    "parts": (lambda: parts("attention"), ("medium",)),
    "parts-joined": (lambda: parts("concatenation"), ("medium",)),
    "gaussian-labels": (gaussian_labels, ("medium", "intent")),
    "gaussian-links": (gaussian_links, TRIPLES),
    "rotate": (lambda: graph_task("rotate", "sampled", False, "personal", 0.1), TRIPLES),
}


def run(task: Task, data: Shards, settings: LocalTraining, clients: np.ndarray, round: int = 3):
    tables = {t.name: initial_table(t, 0) for t in task.tables if t.shared}
    dense = {d.name: initial_dense(d, 0).double() for d in task.dense}
    personal = personal_rows(task.tables, 0, 9)
    before = {name: value.clone() for name, value in {**tables, **dense}.items()}
    cohort = train_cohort(task, tables, dense, personal, task.examples(data), clients, settings, 5, round)
    updates = concatenate(list(cohort))
    for name, value in {**tables, **dense}.items():
        assert torch.equal(value, before[name]), "what the server sent was changed"
    return tables, dense, personal, updates


@pytest.mark.parametrize("optimizer", [SGD(), Adagrad(), Adam()], ids=["sgd", "adagrad", "adam"])
@pytest.mark.parametrize(("batch_size", "max_step"), [(3, None), (0, None), (3, 0.02)])
@pytest.mark.parametrize("name", TASKS)
def test_cohort_equals_sequential_loop(name: str, batch_size: int, max_step: float | None, optimizer) -> None:
    make, columns = TASKS[name]
    task, data = make(), shards(*columns)
    settings = LocalTraining(optimizer, 2, batch_size, 0.4, 4, 0.5, max_step=max_step)
    clients = np.array([0, 2, 3, 6, 8])
    tables, dense, personal, updates = run(task, data, settings, clients)
    fresh = personal_rows(task.tables, 0, 9)
    for position, client in enumerate(clients):
        own = {n: rows.of(np.array([client]), 5)[0] for n, rows in fresh.items()}
        shard = task.examples(data).take(np.array([position]))
        expected = train_client(task, tables, dense, own, shard, int(client), settings, 5, 3)
        for table in task.tables:
            if not table.shared:
                after = personal[table.name].of(np.array([client]), 5)[0]
                torch.testing.assert_close(after, expected.personal[table.name], rtol=1e-8, atol=1e-9)
                continue
            rows = updates.tables[table.name]
            a, b = int(rows.offsets[position]), int(rows.offsets[position + 1])
            touched = torch.tensor(sorted(expected.moved[table.name]), dtype=torch.int64)
            assert torch.equal(rows.rows[a:b], touched)
            torch.testing.assert_close(rows.counts[a:b].float(), expected.counts[table.name][touched])
            start = tables[table.name][touched]
            end = table.manifold.exp(start, table.manifold.from_frame(start, rows.values[a:b]))
            torch.testing.assert_close(end, expected.tables[table.name][touched], rtol=1e-8, atol=1e-9)
        for part in task.dense:
            end = dense[part.name] + updates.dense[part.name][position]
            torch.testing.assert_close(end, expected.dense[part.name], rtol=1e-8, atol=1e-9)
        assert updates.metrics["examples"][position] == expected.examples
        assert float(updates.metrics["loss"][position]) == pytest.approx(expected.loss, rel=1e-9)


@pytest.mark.parametrize("name", TASKS)
def test_chunks_and_company_do_not_matter(name: str) -> None:
    make, columns = TASKS[name]
    task, data = make(), shards(*columns)
    clients = np.array([0, 2, 3, 6, 8])
    settings = LocalTraining(SGD(), 2, 3, 0.3)
    _, _, personal, whole = run(task, data, settings, clients)
    _, _, personal_chunks, chunked = run(task, data, replace(settings, chunk_bytes=1), clients)
    assert np.array_equal(whole.clients, chunked.clients)
    for table, rows in whole.tables.items():
        other = chunked.tables[table]
        assert torch.equal(rows.rows, other.rows)
        assert torch.equal(rows.offsets, other.offsets)
        assert torch.equal(rows.counts, other.counts)
        torch.testing.assert_close(rows.values, other.values, rtol=1e-12, atol=1e-14)
    for part in task.dense:
        torch.testing.assert_close(whole.dense[part.name], chunked.dense[part.name], rtol=1e-12, atol=1e-14)
    for table in personal:
        torch.testing.assert_close(
            personal[table].points, personal_chunks[table].points, rtol=1e-12, atol=1e-14
        )


def test_the_sum_of_losses_is_their_mean_times_their_number() -> None:
    clients, task = np.array([0, 2, 3, 6, 8]), TASKS["tied"][0]()
    mean, total = (
        run(task, shards(*PAIRS), LocalTraining(SGD(), 1, 0, 0.3, reduction=name), clients)[3]
        for name in ("mean", "sum")
    )
    rows = mean.tables["item"]
    sizes = torch.repeat_interleave(torch.from_numpy(SIZES), rows.offsets.diff())[:, None]
    torch.testing.assert_close(rows.values * sizes, total.tables["item"].values)


def test_every_example_has_its_turn_once() -> None:
    """Over the rounds of a cycle all examples of all clients are trained on, in another order in the next cycle."""
    offsets, clients = offsets_of(SIZES), np.array([0, 2, 3, 6, 8])
    orders = []
    for cycle in range(2):
        turns = np.stack([in_turn(offsets, clients, 0.25, 5, 4 * cycle + r) for r in (1, 2, 3, 4)])
        assert (turns.sum(0) == 1).all()
        per_client = [turns[:, a:b].sum(1) for a, b in itertools.pairwise(offsets)]
        assert all(counts.max() - counts.min() <= 1 for counts in per_client)
        orders.append(turns)
    assert (orders[0] != orders[1]).any()
    alone = in_turn(np.array([0, SIZES[1]]), clients[1:2], 0.25, 5, 3)
    assert np.array_equal(alone, in_turn(offsets, clients, 0.25, 5, 3)[offsets[1] : offsets[2]])
    assert in_turn(offsets, clients, 1.0, 5, 3).all()


def test_a_share_of_the_examples_in_each_round_makes_a_pass() -> None:
    """Sums of gradients at one point: those of the rounds of a cycle add up to that of all examples."""
    clients, task = np.array([0, 2, 3, 6, 8]), TASKS["tied"][0]()
    whole = run(task, shards(*PAIRS), LocalTraining(SGD(), 1, 0, 0.3, reduction="sum"), clients)[3]
    part = LocalTraining(SGD(), 1, 0, 0.3, reduction="sum", share=0.25)
    total, examples = torch.zeros(NUM_ITEMS, 4, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for round in (1, 2, 3, 4):
        updates = run(task, shards(*PAIRS), part, clients, round)[3]
        total.index_add_(0, updates.tables["item"].rows, updates.tables["item"].values)
        examples += updates.metrics["examples"]
    expected = torch.zeros_like(total).index_add_(0, whole.tables["item"].rows, whole.tables["item"].values)
    torch.testing.assert_close(total, expected)
    assert examples.tolist() == SIZES.tolist()


def test_dense_parameters_may_have_a_rate_of_their_own() -> None:
    task, clients = WithDense(), np.array([0, 2, 3, 6, 8])
    one, other = (
        run(task, shards(*PAIRS), LocalTraining(SGD(), 1, 0, 0.3, dense_learning_rate=rate), clients)[3]
        for rate in (None, 0.03)
    )
    torch.testing.assert_close(one.tables["item"].values, other.tables["item"].values)
    for name, value in one.dense.items():
        torch.testing.assert_close(value * 0.1, other.dense[name], rtol=1e-6, atol=1e-9)


def test_pooled_data_keep_personal_rows_and_known_answers_apart() -> None:
    task = TASKS["bpr"][0]()
    data = shards("item")
    pooled = task.examples(data.pooled())
    settings = LocalTraining(SGD(), 1, 4, 0.3)
    tables = {t.name: initial_table(t, 0) for t in task.tables if t.shared}
    personal = personal_rows(task.tables, 0, data.num_clients)
    start = personal_rows(task.tables, 0, data.num_clients)["client"].of(np.arange(5), 5)
    list(train_cohort(task, tables, {}, personal, pooled, np.array([0]), settings, 5, 1))
    moved = (personal["client"].of(np.arange(5), 5) != start).flatten(1).any(1)
    assert moved.tolist() == (SIZES > 0).tolist()


def test_learning_rate_burns_in_and_decays() -> None:
    settings = LocalTraining(SGD(), 1, 1, 2.0, burn_in_rounds=2, burn_in_factor=0.1, decay=0.5)
    assert [settings.rate(round) for round in range(1, 6)] == pytest.approx([0.2, 0.2, 2.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "train.epochs"),
        ({"learning_rate": 0.0}, "train.learning_rate"),
        ({"batch_size": -1}, "train.batch_size"),
        ({"max_step": 0.0}, "train.max_step"),
        ({"decay": 0.0}, "train.decay"),
        ({"share": 0.0}, r"train.share must be in \(0, 1\], got 0"),
        (
            {"share": 0.5, "personal": "reconstructed"},
            "train.share must be 1 with train.personal=reconstructed",
        ),
        ({"reduction": "max"}, "train.reduction must be mean or sum, got 'max'"),
    ],
)
def test_settings_out_of_range(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalTraining(**{"optimizer": SGD(), "epochs": 1, "batch_size": 1, "learning_rate": 1.0, **change})
