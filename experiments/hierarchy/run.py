"""Do a few hyperbolic dimensions beat hundreds of Euclidean ones? Quality, bytes and search speed of the mammals.

    python experiments/hierarchy/run.py [--rounds 300] [--only links] [--again]

Writes results.csv and search.csv beside this file, a line for each model, and plot.png; prints as it goes.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fedemb

HERE = Path(__file__).parent
METRICS = ["link_map", "link_mean_rank", "map", "mean_rank", "distance_correlation", "chain_order"]
METRICS += ["norm_depth_correlation", "curvature"]
FIELDS = ["question", "manifold", "dim", "phase", *METRICS, "bytes_per_row", "cpu_seconds"]
QUESTIONS = {"links": ["data.test_share=0.2"], "reconstruction": []}
HYPERBOLIC, EUCLIDEAN = (5, 10, 20), (5, 10, 20, 50, 100, 200, 500)
# Each geometry has the best of what was tried for it: README.md.
SETTINGS: dict[str, list[str]] = {
    "poincare": [],
    "lorentz": ["task.manifold=lorentz"],
    "euclidean": [
        "task.manifold=euclidean",
        "task.init_scale=0.3",
        "server.learning_rate=0.3",
        "centralized.learning_rate=16",
    ],
}
SEARCHED_ROWS, QUERIES, NEIGHBOURS = 82_115, 256, 10


def models() -> list[tuple[str, int]]:
    hyperbolic = [("poincare", dim) for dim in HYPERBOLIC] + [("lorentz", 5)]
    return hyperbolic + [("euclidean", dim) for dim in EUCLIDEAN]


def bytes_per_row(manifold: str, dim: int) -> int:
    """Hyperbolic rows are float64, and the Lorentz model stores one number more."""
    return 8 * (dim + (manifold == "lorentz")) if manifold != "euclidean" else 4 * dim


def measure(question: str, manifold: str, dim: int, rounds: int) -> list[dict[str, Any]]:
    """Federated and centralized, both of one run."""
    given = [*QUESTIONS[question], *SETTINGS[manifold], f"task.dim={dim}", f"rounds={rounds}"]
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = fedemb.train([*given, "evaluate_every=0", "baselines=[centralized]"], Path(folder) / "run")
        summary = run.summary
    seconds = time.process_time() - begin
    lines = []
    for phase, metrics in {"federated": summary["metrics"], **summary["baselines"]}.items():
        line: dict[str, Any] = {"question": question, "manifold": manifold, "dim": dim, "phase": phase}
        line |= {name: round(metrics[name], 4) if name in metrics else "" for name in METRICS}
        line |= {"bytes_per_row": bytes_per_row(manifold, dim), "cpu_seconds": ""}
        lines.append(line)
    lines[0]["cpu_seconds"] = round(seconds, 1)
    return lines


def search_speed() -> list[dict[str, Any]]:
    """Exact nearest neighbours in a table of the nouns' height, all geometries in turn in one process, medians.

    The values are random: the time of a product does not depend on them. Poincaré rows are searched in the
    Lorentz model, where the nearest point has the largest product.
    """
    tables = {
        (manifold, dim): torch.randn(SEARCHED_ROWS, dim + (manifold != "euclidean"))
        for manifold, dim in models()
        if manifold != "lorentz"
    }
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in tables}
    for repeat in range(8):
        for (manifold, dim), table in tables.items():
            query = table[repeat * QUERIES : (repeat + 1) * QUERIES]
            begin = time.perf_counter()
            if manifold == "euclidean":
                score = torch.addmm(table.square().sum(1), query, table.T, alpha=-2)
            else:
                score = (query * torch.tensor([1.0] + [-1.0] * dim)) @ table.T
            score.topk(NEIGHBOURS, dim=1, largest=False)
            seconds[manifold, dim].append(time.perf_counter() - begin)
    lines = []
    for (manifold, dim), found in seconds.items():
        median = sorted(found[1:])[len(found[1:]) // 2]
        line = {"manifold": manifold, "dim": dim, "queries_per_second": round(QUERIES / median)}
        lines.append({**line, "mebibytes": round(tables[manifold, dim].nbytes / 2**20, 1)})
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Links and reconstruction against bytes per row, federated and centralized."""
    from fedemb.report.canvas import COLOURS, axes, figure, save

    made = figure(9.0, 3.8)
    panels = (("links", "link_map", "held-out links"), ("reconstruction", "map", "reconstruction"))
    for number, (question, metric, title) in enumerate(panels, start=1):
        panel = axes(made, 1, 2, number)
        for colour, manifold in zip(COLOURS, ("poincare", "euclidean"), strict=False):
            for style, phase in (("-", "federated"), ("--", "centralized")):
                chosen = (question, manifold, phase)
                points = sorted(
                    (int(row["dim"]), float(row[metric]))
                    for row in rows
                    if (row["question"], row["manifold"], row["phase"]) == chosen
                )
                if points:
                    x, y = zip(*points, strict=True)
                    label = f"{manifold}, {phase}"
                    panel.plot(x, y, style, color=colour, marker="o", markersize=3.5, label=label)
        panel.set_xscale("log")
        panel.set_ylim(0, 1)
        panel.set_title(f"{title}: MAP", loc="left", fontsize=10.5)
        panel.set_xlabel("dimensions", fontsize=9)
        panel.legend(frameon=False, fontsize=8)
    save(made, path)


def read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--only", choices=[*QUESTIONS, "search"])
    parser.add_argument("--again", action="store_true", help="also what results.csv holds already")
    arguments = parser.parse_args()
    rows = [] if arguments.again else read(HERE / "results.csv")
    done = {(row["question"], row["manifold"], int(row["dim"])) for row in rows}
    for question in QUESTIONS:
        for manifold, dim in models() if arguments.only in (None, question) else []:
            if (question, manifold, dim) not in done:
                for line in measure(question, manifold, dim, arguments.rounds):
                    rows.append(line)
                    print(*line.values(), flush=True)
                write(HERE / "results.csv", rows, FIELDS)
    if arguments.only in (None, "search"):
        found = search_speed()
        for line in found:
            print(*line.values(), flush=True)
        write(HERE / "search.csv", found, list(found[0]))
    draw(rows, HERE / "plot.png")


if __name__ == "__main__":
    main()
