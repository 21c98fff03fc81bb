"""What attention with masks is worth when parts are missing, federated over departments and over artists, on Tate.

    python experiments/compositional/run.py ARTWORKS_JSONL SUBJECTS_CSV [--seeds 3]

Trains by experiment=compositional. Writes results.csv beside this file, a line for each run as it ends, and takes up
where it stopped; prints the table of the README and draws plot.png.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import fedemb
from fedemb.report.canvas import COLOURS, INK, MUTED, as_written, axes, figure, save

HERE = Path(__file__).parent
SHARES = (0, 20, 40, 50, 60, 80)
METRICS = [
    *("macro_ap" if share == 0 else f"macro_ap_without_{share}" for share in SHARES),
    "micro_ap",
    "label_ranking_ap",
    "group_map",
]
FIELDS = ["model", "seed", "rounds", *METRICS, "mean_of_clients", "seconds"]
OWN_ROUNDS = 360  # what the other rules need to settle: five passes
MODELS: dict[str, list[str]] = {
    "attention": [],
    "mean": ["task.combine=mean", f"rounds={OWN_ROUNDS}"],
    "zero fill": ["task.combine=zero_fill", f"rounds={OWN_ROUNDS}"],
    "concatenation": ["task.combine=concatenation"],
    "attention, artists": [
        "data.columns.client=artist",
        "data.columns.group=''",
        "data.keep_cold_clients=true",
    ],
    "attention, whole records": ["task.drop=0", "rounds=144"],
    "mean, whole records": ["task.combine=mean", "task.drop=0", "rounds=216"],
    "zero fill, whole records": ["task.combine=zero_fill", "task.drop=0", "rounds=216"],
}
BASELINES = {"attention": ["centralized", "local_only"]}
DRAWN = {
    "attention": (COLOURS[0], "-"),
    "mean": (COLOURS[1], "-"),
    "zero fill": (COLOURS[2], "-"),
    "attention, whole records": (COLOURS[0], (0, (4, 2))),
    "mean, whole records": (COLOURS[1], (0, (4, 2))),
    "zero fill, whole records": (COLOURS[2], (0, (4, 2))),
}


def done() -> list[dict[str, Any]]:
    path = HERE / "results.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def line_of(model: str, seed: int, metrics: dict[str, Any], spread: float | None, run: Any) -> dict[str, Any]:
    """A line of results.csv."""
    values = {name: "" if metrics.get(name) is None else round(metrics[name], 4) for name in METRICS}
    own = {"mean_of_clients": "" if spread is None else round(spread, 4)}
    return {"model": model, "seed": seed, "rounds": run.summary["work"]["rounds"], **values, **own}


def trained(model: str, seed: int, given: list[str]) -> list[dict[str, Any]]:
    """Lines of a run and its baselines."""
    baselines = BASELINES.get(model, [])
    overrides = [
        *given,
        *MODELS[model],
        f"seed={seed}",
        "ablations=null",
        f"baselines=[{','.join(baselines)}]",
        "evaluate_every=0",
    ]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = fedemb.train(overrides, folder=Path(folder) / "run")
        own = run.summary["per_client"]["label_ranking_ap"]["mean"]
        lines = [line_of(model, seed, run.summary["metrics"], own, run)]
        for name in baselines:
            lines.append(line_of(f"{model}, {name}", seed, run.summary["baselines"][name], None, run))
        lines[0]["seconds"] = round(time.perf_counter() - begin)
    return lines


def write(rows: list[dict[str, Any]]) -> None:
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def mean_of(rows: list[dict[str, Any]], model: str, metric: str) -> tuple[float, float, float, int] | None:
    """Mean, least and largest over seeds, and how many there are."""
    values = [float(row[metric]) for row in rows if row["model"] == model and row[metric] != ""]
    return (float(np.mean(values)), min(values), max(values), len(values)) if values else None


def show(rows: list[dict[str, Any]]) -> None:
    """The table of the README: means over seeds, and the range with all parts and with half of them."""
    print("| model | seeds | " + " | ".join(f"{share} %" for share in SHARES) + " | same artist |")
    print("|" + " --- |" * (len(SHARES) + 3))
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for metric in (*METRICS[: len(SHARES)], "group_map"):
            found = mean_of(rows, model, metric)
            text = "" if found is None else f"{found[0]:.3f}"
            if found and metric in ("macro_ap", "macro_ap_without_50") and found[3] > 1:
                text += f" ({found[1]:.3f}-{found[2]:.3f})"
            cells.append(text)
        count = len({row["seed"] for row in rows if row["model"] == model})
        print(f"| {model} | {count} | " + " | ".join(cells) + " |")


def draw(rows: list[dict[str, Any]]) -> None:
    made = figure(6.6, 3.8)
    panel = axes(made, 1, 1, 1)
    for model, (colour, dash) in DRAWN.items():
        found = [mean_of(rows, model, metric) for metric in METRICS[: len(SHARES)]]
        if all(found):
            panel.plot(
                SHARES,
                [one[0] for one in found if one],
                color=colour,
                linestyle=dash,
                linewidth=1.8,
                marker="o",
                markersize=3,
                label=model,
            )
    panel.set_title("macro average precision of 16 subjects", loc="left", fontsize=10.5, color=INK)
    panel.set_xlabel("% of parts removed at test time", color=MUTED, fontsize=9)
    as_written(panel.legend(frameon=False, fontsize=8, labelcolor=INK))
    save(made, HERE / "plot.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("subjects", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    given = [
        "experiment=compositional",
        f"data.path={arguments.path}",
        f"data.label_tree.path={arguments.subjects}",
    ]
    rows = done()
    for seed in range(arguments.seeds):
        for model in MODELS:
            if any(row["model"] == model and int(row["seed"]) == seed for row in rows):
                continue
            rows += trained(model, seed, given)
            write(rows)
            print(model, seed, rows[-1]["macro_ap"], flush=True)
    show(rows)
    draw(rows)


if __name__ == "__main__":
    main()
