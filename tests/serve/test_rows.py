from __future__ import annotations

import torch

from fedemb.manifolds import Euclidean, Poincare
from fedemb.serve.rows import Change, Rows, Version, nearest
from fedemb.types import Table


def test_versions_do_not_see_later_ones() -> None:
    """Many windows, few rows each: every version stays what it was, and is what a plain copy would be."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.rand(200, 3, generator=generator)
    version, kept, folded = Rows.of(plain.clone()), [], 0
    for _ in range(60):
        kept.append((version, plain.clone()))
        rows = torch.randperm(200, generator=generator)[:5].sort().values
        values = torch.rand(5, 3, generator=generator)
        plain = plain.clone()
        plain[rows] = values
        version = version.replaced(rows, values)
        folded += not len(version.newer)
    assert 0 < folded < 30, "rows must be gathered, and now and then folded into a new base"
    ids = torch.arange(200)
    for rows_then, plain_then in kept:
        assert torch.equal(rows_then.take(ids), plain_then)
        assert torch.equal(rows_then.whole(), plain_then)


def test_a_window_shares_what_it_does_not_touch() -> None:
    base = Rows.of(torch.rand(1000, 3))
    after = base.replaced(torch.tensor([5]), torch.ones(1, 3))
    assert after.base is base.base
    assert after.values.shape == (1, 3)
    assert base.replaced(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)) is base


def test_change_makes_the_next_version() -> None:
    before = Version(3, 10, {"item": Rows.of(torch.zeros(4, 2))}, {"scale": torch.zeros(())})
    change = Change(4, 17, {"item": torch.tensor([1])}, {"item": torch.ones(1, 2)}, {"scale": torch.ones(())})
    after = change.applied(before)
    assert (after.number, after.sequence) == (4, 17)
    assert after.whole["item"].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert float(after.dense["scale"]) == 1
    assert float(before.dense["scale"]) == 0
    assert before.whole["item"].sum() == 0


def test_neighbours_know_rows_that_changed() -> None:
    table = Table("item", 3, 2, Euclidean(), 0.0)
    rows = Rows(torch.eye(3, 2), torch.tensor([2]), torch.tensor([[5.0, 0.1]]))
    found = nearest(Version(0, 0, {"item": rows}, {}), table, None, torch.tensor([1.0, 0.0]), 2)
    assert [at for at, _ in found] == [0, 2]
    assert abs(found[0][1] - 1) < 1e-6


def test_curved_neighbours_are_near_by_distance() -> None:
    """By cosine the far point on the same ray would come first."""
    space = Poincare()
    points = torch.tensor([[0.1, 0.0], [0.95, 0.0], [0.0, 0.1]], dtype=torch.float64)
    table = Table("node", 3, 2, space, 0.0)
    found = nearest(Version(0, 0, {"node": Rows.of(points)}, {}), table, None, points[0], 3)
    assert [at for at, _ in found] == [0, 2, 1]
    assert found[1][1] == float(space.distance(points[0], points[2]))
