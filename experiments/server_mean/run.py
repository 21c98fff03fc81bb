"""How far each mean that the server can take lies from the Fréchet mean of the clients' points.

    python experiments/server_mean/run.py [--repetitions 2000] [--seed 0]

Writes results.csv and plot.png beside this file and prints the tables of the README.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedemb.aggregate.plain import MEANS, Plain
from fedemb.manifolds import manifold
from fedemb.report.canvas import COLOURS, INK, MUTED, axes, figure, save
from fedemb.server.optimizers import RowOptimizer
from fedemb.types import Manifold, RowUpdates, Table, Updates

HERE = Path(__file__).parent
RADII, SPREADS, DRIFTS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0), (0.25, 0.5, 1.0, 1.5, 2.0), (0.0, 1.0)
DIMS, CLIENTS = (2, 5, 10), (5, 6, 10, 20)
# What is compared, in the order of the columns: the mean, the drift, colour and dash, its name.
CURVES = (
    ("tangent", 0.0, COLOURS[0], "-", "tangent, received row the centre"),
    ("tangent", 1.0, COLOURS[0], (0, (4, 2)), "tangent, received row 1 away"),
    ("centroid", 0.0, COLOURS[2], "-", "centroid"),
    ("coordinates", 0.0, COLOURS[1], "-", "coordinates"),
)
COLUMNS = [
    *("model", "dim", "num_clients", "radius", "spread", "drift"),
    *("mean", "excess_percent", "standard_error"),
]
ITERATIONS, TOLERANCE = 1_000, 1e-9
Line = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where clients' points and the received row lie; distances in units of the radius of curvature.

    Attributes:
        model: Of hyperbolic space of curvature -1.
        dim: Its dimensions.
        num_clients: Points of a row.
        radius: Distance of the points' centre from the origin.
        spread: Root mean square distance of a point from the centre: ``spread / sqrt(dim)`` is the standard
            deviation of each coordinate in the orthonormal frame at the centre.
        drift: Distance of the received row from the centre, in any direction.
    """

    model: str = "poincare"
    dim: int = 10
    num_clients: int = 20
    radius: float = 3.0
    spread: float = 1.0
    drift: float = 0.0


def readings(dim: int, num_clients: int) -> dict[str, Setting]:
    """The two things that a spread of 1 can mean."""
    distance = Setting(dim=dim, num_clients=num_clients)
    return {"distance": distance, "each coordinate": replace(distance, spread=round(math.sqrt(dim), 4))}


def settings() -> list[Setting]:
    """The grid, then other numbers of clients and the other reading of spread, then the other model."""
    grid = [
        Setting(dim=dim, radius=radius, spread=spread)
        for dim in DIMS
        for radius in RADII
        for spread in SPREADS
    ]
    read = [setting for dim in DIMS for n in CLIENTS for setting in readings(dim, n).values()]
    lorentz = [Setting("lorentz", spread=spread) for spread in SPREADS]
    still = dict.fromkeys([*grid, *read, *lorentz])  # each once
    return [replace(setting, drift=drift) for setting in still for drift in DRIFTS]


def draw(setting: Setting, space: Manifold, repetitions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Received rows ``(repetitions, coordinates)`` and points ``(clients, repetitions, coordinates)``.

    All settings of a shape use the same numbers, so that they differ in nothing but themselves.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, setting.dim, generator=generator, dtype=torch.float64)

    def move(start: Tensor, frame: Tensor) -> Tensor:
        return space.exp(start, space.from_frame(start, frame))

    out, aside = (torch.nn.functional.normalize(normal(repetitions), dim=-1) for _ in range(2))
    frames = normal(setting.num_clients, repetitions) * (setting.spread / math.sqrt(setting.dim))
    centre = move(space.origin(setting.dim).expand(repetitions, -1), setting.radius * out)
    return move(centre, setting.drift * aside), move(centre, frames)


def serve(mean: str, space: Manifold, dim: int, received: Tensor, points: Tensor) -> Tensor:
    """The table after a round in which every client trained every row to its own point."""
    num_clients, num_rows, _ = points.shape
    table = Table("row", num_rows, dim, space, 0.0)
    deltas = space.to_frame(received, space.log(received, points)).flatten(0, 1)
    rows = torch.arange(num_rows).repeat(num_clients)
    offsets = torch.arange(num_clients + 1) * num_rows
    updates = Updates(
        clients=np.arange(num_clients),
        tables={"row": RowUpdates(rows, deltas, torch.ones(len(rows), dtype=torch.float64), offsets)},
        dense={},
        weights=torch.ones(num_clients, dtype=torch.float64),
        metrics={},
    )
    tables = {"row": received.clone()}
    aggregator = Plain((table,), "uniform", mean)
    aggregator.add(updates, tables)
    RowOptimizer((table,), "sgd").step(tables, {}, aggregator.finish(tables))
    return tables["row"]


