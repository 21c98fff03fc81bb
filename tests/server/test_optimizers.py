"""Server optimisers: formulas row by row, and rows that nobody touched never move."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedemb.manifolds import manifold
from fedemb.server.optimizers import RULES, RowOptimizer, Settings
from fedemb.types import RowTotal, Table, Total

S = Settings(learning_rate=0.3, momentum=0.8, beta1=0.7, beta2=0.9, tau=0.01)


def written_out(rule: str, steps: list[float]) -> float:
    """Total movement of one coordinate after these steps."""
    x = m = v = 0.0
    for d in steps:
        if rule == "sgd":
            x += S.learning_rate * d
        elif rule == "momentum":
            m = S.momentum * m + d
            x += S.learning_rate * m
        elif rule == "adagrad":
            v += d * d
            x += S.learning_rate * d / (v**0.5 + S.tau)
        else:
            sign = (v > d * d) - (v < d * d)
            v = v - (1 - S.beta2) * d * d * sign if rule == "yogi" else S.beta2 * v + (1 - S.beta2) * d * d
            m = S.beta1 * m + (1 - S.beta1) * d
            x += S.learning_rate * m / (v**0.5 + S.tau)
    return x


@pytest.mark.parametrize("rule", RULES)
def test_formulas_and_rest(rule: str) -> None:
    spec = Table("item", 5, 2, manifold("euclidean", -1, "float64"), 0.1)
    tables, dense = (
        {"item": torch.zeros(5, 2, dtype=torch.float64)},
        {"bias": torch.zeros(1, dtype=torch.float64)},
    )
    optimizer = RowOptimizer((spec,), rule, S)
    touched = [[1, 3], [3], [1, 3]]
    history: dict[int, list[float]] = {1: [], 3: []}
    dense_steps = []
    for number, rows in enumerate(touched):
        steps = torch.tensor([[0.5 - number + r, 0.0] for r in rows], dtype=torch.float64)
        before = tables["item"].clone()
        optimizer.step(
            tables, dense, Total({"item": RowTotal(torch.tensor(rows), steps)}, {"bias": steps[0, :1]}, 2)
        )
        for row, step in zip(rows, steps, strict=True):
            history[row].append(float(step[0]))
        dense_steps.append(float(steps[0, 0]))
        rest = [r for r in range(5) if r not in rows]
        assert torch.equal(before[rest], tables["item"][rest])
    for row, steps in history.items():
        assert float(tables["item"][row, 0]) == pytest.approx(written_out(rule, steps))
    assert float(dense["bias"]) == pytest.approx(written_out(rule, dense_steps))


@pytest.mark.parametrize("rule", RULES)
def test_state_can_be_taken_up(rule: str) -> None:
    spec = Table("node", 4, 2, manifold("poincare"), 0.1)
    total = Total(
        {"node": RowTotal(torch.tensor([0, 2]), torch.full((2, 2), 0.2, dtype=torch.float64))}, {}, 1
    )
    whole, parts = torch.zeros(4, 2, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    one = RowOptimizer((spec,), rule, S)
    for _ in range(4):
        one.step({"node": whole}, {}, total)
    first, second = RowOptimizer((spec,), rule, S), RowOptimizer((spec,), rule, S)
    for _ in range(2):
        first.step({"node": parts}, {}, total)
    second.restore({name: value.clone() for name, value in first.state().items()})
    for _ in range(2):
        second.step({"node": parts}, {}, total)
    assert torch.equal(whole, parts)
    assert float(whole[0].norm()) > 0


@pytest.mark.parametrize("rule", RULES)
def test_dense_parameters_may_have_a_rate_of_their_own(rule: str) -> None:
    spec = Table("item", 2, 1, manifold("euclidean", -1, "float64"), 0.1)
    step = torch.ones(1, 1, dtype=torch.float64)
    moved = []
    for settings in (S, replace(S, dense_learning_rate=S.learning_rate / 10)):
        table, bias = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        optimizer = RowOptimizer((spec,), rule, settings)
        for _ in range(2):
            total = Total({"item": RowTotal(torch.tensor([1]), step)}, {"bias": step[0]}, 1)
            optimizer.step({"item": table}, {"bias": bias}, total)
        moved.append((float(table[1]), float(bias)))
    (row, dense), (same_row, slower) = moved
    assert row == same_row == pytest.approx(dense)
    assert slower == pytest.approx(dense / 10)


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0}, {"momentum": 1.0}, {"beta2": -0.1}, {"tau": 0.0}, {"dense_learning_rate": 0}],
)
def test_constants_out_of_range(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"server.{next(iter(change))}"):
        Settings(**change)


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match=r"server\.optimizer must be one of"):
        RowOptimizer((), "adamw")
