"""Row rules against their formulas, written out client by client."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedemb.aggregate.check import reject, select
from fedemb.aggregate.plain import ROW_RULES, Plain
from fedemb.manifolds import manifold
from fedemb.types import RowUpdates, Table, Updates

NUM_ROWS, DIM, CLIENTS = 11, 3, 5


def table(space: str = "euclidean") -> Table:
    return Table("node", NUM_ROWS, DIM, manifold(space, -1.0, "float64"), 0.4)


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
                torch.from_numpy(rng.integers(1, 9, len(rows)).astype(float)),
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
                    weight = {"ratio": float(rows.counts[i]), "fedavg": float(data.weights[c])}.get(rule, 1.0)
                    weight = float(data.weights[c]) if rule == "sum" else weight
                    top, bottom = top + weight * rows.values[i], bottom + weight
        if held:
            if rule == "fedavg":
                bottom = float(data.weights.sum())
            if rule == "sum":
                bottom = 1.0
            if rule == "heat":
                bottom = max(1.0, len(data.clients) * float(holders[r]) / population)
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
        divisor = 1.0 if rule == "sum" else data.weights.sum()
        torch.testing.assert_close(total.dense["map"], weighted / divisor)


@pytest.mark.parametrize("space", ["poincare", "lorentz"])
@pytest.mark.parametrize("rule", ["ratio", "uniform", "fedavg"])
def test_centroid_is_the_centroid_of_the_trained_points(rule: str, space: str) -> None:
    spec, data = table(space), updates()
    origin = spec.manifold.origin(DIM).expand(NUM_ROWS, -1)
    frame = torch.from_numpy(np.random.default_rng(3).normal(size=(NUM_ROWS, DIM)))
    tables = {"node": spec.manifold.exp(origin, spec.manifold.from_frame(origin, frame))}
    plain = Plain((spec,), rule, "centroid")
    plain.add(data, tables)
    total = plain.finish(tables).tables["node"]
    rows = data.tables["node"]
    client = torch.repeat_interleave(rows.offsets.diff())
    for row, step in zip(total.rows, total.steps, strict=True):
        at = torch.nonzero(rows.rows == row).view(-1)
        x = tables["node"][row]
        points = [spec.manifold.exp(x, spec.manifold.from_frame(x, rows.values[i])) for i in at]
        weights = {
            "ratio": rows.counts[at],
            "uniform": torch.ones(len(at)),
            "fedavg": data.weights[client[at]],
        }[rule]
        weights = weights.double()
        if rule == "fedavg":
            points.append(x)
            weights = torch.cat([weights, (data.weights.sum() - weights.sum())[None]])
        expected = spec.manifold.centroid(torch.stack(points), weights)
        found = spec.manifold.exp(x, spec.manifold.from_frame(x, step))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aggregate\.rows must be one of"):
        Plain((table(),), "mean")
    with pytest.raises(ValueError, match="does not average"):
        Plain((table("poincare"),), "sum", "centroid")


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
