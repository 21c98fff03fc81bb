"""All nouns of WordNet in ten hyperbolic dimensions: 82,115 nodes, 743,241 pairs, one machine.

    python experiments/hierarchy/nouns.py EDGES FOLDER [--rounds 80]

EDGES is a CSV of direct edges (child,parent), or WordNet's own dict folder. The run lives in FOLDER: started again, it
goes on where it was; finished, only nouns.csv beside this file is written: a line for each evaluation, and the hours.

One client that holds everything, plain averaging and a step of one: that is pooled training, with the run's
checkpoints.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import fedemb

HERE = Path(__file__).parent
OVERRIDES = [
    "partition=iid",
    "partition.num_clients=1",
    "task.dim=10",
    "task.negatives=1000",
    "task.noise_power=0.75",
    "task.log_q_correction=true",
    "task.curvature=-0.0625",
    "task.learn_scale=false",
    "train.batch_size=256",
    "train.learning_rate=100",
    "train.decay=0.97",
    "train.max_step=0.4",
    "train.burn_in_rounds=4",
    "server.optimizer=sgd",
    "server.learning_rate=1",
    "aggregate.weights=uniform",
    "baselines=[]",
    "evaluate_every=40",
    "checkpoint_every=20",
    "resume=auto",
]
METRICS = ["map", "mean_rank", "distance_correlation", "chain_order", "norm_depth_correlation"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("edges", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=80)
    arguments = parser.parse_args()
    source = "wordnet" if arguments.edges.is_dir() else "taxonomy"
    given = [f"data={source}", f"data.path={arguments.edges}", f"rounds={arguments.rounds}", *OVERRIDES]
    finished = (arguments.folder / "summary.json").is_file()
    run = fedemb.load(arguments.folder) if finished else fedemb.train(given, arguments.folder, quiet=False)
    lines, seconds = [], 0.0
    for line in run.metrics:
        seconds += line.get("seconds") or 0.0
        if line.get("map") is not None:
            values = {name: round(line[name], 4) for name in METRICS}
            lines.append({"passes": line["round"], **values, "training_hours": round(seconds / 3600, 3)})
    work = run.summary["work"]
    lines[-1]["total_hours"] = round(work["total_seconds"] / 3600, 3)
    lines[-1]["peak_mebibytes"] = round(work["peak_rss_bytes"] / 2**20)
    with (HERE / "nouns.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[-1]))
        writer.writeheader()
        writer.writerows(lines)
    for line in lines:
        print(*line.values())


if __name__ == "__main__":
    main()
