"""The reference work with this package, and a check that it is the work of plain FedAvg in PyTorch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flower_fedavg import Factorisation, load_data, train
from torch import Tensor

from fedemb.build import build
from fedemb.config import compose_config
from fedemb.run.training import Trained, train_with_runner


@dataclass(frozen=True)
class Timed:
    """One training: rounds, client updates, CPU and wall seconds of all of it, wall seconds of each round."""

    rounds: int
    client_updates: int
    cpu_seconds: float
    wall_seconds: float
    round_seconds: list[float]


class Ours:
    """A run that is built once and can be trained again and again."""

    def __init__(self, overrides: list[str], folder: Path) -> None:
        self.overrides, self.folder = overrides, folder
        self.config = compose_config(overrides)
        self.parts = build(self.config)

    def train(self, rounds: int) -> tuple[Timed, Trained, list[float]]:
        """Trains from the beginning; also returns the training loss of every round."""
        config = self.config.copy()
        config.rounds = rounds
        trained = Trained(*self.parts.initial())
        seconds: list[float] = []
        losses: list[float] = []

        def on_round(line: dict) -> None:
            seconds.append(line["seconds"])
            losses.append(line["loss"])

        cpu, wall = time.process_time(), time.perf_counter()
        train_with_runner(self.parts, config, self.overrides, self.folder, on_round, trained)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return Timed(rounds, trained.tally.client_updates, cpu, wall, seconds), trained, losses

    def initial(self) -> Tensor:
        """The table before training."""
        return self.parts.initial()[0]["item"]


def compare_round(ours: Ours, path: str, num_clients: int, learning_rate: float) -> tuple[float, float]:
    """One round against FedAvg with the quickstart's own training, on the same cohort from the same table.

    ``ours`` must train with ``train.batch_size=0``: the order of the lines, drawn differently, then plays no part.

    Returns:
        The largest difference between the two tables, and the largest movement of a coordinate.

    Raises:
        RuntimeError: If they differ by more than rounding.
    """
    cohort = ours.parts.sampler(ours.parts.seed, 1, np.arange(num_clients))
    start = ours.initial()
    total, weight = torch.zeros_like(start, dtype=torch.float64), 0
    for client in cohort.tolist():
        model = Factorisation(*start.shape)
        model.load_state_dict({"embedding.weight": start})
        loader = load_data(path, client, batch_size=64)
        train(model, loader, learning_rate)
        total += len(loader.dataset) * model.embedding.weight.detach().double()
        weight += len(loader.dataset)
    _, trained, _ = ours.train(1)
    moved = float((trained.tables["item"] - start).abs().max())
    difference = float((trained.tables["item"] - total / weight).abs().max())
    if not difference < 4 * torch.finfo(start.dtype).eps * float(start.abs().max()):
        raise RuntimeError(
            f"both must do the same work, but differ by {difference:.1e}; rows moved {moved:.1e}"
        )
    return difference, moved
