"""tasks/dynamic.py: its loss and scores by an obvious loop, and what each option is there for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedemb.data.shards import Shards, group_by_client, offsets_of
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import SettingError
from fedemb.tasks.contexts import DAY
from fedemb.tasks.dynamic import Dynamic
from fedemb.types import Dataset

NUM_ITEMS = 7
SETTINGS: dict[str, Any] = {
    "dim": 3, "negatives": 3, "own_negatives": 2, "rows": "slices", "state": "exponential", "context": "history",
    "length": 4, "repeats": True, "slice": "10 days", "walk": 1.0, "num_waves": 2, "l2": 0.0, "init_scale": 0.5,
    "temperature": 0.7,
}  # fmt: skip


def events(num_events: int = 40, num_clients: int = 3) -> Shards:
    rng = np.random.default_rng(0)
    client = np.sort(rng.integers(0, num_clients, num_events))
    time = rng.integers(0, 30 * DAY, num_events)
    order = np.lexsort((time, client))
    columns = {"item": rng.integers(0, NUM_ITEMS, num_events), "time": time[order]}
    columns["session"] = columns["time"] // DAY
    return group_by_client(columns, client, num_clients)


def dataset(train: Shards | None = None) -> Dataset:
    train = events() if train is None else train
    counts = np.bincount(train.columns["item"], minlength=NUM_ITEMS)
    names = Vocabulary.of([f"i{i}" for i in range(NUM_ITEMS)], counts)
    span = (
        (int(train.columns["time"].min()), int(train.columns["time"].max()))
        if "time" in train.columns
        else None
    )
    return Dataset(train, {"item": names}, entity_of={"item": "item"}, span=span)


def built(**changes: Any) -> Dynamic:
    return Dynamic.build(dataset(), **{**SETTINGS, **changes})


def random_tables(task: Dynamic) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tables = {t.name: torch.randn(t.num_rows, t.dim, generator=generator) for t in task.tables}
    return tables | {d.name: 0.3 * torch.randn(d.shape, generator=generator) for d in task.dense}


def slow_score(
    task: Dynamic, tables: dict[str, Tensor], item: int, time: int, past: list[tuple[int, float]]
) -> float:
    """The score of an item at a time, for a client with a past of (item, days ago), the latest first."""
    number = min(max(int(np.searchsorted(task.bounds, time, side="right")) - 1, 0), task.num_slices - 1)
    vector = tables["item"][item].clone()
    if task.rows == "slices":
        vector += tables["item_slice"][item * task.num_slices + number]
        bias = float(tables["bias_slice"][item * task.num_slices + number])
    else:
        bias = float(tables["bias"][item])
    if task.rows == "continuous":
        share = min(max((time - task.bounds[0]) / (task.bounds[-1] - task.bounds[0]), 0.0), 1.0)
        features = [2 * share - 1]
        for j in range(task.num_waves):
            change, phase = tables["wave"][:, j].tolist()
            features.append(math.sin(math.pi * (j + 1) * (1 + change) * share + phase))
        features = [feature / math.sqrt(len(features)) for feature in features]
        for f, feature in enumerate(features):
            vector += feature * tables["item_wave"][item, f * task.dim : (f + 1) * task.dim]
            bias += feature * float(tables["bias_wave"][item, f])
    state = torch.zeros(task.dim)
    if task.state == "gated":
        recent = past[: task.gated_steps]
        of_item, of_state, offset, decay = tables["gate"]
        earlier = recent[-1][1] if recent else 0.0
        for other, age in reversed(recent):
            state = state * torch.exp(-(earlier - age) * torch.exp(-decay) / 30)
            gate = torch.sigmoid(of_item * tables["context"][other] + of_state * state + offset)
            state, earlier = (1 - gate) * state + gate * tables["context"][other], age
        state = state * torch.exp(-earlier * torch.exp(-decay) / 30)
    else:
        total = 1.0
        for other, age in past:
            rate = 0.0 if task.state == "mean" else 1 / (30 * math.exp(float(tables["decay"])))
            state += math.exp(-age * rate) * tables["context"][other]
            total += math.exp(-age * rate)
        state /= total
    affinity = float(state @ vector) / task.temperature
    score = bias + affinity
    ages = [age for other, age in past if other == item]
    if task.repeats and ages:
        w, mixture = (
            tables["repeating"][:4],
            torch.nn.functional.softplus(tables["repeating"][4:] + torch.tensor([-0.5, 0.5, 1.0])),
        )
        memory = sum(
            float(m) * sum(math.exp(-age / days) for age in ages)
            for m, days in zip(mixture, (7.0, 60.0, math.inf), strict=True)
        )
        score += float(tables["repeat"][item]) + 1 + float(w[0]) + (1 + float(w[1])) * math.log(memory)
        score += (-0.5 + float(w[2])) * bias + (-0.5 + float(w[3])) * affinity
    return score


WAYS = [
    {"rows": "static", "state": "mean"}, {"rows": "slices"}, {"rows": "continuous"}, {"state": "gated"},
    {"state": "gated", "gated_steps": 2}, {"rows": "continuous", "num_waves": 0, "repeats": False, "state": "gated"},
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_scores_equal_an_obvious_loop(way: dict[str, Any]) -> None:
    task, history = built(**way, length=50), events()
    tables = random_tables(task)
    now = np.array([30 * DAY, 45 * DAY, 31 * DAY])
    got = task.scores(tables, {}, history, now)
    for client in range(3):
        lines = range(history.offsets[client], history.offsets[client + 1])
        past = [
            (int(history.columns["item"][i]), (now[client] - history.columns["time"][i]) / DAY) for i in lines
        ][::-1]
        for item in range(NUM_ITEMS):
            expected = slow_score(task, tables, item, int(now[client]), past)
            assert float(got[client, item]) == pytest.approx(expected, rel=2e-4, abs=2e-4)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_loss_equals_an_obvious_loop(way: dict[str, Any]) -> None:
    task, data = built(**way, l2=0.2), events()
    tables, examples = random_tables(task), task.examples(data)
    columns = {name: torch.from_numpy(column) for name, column in examples.columns.items()}
    uniforms = torch.rand(len(columns["item"]), task.num_draws, dtype=torch.float64)
    batch = task.sample(columns, uniforms)
    ids = task.lookup(batch)
    vectors = {t.name: tables[t.name][ids[t.name]] for t in task.tables}
    size = len(columns["item"])
    dense = {d.name: tables[d.name].expand(size, *d.shape) for d in task.dense}
    got = task.loss(vectors, dense, batch)
    for line in range(0, size, 3):
        ages = examples.columns["age"][line]
        past = [
            (int(i), float(a)) for i, a in zip(examples.columns["context"][line], ages, strict=True) if i >= 0
        ]
        time, item = int(examples.columns["time"][line]), int(examples.columns["item"][line])

        def score(candidate: int, time: int = time, past: list[tuple[int, float]] = past) -> float:
            return slow_score(task, tables, candidate, time, past)

        own, held = score(item), [i for i, _ in past]
        total = math.exp(own)
        for negative in batch["negatives"][line].tolist():
            counted_elsewhere = task.own_negatives and negative in held
            if negative != item and not counted_elsewhere:
                total += NUM_ITEMS / task.negatives * math.exp(score(negative))
        for drawn in batch["own"][line].tolist() if task.own_negatives else []:
            if drawn not in (-1, item):
                total += len(held) / task.own_negatives / held.count(drawn) * math.exp(score(drawn))
        norms = sum(float(tables["context"][i].square().sum()) for i in held)
        looked_up = [
            item,
            *([d if d >= 0 else item for d in batch["own"][line].tolist()] if task.own_negatives else []),
        ]
        for candidate in [*looked_up, *batch["negatives"][line].tolist()]:
            place = [*looked_up, *batch["negatives"][line].tolist()].index(candidate)
            vector = vectors["item"][line, place].clone()
            if task.rows == "slices":
                vector += vectors["item_slice"][line, place]
            if task.rows == "continuous":
                vector = task.vectors_at(tables, time)[candidate]
            norms += float(vector.square().sum())
            norms += float(tables["repeat"][candidate].square().sum()) if task.repeats else 0.0
        assert float(got[line]) == pytest.approx(math.log(total) - own + 0.1 * norms, rel=2e-4, abs=2e-4)


def test_sampled_terms_add_up_to_the_softmax_over_all_items() -> None:
    """Over many draws, the mean of what the candidates stand for is the sum over all items but the example's own."""
    task, data = built(negatives=40, own_negatives=20, length=50), events()
    tables, examples = random_tables(task), task.examples(data)
    line = int(np.flatnonzero((examples.columns["context"] >= 0).sum(1) >= 6)[0])
    one = {
        name: torch.from_numpy(column[[line]]).repeat_interleave(3_000, 0)
        for name, column in examples.columns.items()
    }
    batch = task.sample(one, torch.rand(3_000, task.num_draws, dtype=torch.float64))
    ids = task.lookup(batch)
    dense = {d.name: tables[d.name].expand(3_000, *d.shape) for d in task.dense}
    losses = task.loss({t.name: tables[t.name][ids[t.name]] for t in task.tables}, dense, batch)
    context, age = examples.columns["context"][line], examples.columns["age"][line]
    past = [(int(i), float(a)) for i, a in zip(context, age, strict=True) if i >= 0]
    time, item = int(examples.columns["time"][line]), int(examples.columns["item"][line])
    exact = [math.exp(slow_score(task, tables, i, time, past)) for i in range(NUM_ITEMS)]
    estimated = (torch.exp(losses.double()) * exact[item]).mean()
    assert float(estimated) == pytest.approx(sum(exact), rel=0.02)


