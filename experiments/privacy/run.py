"""What privacy costs in quality: two tasks, every mode, several epsilons, and the rule of thumb that foretells it.

    python experiments/privacy/run.py RETAIL_CSV [--tasks mammals retail] [--seeds 0 1 2 3 4]

RETAIL_CSV is UCI Online Retail. Writes results.csv and plot.png beside this file as it goes; a command that was
interrupted goes on where it was. Noise is seeded, so that figures can be reproduced: these models protect nobody.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fedemb
from fedemb.build import build
from fedemb.config import compose_config
from fedemb.report.canvas import COLOURS, INK, axes, figure, save
from fedemb.run.training import Trained, train_with_runner
from fedemb.train.poisson import Sampling
from fedemb.types import ServerOptimizer, Total

HERE = Path(__file__).parent
EPSILONS = (1.0, 3.0, 10.0, 30.0, 100.0)
COLUMNS = ("task", "mode", "epsilon", "seed", "metric", "value", "second", "noise_multiplier", "seconds")
COMMON = ["baselines=[]", "evaluate_every=0", "privacy.seeded_noise=true"]
TASKS: Mapping[str, tuple[str, str, list[str], dict[str, list[str]]]] = {
    "mammals": (
        "map",
        "mean_rank",
        ["task=hierarchical", "task.dim=5", "partition.num_clients=400", "rounds=40", "aggregate.weights=uniform"],
        {
            "none": [],
            "client_central": ["privacy.clip_norm=0.3"],
            "correlated": ["privacy.clip_norm=0.3", "privacy.bands=auto", "cohort=turns", "cohort.size=40"],
            "client_distributed": ["privacy.clip_norm=0.3", "aggregate=secure", "aggregate.rows=sum"],
            "local": ["privacy.clip_norm=0.3"],
            "example": ["privacy.clip_norm=0.3", "task.negatives=50"],
        },
    ),
    "retail": (
        "ndcg@10",
        "new_ndcg@10",
        ["experiment=online_retail", "task=factorization", "task.dim=16", "rounds=15", "server.learning_rate=0.02",
         "~cohort.size"],
        {
            "none": ["cohort=poisson", "cohort.rate=0.1"],
            "client_central": ["privacy.clip_norm=0.1", "cohort=poisson", "cohort.rate=0.1"],
            "correlated": ["privacy.clip_norm=0.1", "privacy.bands=auto", "cohort=turns", "+cohort.size=362"],
            "client_distributed": ["privacy.clip_norm=0.1", "cohort=turns", "+cohort.size=362", "aggregate=secure",
                                   "aggregate.rows=sum"],
            "local": ["privacy.clip_norm=0.1", "cohort=turns", "+cohort.size=362"],
            "example": ["privacy.clip_norm=0.1", "cohort=turns", "+cohort.size=362"],
        },
    ),
}  # fmt: skip


def overrides_of(task: str, mode: str, epsilon: float | None, seed: int, retail: str) -> list[str]:
    _, _, base, modes = TASKS[task]
    data = [f"data.path={retail}"] if task == "retail" else []
    chosen = {"none": "none", "correlated": "client_central"}.get(mode, mode)
    privacy = [f"privacy={chosen}"]
    if mode != "none":
        privacy += [f"privacy.target_epsilon={epsilon}"]
    own = [text for text in COMMON if mode != "none" or not text.startswith("privacy.")]
    return [*base, *data, *own, *privacy, *modes[mode], f"seed={seed}"]


def one(task: str, mode: str, epsilon: float | None, seed: int, retail: str) -> dict[str, object]:
    metric, second, _, _ = TASKS[task]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = fedemb.train(overrides_of(task, mode, epsilon, seed, retail), Path(folder) / "run")
        summary = run.summary
    privacy = summary.get("privacy", {})
    return {
        "task": task,
        "mode": mode,
        "epsilon": epsilon or "",
        "seed": seed,
        "metric": metric,
        "value": f"{summary['metrics'][metric]:.5f}",
        "second": f"{summary['metrics'][second]:.5f}",
        "noise_multiplier": f"{privacy.get('noise_multiplier', 0):.5f}",
        "seconds": f"{time.perf_counter() - begin:.1f}",
    }


@dataclass
class Lengths:
    """A server optimiser that remembers how long each round's total was."""

    inner: ServerOptimizer
    found: list[float] = field(default_factory=list)

    def step(self, tables: Mapping[str, Tensor], dense: Mapping[str, Tensor], total: Total) -> None:
        squares = sum(float(rows.steps.double().square().sum()) for rows in total.tables.values())
        squares += sum(float(value.double().square().sum()) for value in total.dense.values())
        self.found.append(math.sqrt(squares))
        self.inner.step(tables, dense, total)

    def state(self) -> dict[str, Tensor]:
        return self.inner.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.inner.restore(state)


