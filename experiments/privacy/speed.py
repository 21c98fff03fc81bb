"""What DP-SGD costs the cohort trainer, beside the same training without and beside Opacus.

    python experiments/privacy/speed.py [--repetitions 9] [--clients 20] [--pairs 5000] [--rows 10000] [--dim 64]

Writes speed.csv beside this file and prints the ratios of the README. One thread; what is compared takes turns.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fedemb.data.shards import Shards
from fedemb.memory import keep_freed_memory
from fedemb.privacy.noise import Noise
from fedemb.tasks.skipgram import Skipgram
from fedemb.train import rows
from fedemb.train.initial import initial_table
from fedemb.train.opacus import train_with_opacus
from fedemb.train.optimizers import SGD
from fedemb.train.private import ExamplePrivacy, PrivateSteps
from fedemb.train.rows import LocalTraining, train_cohort

HERE = Path(__file__).parent


def data(num_clients: int, pairs: int, num_rows: int, seed: int = 0) -> Shards:
    """Pairs of items with Zipf popularity at clients."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, num_rows + 1)
    drawn = rng.choice(num_rows, (num_clients * pairs, 2), p=popularity / popularity.sum())
    columns = {
        "left": drawn[:, 0],
        "right": drawn[:, 1],
        "label": np.ones(len(drawn), dtype=np.float32),
    }
    return Shards(columns, np.arange(num_clients + 1) * pairs)


class Steps:
    """Adds up the time that a trainer spends in its steps: not in gathering rows, nor in what is owed at the end."""

    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name, self.seconds = owner, name, 0.0
        self.inner = getattr(owner, name)

    def __enter__(self) -> Steps:
        def step(*arguments: object) -> object:
            begin = time.perf_counter()
            found = self.inner(*arguments)
            self.seconds += time.perf_counter() - begin
            return found

        setattr(self.owner, self.name, step)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.inner)


def own_rows(shards: Shards, seed: int = 0) -> tuple[Shards, int]:
    """The first client's pairs in a table of the rows that it touches alone, its negatives included."""
    one = shards.take(np.arange(1))
    negatives = np.random.default_rng(seed).integers(0, 10**9, 5 * one.num_examples)
    drawn = negatives % (int(max(one.columns["left"].max(), one.columns["right"].max())) + 1)
    rows = np.unique(np.concatenate((one.columns["left"], one.columns["right"], drawn)))
    columns = {**one.columns, **{n: np.searchsorted(rows, one.columns[n]) for n in ("left", "right")}}
    return Shards(columns, one.offsets), len(rows)


def task_of(num_rows: int, dim: int) -> tuple[Skipgram, dict[str, torch.Tensor]]:
    """Skip-gram with five negatives, uniform over the rows, and tables that are not zero."""
    cdf = torch.arange(1, num_rows + 1, dtype=torch.float64) / num_rows
    task = Skipgram(num_rows, cdf, None, dim, 5, False, 5)
    return task, {table.name: initial_table(table, 0) + 0.1 for table in task.tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("repetitions", 9),
        ("clients", 20),
        ("pairs", 5000),
        ("rows", 10_000),
        ("dim", 64),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch-size", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    shards = data(arguments.clients, arguments.pairs, arguments.rows)
    task, tables = task_of(arguments.rows, arguments.dim)
    small, num_small = own_rows(shards)
    small_task, small_tables = task_of(num_small, arguments.dim)
    plain = LocalTraining(SGD(), epochs=1, batch_size=arguments.batch_size, learning_rate=1.0)
    private = replace(plain, privacy=ExamplePrivacy(1.0, 1.0, Noise()))
    clipped = replace(plain, privacy=ExamplePrivacy(1.0, 0.0, Noise()))
    clients, num_steps = np.arange(arguments.clients), -(-arguments.pairs // arguments.batch_size)

    def cohort(settings: LocalTraining) -> tuple[float, float]:
        owner, name = (rows, "_step") if settings.privacy is None else (PrivateSteps, "step")
        begin = time.perf_counter()
        with Steps(owner, name) as steps:
            for _ in train_cohort(task, tables, {}, {}, shards, clients, settings, 0, 1):
                pass
        return time.perf_counter() - begin, steps.seconds

    def opacus(task: Skipgram, tables: dict[str, torch.Tensor], shard: Shards) -> float:
        begin = time.perf_counter()
        train_with_opacus(task, tables, {}, {}, shard, clients[:1], private, 0, 1)
        return time.perf_counter() - begin

    found: dict[str, list[float]] = {}
    for repetition in range(arguments.repetitions + 1):
        whole, steps = cohort(plain)
        private_whole, private_steps = cohort(private)
        row = {
            "plain_whole": whole,
            "plain_steps": steps,
            "clipped_steps": cohort(clipped)[1],
            "private_steps": private_steps,
            "private_whole": private_whole,
            "opacus_client": opacus(task, tables, shards.take(clients[:1])),
            "opacus_client_own_rows": opacus(small_task, small_tables, small),
        }
        for name, seconds in row.items() if repetition else ():  # the first one warms up
            found.setdefault(name, []).append(seconds)

    def ratio(above: str, below: str, times: float = 1.0) -> float:
        return median(times * a / b for a, b in zip(found[above], found[below], strict=True))

    with (HERE / "speed.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["repetition", *(f"{name}_seconds" for name in found)])
        writer.writerows([n, *(f"{v[n]:.5f}" for v in found.values())] for n in range(arguments.repetitions))
    milliseconds = {name: 1000 * median(values) / num_steps for name, values in found.items()}
    print(
        f"{arguments.clients} clients, {arguments.pairs} pairs each, {num_steps} steps of {arguments.batch_size}, "
        f"V = {arguments.rows}, D = {arguments.dim}; medians of {arguments.repetitions}, in ms a step of the cohort"
    )
    for words, above, below in (
        ("a step without privacy", "plain_steps", "plain_steps"),
        ("clipped by example", "clipped_steps", "plain_steps"),
        ("clipped, noise on the rows of the batch (at most 1.6)", "private_steps", "plain_steps"),
        ("all of a round without privacy", "plain_whole", "plain_whole"),
        ("all of a round, noise on all rows (at most 3)", "private_whole", "plain_whole"),
    ):
        print(f"  {words:55} {milliseconds[above]:8.2f}   {ratio(above, below):.2f} times as long")
    for words, name in (
        ("all rows", "opacus_client"),
        (f"the {num_small} rows that it touches", "opacus_client_own_rows"),
    ):
        times = ratio(name, "private_whole", arguments.clients)
        print(
            f"clients per second against Opacus on a table of {words}: {times:.1f} times as many (at least 20)"
        )


if __name__ == "__main__":
    main()
