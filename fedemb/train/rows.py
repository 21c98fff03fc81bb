"""Local training of a whole cohort at once, at a cost that follows the rows it touches.

    columns of the cohort ── sample ──> batch ── lookup ──> ids (examples, k)
                                                             │ localise per client
    server's table ── gather ──> the cohort's own rows <─────┘
                                  │  for each step: gather, loss per example, one backward pass,
                                  │  local optimiser on the rows of the batch
                                  ▼
                          log at the received row ──> Updates

Clients never see each other's rows: the key of a row is (client, id), so one array holds every client's
private copy of what it looks up. A cohort of a hundred thousand and a cohort of one run the same
lines, and a client's result does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.manifolds import Euclidean
from fedemb.seeds import bits, stream_keys, uniforms
from fedemb.train.exclusion import key_bounds, known_candidates, known_pairs
from fedemb.train.optimizers import LocalOptimizer, Parameter
from fedemb.train.personal import PersonalRows
from fedemb.train.ragged import chunk_bounds, localise, shuffled_batches
from fedemb.types import Int64, RowUpdates, Table, Task, Updates

_EXAMPLE_OVERHEAD_BYTES = 64


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in a round.

    Attributes:
        optimizer: The step on a batch's rows.
        epochs: Passes over the client's examples.
        batch_size: Examples in a step; 0 takes all of them.
        learning_rate: Step size on the mean loss of a batch.
        burn_in_rounds: First rounds, with ``learning_rate * burn_in_factor``.
        burn_in_factor: See above.
        chunk_bytes: Clients are trained together as far as this much working memory reaches.
    """

    optimizer: LocalOptimizer
    epochs: int
    batch_size: int
    learning_rate: float
    burn_in_rounds: int = 0
    burn_in_factor: float = 1.0
    chunk_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 0), ("burn_in_rounds", 0), ("chunk_bytes", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"train.{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("learning_rate", "burn_in_factor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"train.{name} must be a positive number, got {getattr(self, name)}")

    def rate(self, round: int) -> float:
        """Learning rate in ``round`` (the first one is 1)."""
        return self.learning_rate * (self.burn_in_factor if round <= self.burn_in_rounds else 1.0)


@dataclass(frozen=True)
class _Examples:
    """What stays the same over a chunk's epochs.

    ``position`` is the client of each line within the chunk, ``within`` the line's number at its client, ``whose``
    the client that its personal rows and known answers belong to (another one only in pooled data).
    """

    columns: Mapping[str, Tensor]
    offsets: Int64
    position: Int64
    within: Int64
    whose: Tensor
    bounds: tuple[int, int]
    known: Tensor | None


def _examples(task: Task, shards: Shards, clients: Int64) -> _Examples:
    columns = {name: torch.from_numpy(column) for name, column in shards.columns.items()}
    position = shards.owners()
    within = np.arange(shards.num_examples, dtype=np.int64) - np.repeat(shards.offsets[:-1], shards.sizes)
    whose = columns["owner"] if "owner" in columns else torch.from_numpy(clients[position])
    known, bounds = None, (1, 1)
    if task.exclusion and shards.num_examples:
        bounds = key_bounds(task.exclusion, columns, max(table.num_rows for table in task.tables))
        known = known_pairs(task.exclusion, columns, whose, bounds)
    return _Examples(columns, shards.offsets, position, within, whose, bounds, known)


@dataclass(frozen=True)
class _Epoch:
    """One epoch of a cohort, its lines in the order of the steps."""

    columns: Mapping[str, Tensor]
    ids: Mapping[str, Tensor]
    client: Tensor
    whose: Tensor
    scale: Tensor
    steps: list[int]


def _epoch(
    task: Task,
    examples: _Examples,
    settings: LocalTraining,
    seed: int,
    round: int,
    epoch: int,
    clients: Int64,
) -> _Epoch:
    position, within, offsets = examples.position, examples.within, examples.offsets
    draws = torch.empty((len(position), 0), dtype=torch.float64)
    if task.num_draws:
        keys = stream_keys(seed, "sample", round, epoch, clients)[position]
        draws = torch.from_numpy(uniforms(keys, task.num_draws, within * task.num_draws))
    batch = dict(task.sample(examples.columns, draws))
    if task.exclusion and examples.known is not None:
        batch["known"] = known_candidates(
            task.exclusion, batch, examples.whose, examples.bounds, examples.known
        )
    random = bits(stream_keys(seed, "shuffle", round, epoch, clients)[position], 1, within)[:, 0]
    keep = batch.pop("keep", None)
    lines = None if keep is None else np.flatnonzero(keep.numpy())
    if lines is not None:
        offsets, random, position = np.searchsorted(lines, offsets), random[lines], position[lines]
    order, steps, batch_sizes = shuffled_batches(offsets, random, settings.batch_size)
    at = torch.from_numpy(order if lines is None else lines[order])
    columns = {name: column.index_select(0, at) for name, column in batch.items()}
    scale = torch.from_numpy(1.0 / batch_sizes)
    if "weight" in columns:
        scale = scale * columns["weight"]
    client, whose = torch.from_numpy(position[order]), examples.whose.index_select(0, at)
    return _Epoch(columns, task.lookup(columns), client, whose, scale, steps.tolist())