def test_vectors_at_are_those_of_the_slice_and_hold_still_outside() -> None:
    task = built()
    tables = random_tables(task)
    for number in range(task.num_slices):
        time = int(task.bounds[number])
        expected = tables["item"] + tables["item_slice"].view(NUM_ITEMS, -1, 3)[:, number]
        torch.testing.assert_close(task.vectors_at(tables, time), expected)
    torch.testing.assert_close(
        task.vectors_at(tables, -(10**9)), task.vectors_at(tables, int(task.bounds[0]))
    )
    torch.testing.assert_close(
        task.vectors_at(tables, 10**10), task.vectors_at(tables, int(task.bounds[-1]) - 1)
    )
    waves = built(rows="continuous")
    tables = random_tables(waves)
    torch.testing.assert_close(
        waves.vectors_at(tables, 10**10), waves.vectors_at(tables, int(waves.bounds[-1]))
    )


def test_a_state_is_carried_forward_in_time_only() -> None:
    """What a client takes after an event changes nothing about that event's example."""
    task, data = built(), events()
    examples = task.examples(data)
    earlier = Shards(
        {n: c[: data.offsets[1] - 4] for n, c in data.columns.items()},
        offsets_of(np.array([data.offsets[1] - 4])),
    )
    for name, column in task.examples(earlier).columns.items():
        assert np.array_equal(column, examples.columns[name][: data.offsets[1] - 4]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": "wavy"}, "task.rows must be one of static, slices, continuous"),
        ({"state": "lstm"}, "task.state must be one of mean"),
        ({"context": "window"}, "needs task.state=mean and task.repeats=false"),
        ({"dim": 0}, "task.dim must be at least 1"),
        ({"walk": -1.0}, "task.walk must be at least 0"),
        ({"walk": float("nan")}, "task.walk must be at least 0"),
        ({"init_scale": 0.0}, "task.init_scale must be > 0"),
        ({"temperature": 0.0}, "task.temperature must be > 0"),
        ({"slice": "moment"}, "task.slice must be"),
        ({"follow": ["i1", "nothing"]}, "task.follow must name items of the vocabulary, got 'nothing'"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        built(**changes)


def test_data_without_times_are_refused() -> None:
    train = events()
    timeless = Shards({"item": train.columns["item"]}, train.offsets)
    with pytest.raises(SettingError, match="task=dynamic needs who took which item, and when"):
        Dynamic.build(dataset(timeless), **SETTINGS)