def frechet_mean(space: Manifold, points: Tensor) -> Tensor:
    """The point of least sum of squared distances, ``(repetitions, coordinates)``.

    Reference: Karcher, "Riemannian center of mass and mollifier smoothing", 1977: steps along the mean
    log, here divided by the mean of ``d / tanh d``, which bounds the curvature of the cost, so each step lowers it.
    """
    mean = space.centroid(points.transpose(0, 1), torch.ones(points.shape[1], points.shape[0]))
    for _ in range(ITERATIONS):
        step = space.log(mean, points).mean(0)
        if float(space.norm(mean, step).max()) < TOLERANCE:
            return mean
        distance = space.distance(mean, points)
        mean = space.exp(mean, step / (distance / distance.tanh()).mean(0)[:, None])
    raise RuntimeError(f"the Fréchet mean did not settle to {TOLERANCE} in {ITERATIONS} iterations")


def measure(setting: Setting, repetitions: int, seed: int) -> list[Line]:
    """A line for each mean: excess cost over that of the Fréchet mean, averaged over the repetitions."""
    space = manifold(setting.model)
    received, points = draw(setting, space, repetitions, seed)

    def cost(result: Tensor) -> Tensor:
        return space.distance(result, points).square().mean(0)

    least = cost(frechet_mean(space, points))
    lines = []
    for mean in MEANS:
        excess = 100 * (cost(serve(mean, space, setting.dim, received, points)) / least - 1)
        error = float(excess.std()) / math.sqrt(repetitions)
        found = {"excess_percent": round(float(excess.mean()), 6), "standard_error": round(error, 6)}
        lines.append(asdict(setting) | {"mean": mean} | found)
    return lines


def pick(lines: Sequence[Line], setting: Setting, mean: str) -> Line:
    """The line of a setting and a mean."""
    wanted = asdict(setting) | {"mean": mean}
    return next(line for line in lines if all(line[name] == value for name, value in wanted.items()))


def tabulate(lines: Sequence[Line], header: str, named: Sequence[tuple[str, Setting]]) -> None:
    """Prints a Markdown table, standard errors in brackets; ``|`` in a header or a name begins a column."""
    print(f"\n| {header} | {' | '.join(label for *_, label in CURVES)} |")
    print("|" + "---:|" * (header.count("|") + 1 + len(CURVES)))
    for name, setting in named:
        found = [pick(lines, replace(setting, drift=drift), mean) for mean, drift, *_ in CURVES]
        cells = [f"{line['excess_percent']:.3f} ({line['standard_error']:.3f})" for line in found]
        print(f"| {name} | {' | '.join(cells)} |")


def draw_plot(lines: Sequence[Line], path: Path) -> None:
    """Excess cost against spread and against radius; standard errors are smaller than the dots."""
    made = figure(9.2, 3.6)
    left, right = axes(made, 1, 2, 1), axes(made, 1, 2, 2)
    spread = f"spread of the clients (radius {Setting.radius:g})"
    radius = f"distance of their centre from the origin (spread {Setting.spread:g})"
    for panel, label, values, along in (
        (left, spread, SPREADS, [Setting(spread=value) for value in SPREADS]),
        (right, radius, RADII, [Setting(radius=value) for value in RADII]),
    ):
        for mean, drift, colour, dash, legend in CURVES:
            found = [pick(lines, replace(setting, drift=drift), mean)["excess_percent"] for setting in along]
            panel.plot(
                values,
                found,
                **{"color": colour, "linestyle": dash, "label": legend},
                **{"linewidth": 1.8, "marker": "o", "markersize": 3.5},
            )
        panel.set_yscale("log")
        panel.set_ylim(5e-5, 100)
        panel.set_yticks([10.0**power for power in range(-4, 3)])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.tick_params(which="minor", left=False)
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.set_xlabel(label, color=MUTED, fontsize=9)
    left.set_title("excess Fréchet cost, %", loc="left", fontsize=10.5, color=INK)
    right.tick_params(labelleft=False)
    made.legend(
        *left.get_legend_handles_labels(),
        **{"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncol": len(CURVES), "handlelength": 2.6},
        **{"frameon": False, "fontsize": 9, "labelcolor": INK},
    )
    made.subplots_adjust(wspace=0.06)
    save(made, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2_000, help="rows of the table")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        line for setting in settings() for line in measure(setting, arguments.repetitions, arguments.seed)
    ]
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    tabulate(lines, "spread (radius 3)", [(f"{spread:g}", Setting(spread=spread)) for spread in SPREADS])
    tabulate(lines, "radius (spread 1)", [(f"{radius:g}", Setting(radius=radius)) for radius in RADII])
    named = [
        (f"{dim} | {clients} | {reading}", setting)
        for dim in DIMS
        for clients in CLIENTS
        for reading, setting in readings(dim, clients).items()
    ]
    tabulate(lines, "dimensions (radius 3) | clients | what has spread 1", named)
    pairs = [
        [
            pick(lines, Setting(model, spread=spread), mean)["excess_percent"]
            for model in ("poincare", "lorentz")
        ]
        for spread in SPREADS
        for mean in MEANS
    ]
    print(
        f"\nPoincaré and Lorentz differ by at most {max(abs(a - b) for a, b in pairs):g} points of per cent"
    )
    draw_plot(lines, HERE / "plot.png")


if __name__ == "__main__":
    main()