def signal(task: str, mode: str, retail: str) -> tuple[float, float]:
    """Length of a round's sum of clipped updates without noise, mean over rounds, and of its noise at multiplier 1."""
    text = [t for t in overrides_of(task, mode, 1.0, 0, retail) if "target_epsilon" not in t]
    config = compose_config([*text, "privacy.noise_multiplier=0"])
    parts = build(config)
    assert parts.protection is not None
    lengths: list[Lengths] = []

    def optimizer() -> ServerOptimizer:
        lengths.append(Lengths(parts.optimizer_of()))
        return lengths[-1]

    watched = replace(parts, optimizer_of=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        train_with_runner(watched, config, text, Path(folder), lambda line: None, Trained(*watched.initial()))
    layout, clip_norm = parts.protection.layout, parts.protection.settings.clip_norm
    numbers = sum(len(layout.ids(table)) * table.dim for table in layout.tables)
    numbers += sum(math.prod(part.shape) for part in parts.task.dense)
    noise = clip_norm * math.sqrt(numbers)
    facts = parts.protection.claim.facts
    if mode == "local":  # everybody's noise is in the sum
        noise *= math.sqrt(facts.participation.size)
    if mode == "example":  # so is that of every step of everybody, over the examples that a step expects
        sampling, training = Sampling.of(facts.sizes, facts.batch_size), parts.training
        held = facts.sizes > 0
        each = (
            training.learning_rate * np.sqrt(sampling.steps[held] * training.epochs) / sampling.expected[held]
        )
        noise *= math.sqrt(facts.participation.size) * float(np.sqrt((each**2).mean()))
    return float(np.mean(lengths[0].found)), noise


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open())) if path.is_file() else []


def draw(rows: list[dict[str, str]], tasks: list[str]) -> None:
    shown = figure(11, 4.5)
    for place, task in enumerate(tasks):
        panel = axes(shown, 1, len(tasks), place + 1)
        own = [row for row in rows if row["task"] == task]
        modes = [mode for mode in TASKS[task][3] if mode != "none"]
        plain = [float(row["value"]) for row in own if row["mode"] == "none"]
        panel.axhline(float(np.mean(plain)), color=INK, linestyle=(0, (4, 2)), label="no privacy")
        for number, mode in enumerate(modes):
            means, errors = [], []
            for epsilon in EPSILONS:
                found = [
                    float(r["value"]) for r in own if r["mode"] == mode and float(r["epsilon"]) == epsilon
                ]
                means.append(np.mean(found) if found else np.nan)
                errors.append(np.std(found, ddof=1) if len(found) > 1 else np.nan)
            colour = COLOURS[number % len(COLOURS)]
            panel.errorbar(
                EPSILONS, means, errors, color=colour, marker="o", markersize=3, capsize=2, label=mode
            )
        panel.set_xscale("log")
        panel.set_xlabel("epsilon")
        panel.set_ylabel(TASKS[task][0])
        panel.set_title(task)
        panel.legend(fontsize=7)
    save(shown, HERE / "plot.png")


def table(rows: list[dict[str, str]], task: str, signals: Mapping[str, tuple[float, float]]) -> None:
    own = [row for row in rows if row["task"] == task]
    plain = [float(row["value"]) for row in own if row["mode"] == "none"]
    print(f"\n{task}, {TASKS[task][0]}: without privacy {np.mean(plain):.4f} ({np.std(plain, ddof=1):.4f})")
    print(f"| mode | {' | '.join(f'{e:g}' for e in EPSILONS)} |")
    for mode in TASKS[task][3]:
        if mode == "none":
            continue
        cells = []
        for epsilon in EPSILONS:
            found = [r for r in own if r["mode"] == mode and float(r["epsilon"]) == epsilon]
            values = [float(r["value"]) for r in found]
            if len(values) < 2:
                cells.append("")
                continue
            length, noise = signals[mode]
            ratio = length / (noise * float(found[0]["noise_multiplier"]))
            cells.append(f"{np.mean(values):.4f} ({np.std(values, ddof=1):.4f}), {ratio:.2f}")
        print(f"| {mode} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("retail")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--results", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = read(arguments.results)
    done = {(r["task"], r["mode"], r["epsilon"], r["seed"]) for r in rows}
    with arguments.results.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for task in arguments.tasks:
            for seed in arguments.seeds:
                for mode in TASKS[task][3]:
                    for epsilon in EPSILONS if mode != "none" else (None,):
                        if (task, mode, str(epsilon or ""), str(seed)) in done:
                            continue
                        row = one(task, mode, epsilon, seed, arguments.retail)
                        print(*row.values(), flush=True)
                        writer.writerow(row)
                        file.flush()
    rows = read(arguments.results)
    for task in arguments.tasks:
        modes = [mode for mode in TASKS[task][3] if mode != "none"]
        table(rows, task, {mode: signal(task, mode, arguments.retail) for mode in modes})
    draw(rows, arguments.tasks)


if __name__ == "__main__":
    main()
