"""Every model on one knowledge graph: federated beside fine-tuned, pooled and alone, with five and ten clients.

    python experiments/knowledge_graph/run.py CODEX_S [--rounds 30] [--only complex] [--clients 5 10] [--again]

CODEX_S: the folder with train.txt, valid.txt and test.txt. Writes results.csv beside this file, a line for each model,
number of clients and phase; prints as it goes.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fedemb

HERE = Path(__file__).parent
METRICS = ["mrr", "hits@1", "hits@10", "fede_mrr", "accuracy"]
FIELDS = ["model", "clients", "rounds", "phase", *METRICS, "mean_over_clients", "worst_client", "cpu_seconds"]
_PLAIN = ["~ablations.uniform", "~ablations.fedavg"]  # these are compared for one model
MODELS: dict[str, list[str]] = {
    "complex": [],
    "distmult": ["task.model=distmult", *_PLAIN],
    "transe": [*_PLAIN, "task.model=transe", "task.objective=sampled", "task.n3=0", "task.reciprocal=false"],
    "rotate": [*_PLAIN, "task.model=rotate", "task.objective=sampled", "task.n3=0", "task.reciprocal=false"],
}
CLIENTS = (5, 10)


def measure(model: str, num_clients: int, path: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """All phases of one run."""
    given = ["experiment=knowledge_graph", f"data.path={path}", f"partition.num_clients={num_clients}"]
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = fedemb.train(
            [*given, *MODELS[model], f"rounds={rounds}", "evaluate_every=0"],
            Path(folder) / "run",
        )
        summary = run.summary
    seconds = round(time.process_time() - begin)
    overall = {"federated": summary["metrics"], **summary["baselines"]}
    spreads = {"federated": summary["per_client"], **summary["baselines_per_client"]}
    for phase, metrics in overall.items():
        line: dict[str, Any] = {"model": model, "clients": num_clients, "rounds": rounds, "phase": phase}
        line |= {name: round(metrics[name], 4) if name in metrics else "" for name in METRICS}
        own = spreads[phase]["mrr"]  # of fewer than twenty clients, the worst tenth is one
        line |= {"mean_over_clients": round(own["mean"], 4), "worst_client": round(own["worst_decile"], 4)}
        yield {**line, "cpu_seconds": seconds if phase == "federated" else ""}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=list(MODELS))
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--again", action="store_true", help="also what results.csv holds already")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if not arguments.again and (HERE / "results.csv").is_file():
        with (HERE / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
    done = {(row["model"], int(row["clients"]), int(row["rounds"])) for row in rows}
    for num_clients in arguments.clients:
        for model in MODELS if arguments.only is None else [arguments.only]:
            if (model, num_clients, arguments.rounds) in done:
                continue
            for line in measure(model, num_clients, arguments.path, arguments.rounds):
                rows.append(line)
                print(*line.values(), flush=True)
            with (HERE / "results.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