def _keys(table: Table, epoch: _Epoch) -> Tensor:
    """(client, id) of every lookup as one number; a personal row belongs to the example's owner."""
    owner = epoch.client if table.shared else epoch.whose
    return epoch.ids[table.name] + (owner * table.num_rows)[:, None]


@dataclass(frozen=True)
class _Local:
    """A cohort's copy of a table's rows: what was received, what is trained, which row is whose."""

    table: Table
    keys: Tensor
    received: Tensor
    parameter: Parameter
    lookups: list[Tensor]


def _gather(
    table: Table,
    epochs: list[_Epoch],
    num_clients: int,
    received: Mapping[str, Tensor],
    personal: Mapping[str, PersonalRows],
    seed: int,
    device: torch.device,
) -> _Local:
    keys = torch.cat([_keys(table, epoch) for epoch in epochs])
    if table.shared:
        unique, position = localise(keys, num_clients * table.num_rows)
        rows = unique % table.num_rows if num_clients > 1 else unique
        points = received[table.name].index_select(0, rows.to(device))
    else:
        store = personal[table.name]
        unique, position = localise(keys, (store.first + len(store.known)) * table.num_rows)
        points = store.gather(unique, seed).to(device)
    lookups = list(torch.split(position.to(device), [len(epoch.client) for epoch in epochs]))
    return _Local(table, unique, points, Parameter(points.clone(), table.manifold), lookups)


def _step(
    task: Task,
    locals_: list[_Local],
    dense: Mapping[str, Parameter],
    epoch: _Epoch,
    number: int,
    bounds: tuple[int, int],
    settings: LocalTraining,
    rate: float,
) -> Tensor:
    """One batch of every client that has one; returns the loss of its examples."""
    start, stop = bounds
    size = stop - start
    rows = [local.lookups[number][start:stop].reshape(-1) for local in locals_]
    client = epoch.client[start:stop]
    vectors = {}
    for local, at in zip(locals_, rows, strict=True):
        points = local.parameter.points
        gathered = points.index_select(0, at).view(size, -1, points.shape[1])
        vectors[local.table.name] = gathered.requires_grad_()
    own = {d.name: dense[d.name].points.index_select(0, client).requires_grad_() for d in task.dense}
    batch = {name: column[start:stop] for name, column in epoch.columns.items()}
    loss = task.loss(vectors, {d.name: own[d.name].view(size, *d.shape) for d in task.dense}, batch)
    scale = epoch.scale[start:stop].to(loss.dtype)
    gradients = torch.autograd.grad(loss, [*vectors.values(), *own.values()], scale)
    for local, at, gradient in zip(locals_, rows, gradients, strict=False):
        settings.optimizer.step(local.parameter, at, gradient.reshape(len(at), -1), rate)
    for d, gradient in zip(task.dense, gradients[len(locals_) :], strict=True):
        settings.optimizer.step(dense[d.name], client, gradient, rate)
    return loss.detach()


def _to(epoch: _Epoch, device: torch.device) -> _Epoch:
    if device.type == "cpu":
        return epoch
    columns = {name: column.to(device) for name, column in epoch.columns.items()}
    return replace(epoch, columns=columns, client=epoch.client.to(device), scale=epoch.scale.to(device))


def _row_updates(local: _Local, num_clients: int) -> RowUpdates:
    table, manifold = local.table, local.table.manifold
    trained = local.parameter.points
    values = manifold.to_frame(local.received, manifold.log(local.received, trained))
    lookups = torch.cat([position.reshape(-1) for position in local.lookups])
    counts = torch.bincount(lookups, minlength=len(local.keys)).to(values.dtype)
    starts = torch.arange(num_clients + 1, dtype=torch.int64) * table.num_rows
    offsets = torch.searchsorted(local.keys, starts)
    rows = local.keys % table.num_rows if num_clients > 1 else local.keys
    return RowUpdates(rows.to(values.device), values, counts, offsets)


