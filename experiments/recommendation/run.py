"""What reconstruction is for: customers without a training event, beside those who took part, on Online Retail.

    python experiments/recommendation/run.py ONLINE_RETAIL_CSV [--rounds 60] [--only stateful]

Trains by experiment=recommendation and measures three groups of customers: all, those who have training events, and
those who have none, whose history is what they bought between the end of training and the test
(data.keep_cold_clients). Writes results.csv beside this file, a line for each model and group; prints as it goes.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedemb.build import Parts, build
from fedemb.config import compose_config
from fedemb.evaluate.choose import reference_ranking
from fedemb.run.training import Trained, set_threads, train_with_runner
from fedemb.types import Evaluated

HERE = Path(__file__).parent
METRICS = ["ndcg@10", "recall@10", "new_ndcg@10", "new_recall@10"]
FIELDS = ["model", "rounds", "customers", "measured", *METRICS, "seconds"]
RECONSTRUCTED = "train.personal=reconstructed"
VARIANTS: dict[str, list[str]] = {
    "stateful": [],
    "reconstructed": [RECONSTRUCTED],
    "reconstructed, half": [RECONSTRUCTED, "train.support_share=0.5"],
    "reconstructed, one epoch": [RECONSTRUCTED, "train.reconstruction_epochs=1"],
}
REFERENCES = ("popularity", "recent_popularity", "own_repeats", "item_cosine")


def settings(path: Path, rounds: int, changes: list[str]) -> list[str]:
    """Overrides of a run."""
    given = ["experiment=recommendation", f"data.path={path}", "baselines=[]", "ablations=null"]
    return [*given, f"rounds={rounds}", *changes]


def federated(overrides: list[str]) -> tuple[Parts, Evaluated]:
    """A run's parts, and its model measured on every customer."""
    config = compose_config(overrides)
    set_threads(config.runner.num_threads)
    parts = build(config)
    trained = Trained(*parts.initial())
    with tempfile.TemporaryDirectory() as folder:
        train_with_runner(parts, config, overrides, Path(folder), lambda line: None, trained)
    assert trained.evaluated is not None
    return parts, trained.evaluated


def by_group(parts: Parts, evaluated: Evaluated) -> Iterator[dict[str, Any]]:
    """Means over the customers of each group."""
    cold = parts.dataset.train.sizes == 0
    for name, group in (("all", np.ones_like(cold)), ("trained on", ~cold), ("new", cold)):
        values = {metric: evaluated.per_client[metric][group] for metric in METRICS}
        means = {metric: round(float(np.nanmean(value)), 4) for metric, value in values.items()}
        yield {"customers": name, "measured": int((~np.isnan(values["ndcg@10"])).sum()), **means}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", choices=list(VARIANTS))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(model: str, rounds: int | str, parts: Parts, evaluated: Evaluated, seconds: float) -> None:
        for line in by_group(parts, evaluated):
            own = {"model": model, "rounds": rounds, **line}
            own["seconds"] = round(seconds) if line["customers"] == "all" else ""
            rows.append(own)
            print(*own.values(), flush=True)
        with (HERE / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    for model in VARIANTS if arguments.only is None else [arguments.only]:
        begin = time.process_time()
        parts, evaluated = federated(settings(arguments.path, arguments.rounds, VARIANTS[model]))
        add(model, arguments.rounds, parts, evaluated, time.process_time() - begin)
    everybody = np.arange(parts.dataset.train.num_clients, dtype=np.int64)
    for name in REFERENCES:
        reference = reference_ranking(name, parts.evaluation, parts.dataset)
        assert reference is not None
        begin = time.process_time()
        add(name, "", parts, reference({}, {}, everybody), time.process_time() - begin)


if __name__ == "__main__":
    main()
