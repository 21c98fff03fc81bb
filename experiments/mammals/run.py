"""What moves federated training of the mammals, and where it stays behind pooled training.

    python experiments/mammals/run.py [--rounds 500] [--only clients] [--seeds 1]

Writes results.csv beside this file, a line for each run, and prints the table.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import fedemb

HERE = Path(__file__).parent
FIELDS = ["study", "setting", "seed", "phase", "map", "mean_rank", "norm_depth_correlation", "cpu_seconds"]
STUDIES = {
    "geometry": [
        ["task.dim=10"],
        ["task.dim=5"],
        ["task.dim=5", "task.manifold=lorentz"],
        ["task.dim=5", "task.manifold=euclidean"],
    ],
    "clients": [["task.dim=5", f"partition.num_clients={n}"] for n in (1, 10, 160)],
    "partition": [["task.dim=5", "partition=iid", "partition.num_clients=40"]],
    "local_epochs": [["task.dim=5", f"train.epochs={n}", f"rounds={{rounds}}//{n}"] for n in (2, 5)],
    "server_learning_rate": [["task.dim=5", f"server.learning_rate={rate}"] for rate in (0.03, 0.3)],
    "server_optimizer": [
        ["task.dim=5", "server.optimizer=sgd", "server.learning_rate=1.5"],
        ["task.dim=5", "aggregate.rows=ratio", "server.optimizer=sgd", "server.learning_rate=1.0"],
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--only", choices=[*STUDIES])
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    if arguments.only and (HERE / "results.csv").is_file():
        with (HERE / "results.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["study"] != arguments.only]
    for study, settings in STUDIES.items():
        if arguments.only in (None, study):
            for overrides in settings:
                for seed in range(arguments.seeds):
                    rows += measure(study, overrides, seed, arguments.rounds)
                    write(rows)


def measure(study: str, overrides: list[str], seed: int, rounds: int) -> list[dict[str, object]]:
    """Lines of one run: federated, and centralized where the study is about geometry."""
    with_central = "[centralized]" if study == "geometry" else "[]"
    given = []
    for override in overrides:
        if "{rounds}" in override:
            divisor = int(override.split("//")[1])
            override = f"rounds={rounds // divisor}"
        given.append(override)
    if not any(override.startswith("rounds=") for override in given):
        given.append(f"rounds={rounds}")
    given += [f"seed={seed}", "evaluate_every=0", f"baselines={with_central}"]
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        summary = fedemb.train(given, folder=Path(folder) / "run").summary
    seconds = time.process_time() - begin
    lines = []
    found = {"federated": summary["metrics"], **summary.get("baselines", {})}
    for phase, metrics in found.items():
        line = {"study": study, "setting": " ".join(overrides), "seed": seed, "phase": phase}
        line |= {name: round(metrics[name], 4) for name in FIELDS[4:7]}
        line["cpu_seconds"] = round(seconds, 1) if phase == "federated" else ""
        lines.append(line)
        print(*line.values(), flush=True)
    return lines


def write(rows: list[dict[str, object]]) -> None:
    """All lines so far."""
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
