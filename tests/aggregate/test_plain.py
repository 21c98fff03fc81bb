"""Row rules against their formulas, written out client by client."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedemb.aggregate.check import reject, select
from fedemb.aggregate.plain import MEANS, ROW_RULES, Plain
from fedemb.manifolds import manifold
from fedemb.types import Manifold, RowUpdates, Table, Updates

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # geoopt imports torch.jit
    import geoopt
    from geoopt.manifolds.lorentz.math import lorentz_to_poincare

NUM_ROWS, DIM, CLIENTS = 11, 3, 5


def table(space: str = "euclidean", curvature: float = -1.0) -> Table:
    return Table("node", NUM_ROWS, DIM, manifold(space, curvature, "float64"), 0.4)


def updates(seed: int = 0, clients: int = CLIENTS) -> Updates:
    rng = np.random.default_rng(seed)
    held = [np.sort(rng.choice(NUM_ROWS - 2, rng.integers(0, 6), replace=False)) for _ in range(clients)]
    rows = torch.from_numpy(np.concatenate(held))
    offsets = torch.tensor([0, *np.cumsum([len(h) for h in held])])
    return Updates(
        clients=np.arange(clients) * 2,
        tables={
            "node": RowUpdates(
                rows,
                torch.from_numpy(rng.normal(size=(len(rows), DIM))),
                torch.from_numpy(rng.integers(0, 5, len(rows)).astype(float)),  # 0: only drawn
                offsets,
            )
        },
        dense={"map": torch.from_numpy(rng.normal(size=(clients, 2, 2)))},
        weights=torch.from_numpy(rng.random(clients)),
        metrics={"examples": torch.full((clients,), 7.0)},
    )


def by_hand(rule: str, data: Updates, holders: torch.Tensor, population: int) -> dict[int, torch.Tensor]:
    rows = data.tables["node"]
    out = {}
    for r in range(NUM_ROWS):
        top, bottom, held = torch.zeros(DIM, dtype=torch.float64), 0.0, False
        for c in range(len(data.clients)):
            for i in range(int(rows.offsets[c]), int(rows.offsets[c + 1])):
                if int(rows.rows[i]) == r:
                    held = True
                    weight = {
                        "ratio": float(rows.counts[i]) or 2**-20,
                        "fedavg": float(data.weights[c]),
                    }.get(rule, 1.0 if rows.counts[i] > 0 else 2**-20)
                    weight = float(data.weights[c]) if rule in ("sum", "population") else weight
                    top, bottom = top + weight * rows.values[i], bottom + weight
        if held:
            if rule == "fedavg":
                bottom = float(data.weights.sum())
            if rule == "sum":
                bottom = 1.0
            if rule == "heat":
                bottom = max(1.0, len(data.clients) * float(holders[r]) / population)
            if rule == "population":
                held_by = float(holders[r])
                bottom = max(1.0, len(data.clients) * held_by / population) / held_by
            out[r] = top / bottom
    return out


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("rule", ROW_RULES)
def test_rules_equal_their_formulas_whatever_the_parts(rule: str, parts: int) -> None:
    data, tables = updates(), {"node": torch.zeros(NUM_ROWS, DIM, dtype=torch.float64)}
    holders = torch.arange(NUM_ROWS) + 1
    plain = Plain((table(),), rule, holders={"node": holders}, num_clients=9)
    for _ in range(2):  # a second round starts from nothing
        for positions in np.array_split(np.arange(CLIENTS), parts):
            plain.add(select(data, positions), tables)
        total = plain.finish(tables)
        expected = by_hand(rule, data, holders, 9)
        assert total.tables["node"].rows.tolist() == sorted(expected)
        assert total.num_clients == CLIENTS
        for row, step in zip(total.tables["node"].rows.tolist(), total.tables["node"].steps, strict=True):
            torch.testing.assert_close(step, expected[row])
        weighted = (data.weights[:, None, None] * data.dense["map"]).sum(0)
        divisor = {"sum": 1.0, "population": CLIENTS / 9}.get(rule, float(data.weights.sum()))
        torch.testing.assert_close(total.dense["map"], weighted / divisor)


def scattered(space: Manifold, scale: float = 1.0) -> Tensor:
    origin = space.origin(DIM).expand(NUM_ROWS, -1)
    frame = scale * torch.from_numpy(np.random.default_rng(3).normal(size=(NUM_ROWS, DIM)))
    return space.exp(origin, space.from_frame(origin, frame))


def mean_by_geoopt(mean: str, space: Manifold, points: Tensor, weights: Tensor) -> Tensor:
    """In unit ball coordinates; the Lorentzian centroid is the gyromidpoint in another model."""
    c = torch.tensor(-space.curvature, dtype=torch.float64)
    ball = c.sqrt() * points if space.name == "poincare" else lorentz_to_poincare(points * c.sqrt(), c**0)
    if mean == "coordinates":
        return (weights[:, None] * ball).sum(0) / weights.sum()
    return geoopt.PoincareBall(c=1.0).weighted_midpoint(ball, weights)


@pytest.mark.parametrize("curvature", [-1.0, -0.6])
@pytest.mark.parametrize("space", ["poincare", "lorentz"])
@pytest.mark.parametrize("rule", ["ratio", "uniform", "fedavg"])
@pytest.mark.parametrize("mean", ["centroid", "coordinates"])
def test_means_of_points_are_those_of_the_trained_points(
    mean: str, rule: str, space: str, curvature: float
) -> None:
    spec, data = table(space, curvature), updates()
    tables = {"node": scattered(spec.manifold)}
    plain = Plain((spec,), rule, mean)
    for part in np.array_split(np.arange(CLIENTS), 2):
        plain.add(select(data, part), tables)
    total = plain.finish(tables).tables["node"]
    rows = data.tables["node"]
    client = torch.repeat_interleave(rows.offsets.diff())
    c = torch.tensor(-curvature, dtype=torch.float64)
    oracle = geoopt.PoincareBall(c=c) if space == "poincare" else geoopt.Lorentz(k=1 / c)
    assert total.rows.tolist() == rows.rows.unique().tolist()
    for row, step in zip(total.rows, total.steps, strict=True):
        at = torch.nonzero(rows.rows == row).view(-1)
        x = tables["node"][row]
        points = [oracle.expmap(x, spec.manifold.from_frame(x, rows.values[i])) for i in at]
        weights = {
            "ratio": rows.counts[at].clamp_min(2**-20),
            "uniform": (rows.counts[at] > 0).double().clamp_min(2**-20),
            "fedavg": data.weights[client[at]],
        }[rule]
        weights = weights.double()
        if rule == "fedavg":
            points.append(x)
            weights = torch.cat([weights, (data.weights.sum() - weights.sum())[None]])
        expected = mean_by_geoopt(mean, spec.manifold, torch.stack(points), weights)
        found = spec.manifold.to_ball(spec.manifold.exp(x, spec.manifold.from_frame(x, step)))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_two_points_on_a_ray_show_what_averaging_coordinates_does() -> None:
    """Tangent mean and centroid are the middle of 2 and 4; in the ball it is 2 artanh((tanh 1 + tanh 2) / 2)."""
    middles = {
        "tangent": 3.0,
        "centroid": 3.0,
        "coordinates": 2 * math.atanh((math.tanh(1) + math.tanh(2)) / 2),
    }
    assert set(middles) == set(MEANS)
    for name in ("poincare", "lorentz"):
        spec = Table("node", 1, 2, manifold(name), 0.4)
        space, along = spec.manifold, torch.tensor([[0.6, 0.8]], dtype=torch.float64)
        origin = space.origin(2)[None]
        tables = {"node": space.exp(origin, space.from_frame(origin, 3 * along))}
        rows = RowUpdates(torch.zeros(2).long(), torch.cat((-along, along)), torch.ones(2), torch.arange(3))
        data = Updates(np.arange(2), {"node": rows}, {}, torch.ones(2), {})
        for mean, expected in middles.items():
            plain = Plain((spec,), "uniform", mean)
            plain.add(data, tables)
            step = plain.finish(tables).tables["node"].steps
            found = space.distance(origin, space.exp(tables["node"], space.from_frame(tables["node"], step)))
            torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("rule", ["ratio", "uniform", "fedavg"])
def test_every_mean_is_the_plain_mean_on_a_flat_table(rule: str, mean: str) -> None:
    tables = {"node": scattered(table().manifold)}
    plain, tangent = Plain((table(),), rule, mean), Plain((table(),), rule)
    for each in (plain, tangent):
        each.add(updates(), tables)
    assert torch.equal(plain.finish(tables).tables["node"].steps, tangent.finish(tables).tables["node"].steps)


@pytest.mark.parametrize("mean", ["centroid", "coordinates"])
@pytest.mark.parametrize("space", ["poincare", "lorentz"])
def test_far_out_means_of_points_stay_in_the_space(space: str, mean: str) -> None:
    spec = table(space)
    tables = {"node": scattered(spec.manifold, scale=30.0)}
    plain = Plain((spec,), "uniform", mean)
    plain.add(updates(), tables)
    total = plain.finish(tables).tables["node"]
    start = tables["node"][total.rows]
    end = spec.manifold.exp(start, spec.manifold.from_frame(start, total.steps))
    assert total.steps.isfinite().all()
    assert (spec.manifold.to_ball(end).norm(dim=-1) < 1).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aggregate\.rows must be one of"):
        Plain((table(),), "mean")
    with pytest.raises(
        ValueError, match=r"aggregate\.mean must be one of tangent, centroid, coordinates, got 'frechet'"
    ):
        Plain((table(),), "ratio", "frechet")
    for mean in ("centroid", "coordinates"):
        with pytest.raises(ValueError, match=f"mean={mean} averages points, but .* does not average"):
            Plain((table("poincare"),), "sum", mean)


def broken(fault: str) -> Updates:
    data = updates()
    rows = data.tables["node"]
    values, ids, weights = rows.values.clone(), rows.rows.clone(), data.weights.clone()
    position = int(rows.offsets.diff().ge(2).nonzero()[0])
    at = int(rows.offsets[position])
    if fault == "NaN or infinity":
        values[at, 1] = float("nan")
    if fault == "rows out of range":
        ids[int(rows.offsets[position + 1]) - 1] = NUM_ROWS
    if fault == "rows repeated or unsorted":
        ids[at + 1] = ids[at]
    if fault.startswith("weight"):
        weights[position] = -1.0
    changed = replace(rows, values=values, rows=ids)
    return replace(data, tables={"node": changed}, weights=weights)


@pytest.mark.parametrize(
    "fault",
    ["NaN or infinity", "rows out of range", "rows repeated or unsorted", "weight not a number from 0 up"],
)
def test_one_bad_client_is_left_out_and_named(fault: str) -> None:
    data = broken(fault)
    limits, dense = {"node": (NUM_ROWS, DIM)}, {"map": torch.zeros(2, 2)}
    assert reject(updates(), limits, dense)[1] == {}
    sound, reasons = reject(data, limits, dense)
    position = int(data.tables["node"].offsets.diff().ge(2).nonzero()[0])
    assert reasons == {int(data.clients[position]): fault}
    assert sound is not None
    assert sound.clients.tolist() == [c for i, c in enumerate(data.clients.tolist()) if i != position]
    kept = select(updates(), np.array([i for i in range(CLIENTS) if i != position]))
    assert torch.equal(sound.tables["node"].rows, kept.tables["node"].rows)
    assert torch.equal(sound.tables["node"].values, kept.tables["node"].values)


@pytest.mark.parametrize("change", ["table", "shape", "offsets", "dense"])
def test_wrong_shapes_reject_everybody(change: str) -> None:
    data = updates()
    rows = data.tables["node"]
    bad = {
        "table": replace(data, tables={"other": rows}),
        "shape": replace(data, tables={"node": replace(rows, values=rows.values[:, :1])}),
        "offsets": replace(data, tables={"node": replace(rows, offsets=rows.offsets[:-1])}),
        "dense": replace(data, dense={"map": data.dense["map"][:, :1]}),
    }[change]
    sound, reasons = reject(bad, {"node": (NUM_ROWS, DIM)}, {"map": torch.zeros(2, 2)})
    assert sound is None
    assert set(reasons) == set(data.clients.tolist())
