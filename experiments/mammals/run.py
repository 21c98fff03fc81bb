"""What moves federated training of the mammals, and where it stays behind pooled training.

    python experiments/mammals/run.py [--rounds 500] [--only clients] [--seeds 1] [--again]

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
# Fifty negatives for each example, as in the literature; the defaults have shared ones and a learnt curvature since.
BASE = ["task.negatives=50", "task.shared_negatives=false", "task.learn_scale=false"]
STUDIES = {
    "geometry": [["task.dim=10"], ["task.dim=5"], ["task.dim=5", "task.manifold=euclidean"]],
    "clients": [["task.dim=5", f"partition.num_clients={n}"] for n in (10, 160)],
    "rows": [["task.dim=5", "aggregate.rows=ratio", "server.optimizer=sgd", "server.learning_rate=1.0"]],
    "server_learning_rate": [["task.dim=5", f"server.learning_rate={rate}"] for rate in (0.03, 0.3)],
    "local_epochs": [["task.dim=5", "train.epochs=5", "rounds=100"]],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--only", choices=[*STUDIES])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="also what results.csv holds already")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    if (HERE / "results.csv").is_file() and not arguments.again:
        with (HERE / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
    done = {(row["study"], row["setting"], str(row["seed"])) for row in rows}
    for study, settings in STUDIES.items():
        for overrides in settings if arguments.only in (None, study) else []:
            for seed in range(arguments.seeds):
                if (study, " ".join(overrides), str(seed)) not in done:
                    rows += measure(study, overrides, seed, arguments.rounds)
                    write(rows)


def measure(study: str, overrides: list[str], seed: int, rounds: int) -> list[dict[str, object]]:
    """Lines of one run: federated, and centralized where the study is about geometry."""
    with_central = "[centralized]" if study == "geometry" else "[]"
    given = [f"rounds={rounds}", *BASE, *overrides]
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
