"""What a dynamic model is up against, how its settings were chosen, and what is left of a figure over seeds.

    python experiments/dynamic/run.py ONLINE_RETAIL_CSV [--seeds 3]

First references with other windows than the usual 30 days; then federated models of experiment=dynamic with other
settings, a run for each seed. All of it for October, by which settings are chosen, and for what is bought from November
on. Writes results.csv beside this file, a line for each; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fedemb
from fedemb.build import load_data
from fedemb.config import compose_config
from fedemb.data.shards import join
from fedemb.evaluate.popularity import Unlearnt, own_repeats, recent_popularity
from fedemb.evaluate.ranking import Ranking, asked_at, history_before

HERE = Path(__file__).resolve().parent
DAYS = (3, 7, 14, 30, 60)
METRICS = ("ndcg@10", "recall@10", "new_ndcg@10", "new_recall@10")
MONTHS = {"October": ["data.until=2011-11-01", "data.test_from=2011-10-01"], "November": []}
UNBOUNDED = ["train.max_step=null", "aggregate.clip_norm=null"]
MODELS = {
    "walk=.01, l2=.2": ["task.walk=0.01", "task.l2=0.2"],
    "static, l2=.2": ["task.rows=static", "task.state=mean", "task.l2=0.2"],
    "walk=.1, l2=.2": ["task.walk=0.1", "task.l2=0.2"],
    "walk=.01, l2=.2, steps and updates not bounded": ["task.walk=0.01", "task.l2=0.2", *UNBOUNDED],
    "walk=.1, l2=.1": ["task.walk=0.1", "task.l2=0.1"],
    "walk=0, l2=.1": ["task.walk=0", "task.l2=0.1"],
    "static, l2=.1": ["task.rows=static", "task.state=mean", "task.l2=0.1"],
}
Line = tuple[str, str, str, dict[str, float]]


def references(path: str) -> Iterator[Line]:
    """Popularity of the last days, alone and behind a customer's own repeats."""
    for month, changes in MONTHS.items():
        dataset = load_data(compose_config(["experiment=dynamic", f"data.path={path}", *changes]))
        history, num_items = history_before(dataset, "test"), len(dataset.vocabularies["item"])
        events, now = join(history), asked_at(dataset, "test")
        everybody = np.arange(dataset.train.num_clients)
        for name, rule in (("popularity", recent_popularity), ("own repeats", own_repeats)):
            for days in DAYS:
                task = Unlearnt(rule(events, num_items, days))
                ranking = Ranking(task, history, dataset.held_out["test"], now=now)
                yield month, f"{name}, {days} days", "", dict(ranking({}, {}, everybody).metrics)


def model(path: str, month: str, name: str, seed: int) -> Line:
    """A federated run."""
    given = ["experiment=dynamic", f"data.path={path}", "baselines=[]", "ablations=null", "evaluate_every=0"]
    with tempfile.TemporaryDirectory() as folder:
        run = fedemb.train(
            [*given, *MONTHS[month], *MODELS[name], f"seed={seed}"], folder=Path(folder) / "run"
        )
        return month, name, str(seed), run.summary["metrics"]


def main() -> None:
    """Prints and writes line by line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="ONLINE_RETAIL_CSV")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results = HERE / "results.csv"
    done = set()
    if results.is_file():
        with results.open(newline="", encoding="utf-8") as file:
            done = {(line["ranked"], line["ranking"], line["seed"]) for line in csv.DictReader(file)}
    with results.open("a", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")

        def write(line: Line) -> None:
            month, name, seed, metrics = line
            values = [f"{metrics[metric]:.4f}" for metric in METRICS]
            print(month, name, seed, *values, flush=True)
            out.writerow([month, name, seed, *values])
            file.flush()

        if not done:
            out.writerow(["ranked", "ranking", "seed", *METRICS])
            for line in references(arguments.path):
                write(line)
        for seed in range(arguments.seeds):
            for name in MODELS:
                for month in MONTHS:
                    if (month, name, str(seed)) not in done:
                        write(model(arguments.path, month, name, seed))


if __name__ == "__main__":
    main()
