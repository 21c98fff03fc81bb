"""How well the popularity of the last days ranks, by how many days: what a dynamic model is up against."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from fedemb.build import load_data
from fedemb.config import compose_config
from fedemb.data.shards import join
from fedemb.evaluate.popularity import Unlearnt, own_repeats, recent_popularity
from fedemb.evaluate.ranking import Ranking, asked_at, history_before

DAYS = (3, 7, 14, 30, 60)
HERE = Path(__file__).resolve().parent
MONTHS = {"October": ["data.until=2011-11-01", "data.test_from=2011-10-01"], "from November": []}
METRICS = ("ndcg@10", "recall@10", "new_ndcg@10", "new_recall@10")


def main(path: str) -> None:
    """Prints and writes results.csv."""
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["ranked", "ranking", "days", *METRICS])
        for month, changes in MONTHS.items():
            dataset = load_data(compose_config(["experiment=dynamic", f"data.path={path}", *changes]))
            history, num_items = history_before(dataset, "test"), len(dataset.vocabularies["item"])
            events, now = join(history), asked_at(dataset, "test")
            everybody = np.arange(dataset.train.num_clients)
            for name, rule in (("popularity", recent_popularity), ("own repeats", own_repeats)):
                for days in DAYS:
                    task = Unlearnt(rule(events, num_items, days))
                    ranking = Ranking(task, history, dataset.held_out["test"], now=now)
                    metrics = ranking({}, {}, everybody).metrics
                    line = [month, name, days, *(f"{metrics[m]:.4f}" for m in METRICS)]
                    print(*line)
                    out.writerow(line)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python experiments/dynamic/run.py ONLINE_RETAIL_CSV")
    main(sys.argv[1])
