"""walk.py and server/prior.py: the tridiagonal solve is the least-squares problem that it says it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedemb.manifolds import Euclidean
from fedemb.run.baselines import _smooth_own
from fedemb.server.optimizers import RowOptimizer, Settings
from fedemb.server.prior import RandomWalk
from fedemb.train.apply import apply_
from fedemb.train.personal import PersonalRows
from fedemb.types import RowTotal, RowUpdates, Table, Total, Updates
from fedemb.walk import Evidence, smooth_, smoothed


def by_least_squares(points: np.ndarray, weights: np.ndarray, precision: float) -> np.ndarray:
    """Minimises the sum of squares of the module's docstring, one coordinate after another."""
    size = len(points)
    steps = np.eye(size) - np.eye(size, k=-1)  # the first row is the distance from the base
    rows = np.vstack((np.sqrt(weights)[:, None] * np.eye(size), np.sqrt(precision) * steps))
    columns = []
    for column in points.T:
        wanted = np.concatenate((np.sqrt(weights) * column, np.zeros(size)))
        columns.append(np.linalg.lstsq(rows, wanted, rcond=None)[0])
    return np.stack(columns, axis=1)


@given(st.integers(1, 9), st.floats(0.01, 50), st.integers(0, 10**6))
def test_smoothing_is_least_squares(num_slices: int, precision: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, weights = rng.normal(size=(3, num_slices, 2)), rng.exponential(size=(3, num_slices))
    weights[rng.random(weights.shape) < 0.4] = 0.0
    got = smoothed(torch.from_numpy(points), torch.from_numpy(weights), precision).numpy()
    for entity in range(3):
        expected = by_least_squares(points[entity], weights[entity], precision)
        np.testing.assert_allclose(got[entity], expected, rtol=1e-6, atol=1e-8)


def test_what_nobody_saw_lies_between_and_after_stays_where_it_was() -> None:
    points, weights = torch.zeros(1, 6, 1), torch.zeros(1, 6)
    points[0, 1], points[0, 4], weights[0, 1], weights[0, 4] = 1.0, 4.0, 1e9, 1e9
    got = smoothed(points.double(), weights.double(), 1.0).flatten()
    torch.testing.assert_close(got, torch.tensor([0.5, 1, 2, 3, 4, 4]).double(), rtol=1e-6, atol=1e-6)


def test_no_prior_leaves_the_rows_alone() -> None:
    points = torch.randn(2, 3, 2)
    assert torch.equal(smoothed(points, torch.ones(2, 3), 0.0), points)


SPEC = Table("item_slice", 12, 2, Euclidean(torch.float64), 0.0, num_slices=4, walk=2.0)


def test_only_entities_that_moved_are_smoothed() -> None:
    table = torch.randn(12, 2, dtype=torch.float64)
    before = table.clone()
    smooth_(SPEC, table, torch.tensor([5, 6]), torch.ones(12))
    assert torch.equal(table[:4], before[:4])
    assert torch.equal(table[8:], before[8:])
    expected = by_least_squares(before[4:8].numpy(), np.ones(4), 2.0)
    np.testing.assert_allclose(table[4:8].numpy(), expected)


@pytest.mark.parametrize("weights", [None, torch.tensor([3.0, 1.0])])
def test_rows_come_to_rest_where_data_and_prior_are_in_balance(weights: torch.Tensor | None) -> None:
    """Clients that pull rows to fixed targets, round after round: the rows end at the maximum of the posterior."""
    targets = torch.tensor([[1.0, -2.0], [4.0, 3.0]], dtype=torch.float64)
    rows = torch.tensor([4, 6])
    tables = {"item_slice": torch.zeros(12, 2, dtype=torch.float64)}
    optimizer = RandomWalk(RowOptimizer((SPEC,), "sgd"), (SPEC,))
    for _ in range(4_000):
        step = 0.3 * (targets - tables["item_slice"][rows])
        optimizer.step(tables, {}, Total({"item_slice": RowTotal(rows, step, weights)}, {}, 1))
    strength = np.zeros(4)
    strength[[0, 2]] = 0.3 * (np.ones(2) if weights is None else weights.numpy())
    wanted = np.zeros((4, 2))
    wanted[[0, 2]] = targets.numpy()
    expected = by_least_squares(wanted, strength, 2.0)
    np.testing.assert_allclose(tables["item_slice"][4:8].numpy(), expected, rtol=1e-5)
    assert not tables["item_slice"][:4].any()


def test_rows_of_earlier_rounds_are_held_by_what_they_stand_on() -> None:
    """Means: a slice that no client of this round saw stays where those of earlier rounds put it."""
    tables = {"item_slice": torch.zeros(12, 2, dtype=torch.float64)}
    spec = Table("item_slice", 12, 2, Euclidean(torch.float64), 0.0, num_slices=4, walk=1e-6)
    optimizer = RandomWalk(RowOptimizer((spec,), "sgd"), (spec,))
    first = RowTotal(torch.tensor([4]), torch.ones(1, 2, dtype=torch.float64), torch.tensor([5.0]))
    second = RowTotal(torch.tensor([7]), -torch.ones(1, 2, dtype=torch.float64), torch.tensor([5.0]))
    optimizer.step(tables, {}, Total({"item_slice": first}, {}, 1))
    state = optimizer.state()
    again = RandomWalk(RowOptimizer((spec,), "sgd"), (spec,))
    again.restore(state)
    again.step(tables, {}, Total({"item_slice": second}, {}, 1))
    np.testing.assert_allclose(tables["item_slice"][[4, 7], 0].numpy(), [1.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(tables["item_slice"][[5, 6], 0].numpy(), [2 / 3, 1 / 3], atol=1e-4)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("weights", [None, torch.tensor([5.0, 5.0])], ids=["sums", "means"])
def test_a_slice_that_nobody_saw_lies_between_those_that_somebody_did(
    rule: str, weights: torch.Tensor | None
) -> None:
    """Twenty rounds with a weak prior, as it is shipped: ends are pulled to 1 and 3, and what is between follows."""
    spec = Table("item_slice", 14, 1, Euclidean(), 0.0, num_slices=7, walk=0.01)
    tables, rows = {"item_slice": torch.zeros(14, 1)}, torch.tensor([7, 13])
    optimizer = RandomWalk(RowOptimizer((spec,), rule, Settings(learning_rate=0.3, tau=0.05)), (spec,))
    for _ in range(20):
        step = 0.5 * (torch.tensor([[1.0], [3.0]]) - tables["item_slice"][rows])
        optimizer.step(tables, {}, Total({"item_slice": RowTotal(rows, step, weights)}, {}, 1))
    own = tables["item_slice"][7:].flatten()
    first, last = float(own[0]), float(own[-1])
    assert last - first > 1
    np.testing.assert_allclose(own.numpy(), np.linspace(first, last, 7), atol=1e-3)
    assert not tables["item_slice"][:7].any()


def test_pooled_and_lonely_clients_have_the_same_prior() -> None:
    """What a cohort of one trained, and what clients trained who are alone, is smoothed as the server smooths."""
    rows, steps = torch.tensor([4, 6]), torch.randn(2, 2, dtype=torch.float64)
    moved = torch.zeros(12, 2, dtype=torch.float64)
    moved[rows] = steps
    expected = by_least_squares(moved[4:8].numpy(), np.array([1.0, 0, 1, 0]), 2.0)
    update = RowUpdates(rows, steps, torch.ones(2), torch.tensor([0, 2]))
    updates = Updates(np.array([0]), {"item_slice": update}, {}, torch.ones(1), {})
    pooled, tuned = (torch.zeros(12, 2, dtype=torch.float64) for _ in range(2))
    apply_((SPEC,), {"item_slice": pooled}, {}, updates, Evidence())
    np.testing.assert_allclose(pooled[4:8].numpy(), expected)
    assert not pooled[:4].any()
    apply_((SPEC,), {"item_slice": tuned}, {}, updates)
    np.testing.assert_allclose(
        tuned.numpy(), moved.numpy(), err_msg="fine-tuning leaves rows where it puts them"
    )
    alone = replace(SPEC, shared=False)
    lonely = PersonalRows.empty(alone, 0, 2)
    lonely.put(torch.tensor([16, 18]), steps)
    _smooth_own((alone,), {"item_slice": lonely})
    np.testing.assert_allclose(lonely.points[16:20].numpy(), expected)
    assert not lonely.points[:16].any()
