"""What Gaussian rows are worth beside their most likely points, on CLINC150 and CoDEx-S.

    python experiments/probabilistic/run.py CLINC_FOLDER CODEX_FOLDER [--seeds 3]

Trains by experiment=probabilistic and experiment=probabilistic_links, federated. Writes results.csv beside this file, a
line for each run as it ends, and takes up where it stopped; prints the tables of the README and draws plot.png.
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
LABELS = [
    "accuracy", "nll", "nll_temperature", "brier", "brier_temperature", "ece", *(f"ece_{name}" for name in MAPS),
    "aurc_confidence", "aurc_temperature", "ood_auroc_confidence", "ood_auroc_temperature", "ood_auroc_epistemic",
    "ood_auroc_shift", "r_auroc_confidence", "r_auroc_temperature", "coverage", "own_coverage", "own_set_size",
]  # fmt: skip
LINKS = [
    "mrr", "accuracy", "ece", *(f"ece_{name}" for name in MAPS), *(f"nll_{name}" for name in MAPS),
    *(f"brier_{name}" for name in MAPS),
]  # fmt: skip
METRICS = list(dict.fromkeys([*LABELS, *LINKS]))
FIELDS = ["data", "model", "seed", "rounds", *METRICS, "worst_own_coverage", "train_seconds"]
POINT = "task.posterior=point"
RUNS: dict[tuple[str, str], list[str]] = {
    ("clinc150", "gaussian"): [],
    ("clinc150", "point"): [POINT],
    ("clinc150", "means of natural parameters"): ["aggregate.rows=fedavg"],
    ("clinc150", "means of moments"): ["aggregate.rows=fedavg", "aggregate.mean=coordinates"],
    ("codex-s", "gaussian, 50 rounds"): ["rounds=50"],
    ("codex-s", "point, 50 rounds"): [POINT, "rounds=50"],
    ("codex-s", "gaussian, 100 rounds"): [],
    ("codex-s", "point, 100 rounds"): [POINT],
}
EXPERIMENTS = {"clinc150": "probabilistic", "codex-s": "probabilistic_links"}


def done() -> list[dict[str, Any]]:
    path = HERE / "results.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trained(data: str, model: str, seed: int, folder: Path) -> dict[str, Any]:
    """A line of results.csv."""
    overrides = [
        f"experiment={EXPERIMENTS[data]}", f"data.path={folder}", *RUNS[data, model], f"seed={seed}", "baselines=[]",
        "ablations=null", "evaluate_every=0",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        run = fedemb.train(overrides, folder=Path(place) / "run")
        found, work = run.summary["metrics"], run.summary["work"]
        values = {name: round(found[name], 4) for name in METRICS if found.get(name) is not None}
        worst = run.summary["per_client"].get("own_coverage", {}).get("worst_decile")
        line = {"data": data, "model": model, "seed": seed, "rounds": work["rounds"], **values}
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
    """A table for each data set, a row for each metric: means over seeds, and the range of more than one."""
    for data, metrics in (("clinc150", LABELS), ("codex-s", LINKS)):
        models = [model for own, model in RUNS if own == data]
        print(f"\n| {data} | " + " | ".join(models) + " |\n|" + " --- |" * (len(models) + 1))
        for metric in metrics:
            cells = []
            for model in models:
                values = [
                    float(row[metric])
                    for row in rows
                    if row["data"] == data and row["model"] == model and row[metric] != ""
                ]
                text = f"{np.mean(values):.4f}" if values else ""
                if len(values) > 1:
                    text += f" ({min(values):.4f}-{max(values):.4f})"
                cells.append(text)
            print(f"| {metric} | " + " | ".join(cells) + " |")


def draw(rows: list[dict[str, Any]]) -> None:
    """Of CLINC150, how well each model says when it is wrong, before and after the temperature."""
    made = figure(6.6, 3.4)
    panels = (
        ("calibration error", ("ece", "ece_temperature")),
        ("negative log likelihood", ("nll", "nll_temperature")),
        ("1 - AUROC, out of scope", ("ood_auroc_confidence", "ood_auroc_temperature")),
    )
    for place, (title, metrics) in enumerate(panels):
        panel = axes(made, 1, 3, place + 1)
        for shift, model in enumerate(("gaussian", "point")):
            own = [row for row in rows if row["data"] == "clinc150" and row["model"] == model]
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
    parser.add_argument("clinc", type=Path)
    parser.add_argument("codex", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    folders, rows = {"clinc150": arguments.clinc, "codex-s": arguments.codex}, done()
    for (data, model), _ in RUNS.items():
        for seed in range(arguments.seeds if model in ("gaussian", "point") else 1):
            if any((row["data"], row["model"], int(row["seed"])) == (data, model, seed) for row in rows):
                continue
            line = trained(data, model, seed, folders[data])
            rows.append({name: line.get(name, "") for name in FIELDS})
            write(rows)
            print(json.dumps(line), flush=True)
    show(rows)
    draw(rows)


if __name__ == "__main__":
    main()
