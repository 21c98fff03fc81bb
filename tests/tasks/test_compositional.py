"""tasks/compositional.py: by an obvious loop, with parts missing, with nothing at all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedemb.data.grams import NOTHING
from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.tasks.compositional import COMBINATIONS, Compositional, without
from fedemb.train.initial import initial_dense, initial_table
from tests.gallery import gallery

SETTINGS: dict[str, Any] = {
    "dim": 4, "combine": "attention", "drop": 0.8, "drop_values": 0.2, "hidden": 3, "waves": 2, "init_scale": 0.4,
}  # fmt: skip


def made(label: str = "multi", **changes: Any) -> tuple[Compositional, dict[str, Tensor], dict[str, Tensor]]:
    """A task, tables that are not what they began as, and all records of training."""
    data = gallery(label)
    task = Compositional.build(data, **{**SETTINGS, **changes})
    generator = torch.Generator().manual_seed(0)
    points = {t.name: initial_table(t, 0) for t in task.tables} | {
        d.name: initial_dense(d, 0) for d in task.dense
    }
    points = {name: p + 0.3 * torch.randn(p.shape, generator=generator) for name, p in points.items()}
    columns = task.examples(data.train).columns
    return task, points, {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}


def loop(task: Compositional, points: dict[str, Tensor], batch: dict[str, Tensor], line: int) -> Tensor:
    """Scores of one record."""
    found: dict[int, Tensor] = {}
    for place, part in enumerate(task.components):
        cell = batch[part.column][line]
        if part.num_values:
            ids = [int(i) for i in cell if i >= 0]
            if ids:
                found[place] = sum(points[part.name][i + 1] for i in ids) / math.sqrt(len(ids))  # type: ignore[assignment]
        elif not math.isnan(cell):
            x = float(cell)
            waves = [
                1.0,
                *(math.sin(math.pi * w * x) for w in (1, 2)),
                *(math.cos(math.pi * w * x) for w in (1, 2)),
            ]
            found[place] = torch.tensor(waves) @ points[f"waves_{part.name}"]
    z = points["prior"]
    if task.combine == "attention":
        asked = []
        for label, query in enumerate(points["query"]):
            own = [
                float(x @ query) / math.sqrt(task.dim) + float(points["offset"][label, p])
                for p, x in found.items()
            ]
            weights = torch.softmax(torch.tensor([*own, 0.0]), 0)
            mean = sum(w * x for w, x in zip(weights, [*found.values(), points["prior"]], strict=True))
            asked.append(mean * math.sqrt(len(found) + 1))
        z = torch.stack(asked)
    elif found and task.combine == "concatenation":
        z = sum(x @ points["map"][p] for p, x in found.items())  # type: ignore[assignment]
    elif found:
        z = sum(found.values()) / (len(found) if task.combine == "mean" else len(task.components))  # type: ignore[assignment]
    if task.hidden:
        z = z + torch.relu(z @ points["inner"] + points["inner_bias"]) @ points["outer"]
    return (points["label"] * z).sum(-1) / math.sqrt(task.dim) + points["label_bias"][:, 0]


def looked_up(task: Compositional, points: dict[str, Tensor], batch: dict[str, Tensor]) -> tuple[Any, Any]:
    size = len(batch["label"])
    dense = {d.name: points[d.name].expand(size, *d.shape) for d in task.dense}
    return {name: points[name][ids] for name, ids in task.lookup(batch).items()}, dense


@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("label", ["multi", "category"])
def test_scores_and_loss_by_an_obvious_loop(label: str, combine: str, hidden: int) -> None:
    task, points, batch = made(label, combine=combine, hidden=hidden)
    scores = task.label_scores(points, batch)
    losses = task.loss(*looked_up(task, points, batch), batch)
    assert len(losses) == len(batch["label"]) > 50
    for line in range(len(losses)):
        expected = loop(task, points, batch, line)
        torch.testing.assert_close(scores[line], expected, rtol=1e-4, atol=1e-5)
        true = [int(i) for i in batch["label"][line] if i >= 0]
        if label == "category":
            loss = -torch.log_softmax(expected, 0)[true[0]]
        else:
            p = torch.sigmoid(expected)
            loss = -sum(torch.log(p[i] if i in true else 1 - p[i]) for i in range(len(p)))
        torch.testing.assert_close(losses[line], loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_a_record_without_any_part_has_the_prior(combine: str) -> None:
    task, points, batch = made(combine=combine)
    gone = torch.ones(len(batch["label"]), len(task.components), dtype=torch.bool)
    nothing = without(task.components, batch, gone)
    composed = task.composed(points, nothing)
    torch.testing.assert_close(composed, points["prior"].expand_as(composed))
    vectors, dense = looked_up(task, points, nothing)
    leaves = [*vectors.values(), *dense.values()]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    names = [*vectors, *dense]
    of = dict(zip(names, leaves, strict=True))
    loss = task.loss({n: of[n] for n in vectors}, {n: of[n] for n in dense}, nothing)
    assert loss.isfinite().all()
    gradients = dict(zip(names, torch.autograd.grad(loss.sum(), leaves, allow_unused=True), strict=True))
    assert all(g is None or g.isfinite().all() for g in gradients.values())
    prior = gradients["prior"]
    assert prior is not None
    assert prior.abs().sum() > 0
    for part in task.coded:  # the row for nothing is all that is looked up, and it stays
        assert (task.lookup(nothing)[part.name] == 0).all()
        found = gradients[part.name]
        assert found is None or not found.any()


def test_attention_weights_can_be_read() -> None:
    task, points, batch = made()
    weights = task.attention_weights(points, batch)
    assert weights.shape == (len(batch["label"]), task.label.num_values, len(task.components) + 1)
    torch.testing.assert_close(weights.sum(2), torch.ones(weights.shape[:2]))
    assert not torch.allclose(weights[:, 0], weights[:, 1])
    for place, part in enumerate(task.components):
        column = batch[part.column]
        lacking = column.isnan() if column.is_floating_point() else (column < 0).all(1)
        assert lacking.any()
        assert (weights[lacking][..., place] == 0).all()
        assert (weights[~lacking][..., place] > 0).all()
        # what is missing re-weights the rest in proportion
        gone = torch.zeros(len(weights), len(task.components), dtype=torch.bool)
        gone[:, place] = True
        rest = task.attention_weights(points, without(task.components, batch, gone))
        expected = weights.clone()
        expected[..., place] = 0
        torch.testing.assert_close(rest, expected / expected.sum(2, keepdim=True), rtol=1e-4, atol=1e-6)
    mean, points, batch = made(combine="mean")
    with pytest.raises(SettingError, match=r"need task.combine=attention"):
        mean.attention_weights(points, batch)


def test_drops_follow_the_uniform_numbers() -> None:
    task, _, batch = made()
    size, count = len(batch["label"]), len(task.components)
    nobody = task.sample(batch, torch.ones(size, task.num_draws, dtype=torch.float64) * 0.999)
    assert all(torch.equal(nobody[name].nan_to_num(9), batch[name].nan_to_num(9)) for name in batch)
    everybody = torch.zeros(size, task.num_draws, dtype=torch.float64)
    everybody[:, 0] = 1.0
    dropped = task.sample(batch, everybody)
    for part in task.components:
        column = dropped[part.column]
        assert column.isnan().all() if column.is_floating_point() else (column == -1).all()
    values = torch.ones(size, task.num_draws, dtype=torch.float64)
    values[:, 1 + count] = 0.0  # the first value of the first component
    first = task.sample(batch, values)
    assert (first["part_title"][:, 0] == -1).all()
    assert torch.equal(first["part_title"][:, 1:], batch["part_title"][:, 1:])
    plain, _, batch = made(drop=0.0, drop_values=0.0)
    assert plain.num_draws == 0
    assert plain.sample(batch, torch.zeros(size, 0)) is batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "task.dim must be at least 1"),
        ({"hidden": -1}, "task.hidden must be at least 0"),
        ({"waves": 0}, "task.waves must be at least 1"),
        ({"combine": "sum"}, "task.combine must be one of attention, mean"),
        ({"drop": 1.5}, r"task.drop must be in \[0, 1\]"),
        ({"drop_values": 1.0}, r"task.drop_values must be in \[0, 1\)"),
        ({"init_scale": 0.0}, "task.init_scale must be > 0"),
    ],
)
def test_wrong_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        made(**change)


def test_other_data_are_refused() -> None:
    from tests.graphs import graph

    with pytest.raises(SettingError, match="use data=records"):
        Compositional.build(graph(), **SETTINGS)


def test_a_part_that_nobody_has_is_no_number() -> None:
    """``medium`` stands nowhere in training: ids without any value, all missing, for good."""
    data = gallery()
    parts = [replace(part, num_values=0) if part.name == "medium" else part for part in data.components]
    columns = {**data.train.columns, "part_medium": np.full_like(data.train.columns["part_medium"], NOTHING)}
    train = Shards(columns, data.train.offsets)
    task = Compositional.build(replace(data, components=tuple(parts), train=train), **SETTINGS)
    assert {t.name: t.num_rows for t in task.tables}["medium"] == 1
    batch = {n: torch.from_numpy(np.array(c)) for n, c in task.examples(train).columns.items()}
    sampled = task.sample(batch, torch.rand(train.num_examples, task.num_draws))
    assert (sampled["part_medium"] == NOTHING).all()
    points = {t.name: initial_table(t, 0) for t in task.tables}
    points |= {d.name: initial_dense(d, 0) for d in task.dense}
    assert task.label_scores(points, sampled).isfinite().all()
    assert not any(d.name == "waves_medium" for d in task.dense)
