"""Rows that all examples of a client in a step are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fedemb.manifolds import Euclidean
from fedemb.tasks.listwise import Blocks, not_looked_up
from fedemb.train.candidates import compared, draw_rows
from fedemb.types import Candidates, Drawn, Table

TABLE = Table("node", 40, 2, Euclidean(), 0.1, entity="node")
CLIENTS = np.array([3, 5, 9])


def test_draws_are_keyed_by_client_and_step_and_not_by_company() -> None:
    together = draw_rows(TABLE, Drawn(7), np.array([2, 0, 3]), 0, 1, 0, CLIENTS)
    assert together.bounds == [0, 2, 4, 5]
    assert together.owner.tolist() == [0, 2, 0, 2, 2]  # by step, then by client
    alone = draw_rows(TABLE, Drawn(7), np.array([3]), 0, 1, 0, CLIENTS[2:])
    assert torch.equal(together.ids[[1, 3, 4]], alone.ids)
    for change in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        assert not torch.equal(draw_rows(TABLE, Drawn(7), np.array([3]), *change, CLIENTS[2:]).ids, alone.ids)
    personal = Table("node", 40, 2, Euclidean(), 0.1, shared=False, entity="node")
    assert draw_rows(personal, Drawn(7), np.array([2, 0, 3]), 0, 1, 0, CLIENTS).owner.tolist() == [
        3,
        9,
        3,
        9,
        9,
    ]


@pytest.mark.parametrize(("count", "drawn"), [(40, 40), (1000, 40), (13, 13), (1, 1)])
def test_rows_are_uniform_ascending_and_all_of_them_at_most(count: int, drawn: int) -> None:
    draw = draw_rows(TABLE, Drawn(count), np.array([4000]), 0, 1, 0, CLIENTS[:1])
    ids = draw.ids[draw.draw]
    assert ids.shape == (4000, drawn)
    assert len(draw.ids) == (1 if drawn == 40 else 4000)
    torch.testing.assert_close(draw.weight[draw.draw].sum(1), torch.full((4000,), 40.0, dtype=torch.float64))
    assert (ids.diff(dim=1) >= 0).all()
    if drawn == 40:
        assert (ids == torch.arange(40)).all()
    else:
        assert stats.chisquare(np.bincount(ids.flatten().numpy(), minlength=40)).pvalue > 1e-3


def test_weighted_sums_estimate_those_over_the_table() -> None:
    probability = np.arange(1, 41) / 820
    drawn = Drawn(13, torch.from_numpy(np.cumsum(probability)))
    draw = draw_rows(TABLE, drawn, np.array([4000]), 0, 1, 0, CLIENTS[:1])
    assert (draw.ids.diff(dim=1) >= 0).all()
    repeated = draw.ids[:, 1:] == draw.ids[:, :-1]
    assert repeated.any()
    assert torch.equal(draw.weight[:, 1:] == 0, repeated)
    values = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimates = (draw.weight * values[draw.ids]).sum(1)
    assert stats.ttest_1samp(estimates.numpy(), float(values.sum())).pvalue > 1e-3
    times = (draw.weight * 13 * torch.from_numpy(probability)[draw.ids]).round()
    assert (times.sum(1) == 13).all()
    assert (
        stats.chisquare(
            np.bincount(draw.ids.flatten().numpy(), times.flatten().numpy(), 40), 52_000 * probability
        ).pvalue
        > 1e-3
    )


def test_nobody_draws_nothing() -> None:
    draw = draw_rows(TABLE, Drawn(7), np.zeros(3, dtype=np.int64), 0, 1, 0, CLIENTS)
    assert draw.bounds == [0]
    assert draw.ids.shape == (0, 7)


def candidates_by_hand() -> Candidates:
    points = torch.arange(12, dtype=torch.float32).view(6, 2)
    positions = torch.tensor([[0, 2, 2], [3, 4, 5]])
    weight = torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.5, 1.0]])
    client = torch.tensor([1, 0, 0])
    at = torch.tensor([[4, 3], [2, 1], [0, 0]])
    answers = torch.tensor([0, 0, 1, 2]), torch.tensor([5, -1, 1, 2])
    return compared(points, positions, weight, client, at, answers)


def test_lookups_and_known_answers_are_found_among_the_candidates() -> None:
    found = candidates_by_hand()
    assert found.points[0].tolist() == [[0, 1], [4, 5], [4, 5]]
    assert found.place.tolist() == [[1, 0], [1, -1], [0, 0]]
    assert found.known is not None
    assert found.known.tolist() == [[False, False, True], [False, False, False], [False, True, False]]
    assert not_looked_up(found).tolist() == [
        [False, False, False],
        [True, False, False],
        [False, False, False],
    ]


def test_blocks_hold_every_example_once() -> None:
    found = candidates_by_hand()
    blocks = Blocks.of(found)
    values = torch.tensor([[10.0], [20.0], [30.0]])
    filled = blocks.fill(values)
    assert filled[..., 0].tolist() == [[20, 30], [10, 0]]
    assert torch.equal(blocks.take(filled), values)
    one = Blocks.of(Candidates(found.points[:1], found.weight[:1], torch.zeros(3).long(), found.place))
    assert torch.equal(one.take(one.fill(values)), values)
