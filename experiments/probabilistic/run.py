"""What Gaussian rows are worth beside their most likely points, and added evidence beside averages, on CLINC150.

    python experiments/probabilistic/run.py CLINC_FOLDER [--seeds 3]

Trains by experiment=probabilistic, federated. Writes results.csv beside this file, a line for each run as it ends, and
takes up where it stopped; prints the table of the README and draws plot.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fedemb
from fedemb.report.canvas import COLOURS, INK, MUTED, as_written, axes, figure, save

HERE = Path(__file__).parent
MAPS = ("temperature", "platt", "isotonic", "histogram")
METRICS = [
    "accuracy", "nll", "nll_temperature", "brier", "brier_temperature", "ece", *(f"ece_{name}" for name in MAPS),
    "aurc_confidence", "aurc_temperature", "ood_auroc_confidence", "ood_auroc_temperature", "ood_auroc_epistemic",
    "ood_auroc_shift", "r_auroc_confidence", "r_auroc_temperature", "coverage", "own_coverage", "own_set_size",
]  # fmt: skip
FIELDS = ["model", "seed", "rounds", *METRICS, "worst_own_coverage", "train_seconds"]
MODELS: dict[str, list[str]] = {
    "gaussian": [],
    "point": ["task.posterior=point"],
    "means of natural parameters": ["aggregate.rows=fedavg"],
    "means of moments": [
        "aggregate.rows=ratio",
        "aggregate.mean=coordinates",
        "task.prior_precision=0.03",
        "task.label_prior_precision=0.01",
    ],
    "means of moments, all clients": ["aggregate.rows=fedavg", "aggregate.mean=coordinates"],
}
SEVERAL = ("gaussian", "point", "means of moments")  # trained with every seed


def done() -> list[dict[str, Any]]:
    path = HERE / "results.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trained(model: str, seed: int, folder: Path) -> dict[str, Any]:
    """A line of results.csv."""
    overrides = [
        "experiment=probabilistic", f"data.path={folder}", *MODELS[model], f"seed={seed}", "baselines=[]",
        "ablations=null", "evaluate_every=0",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        run = fedemb.train(overrides, folder=Path(place) / "run")
        found, work = run.summary["metrics"], run.summary["work"]
        values = {name: round(found[name], 4) for name in METRICS if found.get(name) is not None}
        worst = run.summary["per_client"].get("own_coverage", {}).get("worst_decile")
        line = {"model": model, "seed": seed, "rounds": work["rounds"], **values}
        line |= {
            "worst_own_coverage": "" if worst is None else round(worst, 4),
            "train_seconds": round(work["seconds"]),
        }
        return line


def write(rows: list[dict[str, Any]]) -> None:
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """A row for each metric: means over seeds, and the range of more than one."""
    print("| | " + " | ".join(MODELS) + " |\n|" + " --- |" * (len(MODELS) + 1))
    for metric in METRICS:
        cells = []
        for model in MODELS:
            values = [float(row[metric]) for row in rows if row["model"] == model and row[metric] != ""]
            text = f"{np.mean(values):.4f}" if values else ""
            if len(values) > 1:
                text += f" ({min(values):.4f}-{max(values):.4f})"
            cells.append(text)
        print(f"| {metric} | " + " | ".join(cells) + " |")


def draw(rows: list[dict[str, Any]]) -> None:
    """How well each model says when it is wrong, before and after the temperature."""
    made = figure(6.6, 3.4)
    panels = (
        ("calibration error", ("ece", "ece_temperature")),
        ("negative log likelihood", ("nll", "nll_temperature")),
        ("1 - AUROC, out of scope", ("ood_auroc_confidence", "ood_auroc_temperature")),
    )
    for place, (title, metrics) in enumerate(panels):
        panel = axes(made, 1, 3, place + 1)
        for shift, model in enumerate(("gaussian", "point")):
            own = [row for row in rows if row["model"] == model]
            values = [np.mean([float(row[metric]) for row in own]) for metric in metrics]
            heights = [1 - value for value in values] if "auroc" in metrics[0] else values
            at = [0.8 * shift + 2 * column for column in (0, 1)]
            panel.bar(at, heights, width=0.7, color=COLOURS[shift], label=model)
        panel.set_xticks([0.4, 2.4], ["before", "after T"])
        panel.tick_params(labelsize=8, colors=MUTED)
        panel.set_title(title, loc="left", fontsize=9, color=INK)
        if place == 0:
            as_written(panel.legend(frameon=False, fontsize=8, labelcolor=INK))
    made.tight_layout()
    save(made, HERE / "plot.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows = done()
    for model in MODELS:
        for seed in range(arguments.seeds if model in SEVERAL else 1):
            if any(row["model"] == model and int(row["seed"]) == seed for row in rows):
                continue
            line = trained(model, seed, arguments.path)
            rows.append({name: line.get(name, "") for name in FIELDS})
            write(rows)
            print(json.dumps(line), flush=True)
    show(rows)
    draw(rows)


if __name__ == "__main__":
    main()