def _train_chunk(
    task: Task,
    tables: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    personal: Mapping[str, PersonalRows],
    shards: Shards,
    clients: Int64,
    settings: LocalTraining,
    seed: int,
    round: int,
) -> Updates:
    device = next((tensor.device for tensor in (*tables.values(), *dense.values())), torch.device("cpu"))
    examples = _examples(task, shards, clients)
    epochs = [_epoch(task, examples, settings, seed, round, e, clients) for e in range(settings.epochs)]
    locals_ = [_gather(t, epochs, len(clients), tables, personal, seed, device) for t in task.tables]
    epochs = [_to(epoch, device) for epoch in epochs]
    copies = {
        d.name: Parameter(
            dense[d.name].reshape(1, -1).repeat(len(clients), 1), Euclidean(dense[d.name].dtype)
        )
        for d in task.dense
    }
    rate = settings.rate(round)
    loss = torch.zeros(len(clients), dtype=torch.float64, device=device)
    trained_on = torch.zeros(len(clients), dtype=torch.float64, device=device)
    for number, epoch in enumerate(epochs):
        losses = [
            _step(task, locals_, copies, epoch, number, bounds, settings, rate)
            for bounds in zip(epoch.steps[:-1], epoch.steps[1:], strict=True)
        ]
        if losses:
            loss.scatter_add_(0, epoch.client, torch.cat(losses).double())
        trained_on += torch.bincount(epoch.client, minlength=len(clients))
    for local in locals_:
        if not local.table.shared:
            personal[local.table.name].put(local.keys, local.parameter.points.cpu())
    return Updates(
        clients=clients,
        tables={
            local.table.name: _row_updates(local, len(clients)) for local in locals_ if local.table.shared
        },
        dense={
            d.name: (copies[d.name].points - dense[d.name].reshape(1, -1)).view(len(clients), *d.shape)
            for d in task.dense
        },
        weights=torch.ones(len(clients), dtype=torch.float64),
        metrics={"examples": trained_on.cpu(), "loss": loss.cpu()},
    )


def _example_bytes(task: Task, shards: Shards, settings: LocalTraining) -> int:
    """Working memory that one example takes, measured on the first one."""
    if not shards.num_examples:
        return 1
    one = {name: torch.from_numpy(column[:1]) for name, column in shards.columns.items()}
    batch = dict(task.sample(one, torch.zeros((1, task.num_draws), dtype=torch.float64)))
    batch.pop("keep", None)
    ids = task.lookup(batch)
    total = _EXAMPLE_OVERHEAD_BYTES + 8 * task.num_draws
    for table in task.tables:
        row = table.manifold.num_coordinates(table.dim) * table.manifold.dtype.itemsize
        total += ids[table.name].shape[1] * (24 + 3 * row)
    return total * settings.epochs


def train_cohort(
    task: Task,
    tables: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    personal: Mapping[str, PersonalRows],
    shards: Shards,
    clients: Int64,
    settings: LocalTraining,
    seed: int,
    round: int,
) -> Iterator[Updates]:
    """Trains every client of a cohort from the same tables; one ``Updates`` per chunk of clients.

    Args:
        task: What is learnt.
        tables: Shared tables as received, ``(num_rows, coordinates)``; not changed.
        dense: Dense parameters as received.
        personal: Personal tables; the rows of these clients are changed in place.
        shards: Training examples of these clients, in their order.
        clients: ``(cohort,)`` ids, ascending; they key the randomness.
        settings: Local training.
        seed: The run's seed.
        round: The round, from 1.

    Yields:
        Updates of consecutive clients. How many are trained together does not change them.
    """
    costs = np.maximum(shards.sizes, 1) * _example_bytes(task, shards, settings)
    for start, stop in chunk_bounds(costs, settings.chunk_bytes):
        part = shards.take(np.arange(start, stop, dtype=np.int64))
        yield _train_chunk(task, tables, dense, personal, part, clients[start:stop], settings, seed, round)


def concatenate(parts: list[Updates]) -> Updates:
    """Updates of consecutive clients as one."""
    if len(parts) == 1:
        return parts[0]
    tables = {}
    for name in parts[0].tables:
        pieces = [part.tables[name] for part in parts]
        sizes = torch.cat([piece.offsets.diff() for piece in pieces])
        tables[name] = RowUpdates(
            torch.cat([piece.rows for piece in pieces]),
            torch.cat([piece.values for piece in pieces]),
            torch.cat([piece.counts for piece in pieces]),
            torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
        )
    return Updates(
        clients=np.concatenate([part.clients for part in parts]),
        tables=tables,
        dense={name: torch.cat([part.dense[name] for part in parts]) for name in parts[0].dense},
        weights=torch.cat([part.weights for part in parts]),
        metrics={name: torch.cat([part.metrics[name] for part in parts]) for name in parts[0].metrics},
    )
