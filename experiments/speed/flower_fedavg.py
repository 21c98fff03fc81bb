"""The same work as Flower's PyTorch quickstart writes it, under Flower's own FedAvg and simulation."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Factorisation(nn.Module):
    """Logistic factorisation over one table."""

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_items, dim)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.embedding(left) * self.embedding(right)).sum(-1)


def train(model: nn.Module, loader: DataLoader, learning_rate: float) -> float:
    """One epoch; returns the mean loss of its batches."""
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    model.train()
    running = 0.0
    for left, right, label in loader:
        optimizer.zero_grad()
        loss = criterion(model(left, right), label)
        loss.backward()
        optimizer.step()
        running += loss.item()
    return running / len(loader)


@lru_cache(maxsize=1)
def _partitions(path: str) -> list[TensorDataset]:
    table = pq.read_table(path)
    clients = table["client"].to_numpy().astype(np.int64)
    columns = [
        torch.from_numpy(table[name].to_numpy().astype(kind))
        for name, kind in (("left", np.int64), ("right", np.int64), ("label", np.float32))
    ]
    bounds = np.searchsorted(clients, np.arange(clients[-1] + 2)).tolist()
    return [TensorDataset(*(c[start:stop] for c in columns)) for start, stop in pairwise(bounds)]


def load_data(path: str, partition: int, batch_size: int) -> DataLoader:
    """A client's pairs; the file is read once in a process."""
    return DataLoader(_partitions(path)[partition], batch_size=batch_size, shuffle=True)


def client_app(path: str, num_items: int, dim: int, batch_size: int, learning_rate: float) -> ClientApp:
    """The client of the quickstart."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        model = Factorisation(num_items, dim)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        loader = load_data(path, context.node_config["partition-id"], batch_size)
        loss = train(model, loader, learning_rate)
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def _stat(pid: int) -> tuple[int, str, float] | None:
    """Parent, name and CPU seconds of a process with those of its children that it has waited for."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return int(fields[1]), name, sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_seconds() -> dict[str, float]:
    """CPU seconds of this process and its living descendants, by kind: server, clients, ray."""
    stats = {int(p.name): _stat(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found = {pid: stat for pid, stat in stats.items() if stat is not None}
    inside, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, (parent, _, _) in found.items() if parent in inside} - inside
        inside, grown = inside | more, bool(more)
    totals = {"server": 0.0, "clients": 0.0, "ray": 0.0}
    for pid in inside & set(found):
        _, name, seconds = found[pid]
        kind = "server" if pid == os.getpid() else "clients" if name.startswith("ray::") else "ray"
        totals[kind] += seconds
    return totals


@dataclass(frozen=True)
class Mark:
    """Clocks at the end of a round."""

    round: int
    wall: float
    cpu: Mapping[str, float]


def simulate(
    path: str,
    initial: Tensor,
    num_clients: int,
    cohort: int,
    rounds: int,
    batch_size: int,
    learning_rate: float,
    num_workers: int,
) -> tuple[list[Mark], list[float], Tensor]:
    """Clocks at the start and after every round, the training loss of every round, and the final table."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    marks: list[Mark] = []
    losses: list[float] = []
    final: list[Tensor] = []
    server = ServerApp()

    def on_round(round: int, arrays: ArrayRecord) -> None:
        marks.append(Mark(round, time.perf_counter(), tree_cpu_seconds()))

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        share = cohort / num_clients
        strategy = FedAvg(fraction_train=share, fraction_evaluate=0.0, min_available_nodes=num_clients)
        model = Factorisation(*initial.shape)
        model.load_state_dict({"embedding.weight": initial})
        result = strategy.start(
            grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=rounds, evaluate_fn=on_round
        )
        losses.extend(metrics["train_loss"] for metrics in result.train_metrics_clientapp.values())
        final.append(result.arrays.to_torch_state_dict()["embedding.weight"])

    app = client_app(path, *initial.shape, batch_size, learning_rate)
    resources = {"num_cpus": 1, "num_gpus": 0}
    init = {
        "logging_level": "error",
        "log_to_driver": False,
        "include_dashboard": False,
        "num_cpus": num_workers,
    }
    run_simulation(
        server, app, num_clients, backend_config={"client_resources": resources, "init_args": init}
    )
    return marks, losses, final[0]
