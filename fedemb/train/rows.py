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

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.manifolds import Euclidean
from fedemb.train.candidates import candidate_tables
from fedemb.train.epochs import Epoch, Examples, epoch_of, examples_of, observed, to_device
from fedemb.train.local import Local, candidates_of, gather, lasting
from fedemb.train.optimizers import LocalOptimizer, OptimizerMemory, Parameter
from fedemb.train.personal import PersonalRows
from fedemb.train.phases import WHOLE, Phase, in_turn
from fedemb.train.poisson import Sampling, poisson_epoch
from fedemb.train.private import ExamplePrivacy, PrivateSteps
from fedemb.train.ragged import chunk_bounds
from fedemb.types import Candidates, Int64, ListwiseTask, RowUpdates, Table, Task, Updates

STATEFUL, RECONSTRUCTED = "stateful", "reconstructed"
INITIAL, ORIGIN = "initial", "origin"
MEAN, SUM = "mean", "sum"
_EXAMPLE_OVERHEAD_BYTES = 64
_COMPARISON_BYTES = 64  # of an example with a candidate: the score, and what is computed on its way


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in a round.

    Attributes:
        optimizer: The step on a batch's rows.
        epochs: Passes over the client's examples.
        batch_size: Examples in a step; 0 takes all of them.
        learning_rate: Step size on the loss of a batch.
        burn_in_rounds: First rounds, with ``learning_rate * burn_in_factor``.
        burn_in_factor: See above.
        decay: After these, each round's learning rate is that of the one before times this.
        max_step: Largest distance that a row of a table moves in a step; None: no bound.
        chunk_bytes: Clients are trained together as far as this much working memory reaches.
        keep_state: Whether clients keep their optimiser's state from round to round.
        fine_tune_epochs: Passes over its own data that a client adds before its own copy is measured.
        dense_learning_rate: Step size of dense parameters; None: the same. They collect the gradients of all
            examples of a batch, a row only of those that look it up.
        personal: Whether clients keep their personal rows (``stateful``) or find them anew (``reconstructed``).
        support_share: Of a client's examples, those that its rows are reconstructed from in training.
        reconstruction_epochs: Passes over these.
        reconstruction_learning_rate: As ``learning_rate``, which it is where this is None.
        reconstruction_start: Where rows begin: ``initial``, as a table's do, or ``origin`` of their space.
        reduction: The loss of a batch is the ``mean`` or the ``sum`` over its examples.
        share: Of a client's examples, those that a round trains on; each has its turn once in ``1 / share`` rounds.
        privacy: What protects each example; None: nothing. Batches are then Poisson samples, of ``batch_size`` on
            average.
    """

    optimizer: LocalOptimizer
    epochs: int
    batch_size: int
    learning_rate: float
    burn_in_rounds: int = 0
    burn_in_factor: float = 1.0
    decay: float = 1.0
    max_step: float | None = None
    chunk_bytes: int = 1 << 28
    keep_state: bool = False
    fine_tune_epochs: int = 1
    dense_learning_rate: float | None = None
    personal: str = STATEFUL
    support_share: float = 0.5
    reconstruction_epochs: int = 1
    reconstruction_learning_rate: float | None = None
    reconstruction_start: str = INITIAL
    reduction: str = MEAN
    share: float = 1.0
    privacy: ExamplePrivacy | None = None

    def __post_init__(self) -> None:
        for name, low in (
            ("epochs", 1), ("batch_size", 0), ("burn_in_rounds", 0), ("chunk_bytes", 1), ("fine_tune_epochs", 1),
            ("reconstruction_epochs", 1),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise ValueError(f"train.{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("learning_rate", "burn_in_factor", "decay"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"train.{name} must be a positive number, got {getattr(self, name)}")

        for name in ("max_step", "reconstruction_learning_rate", "dense_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"train.{name} must be a positive number or null, got {value}")
        for name, choices in (
            ("personal", (STATEFUL, RECONSTRUCTED)), ("reconstruction_start", (INITIAL, ORIGIN)),
            ("reduction", (MEAN, SUM)),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"train.{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 < self.support_share <= 1:
            raise ValueError(f"train.support_share must be in (0, 1], got {self.support_share}; 0.5 is usual")
        if not 0 < self.share <= 1:
            raise ValueError(
                f"train.share must be in (0, 1], got {self.share}; 1 trains on all in each round"
            )
        if self.share < 1 and self.personal == RECONSTRUCTED:
            raise ValueError(
                f"train.share must be 1 with train.personal=reconstructed, whose rounds have parts of their own, "
                f"got {self.share}"
            )
        if self.personal == RECONSTRUCTED and self.keep_state:
            raise ValueError(
                "train.keep_state must be false with train.personal=reconstructed, whose clients keep nothing, got true"
            )

    def rate(self, round: int) -> float:
        """Learning rate in ``round`` (the first one is 1)."""
        if round <= self.burn_in_rounds:
            return self.learning_rate * self.burn_in_factor
        return self.learning_rate * self.decay ** (round - self.burn_in_rounds - 1)

    def dense_rate(self, round: int) -> float:
        """That of dense parameters."""
        return self.rate(round) * (self.dense_learning_rate or self.learning_rate) / self.learning_rate


def _step(
    task: Task,
    locals_: list[Local],
    dense: Mapping[str, Parameter],
    examples: Examples,
    epoch: Epoch,
    number: int,
    step: int,
    settings: LocalTraining,
    round: int,
    frozen: frozenset[str],
) -> Tensor:
    """One batch of every client that has one; returns the loss of its examples."""
    start, stop = epoch.steps[step], epoch.steps[step + 1]
    size = stop - start
    client = epoch.client[start:stop]
    rows: dict[str, Tensor] = {}
    vectors: dict[str, Tensor] = {}
    candidates: dict[str, Candidates] = {}
    for local in locals_:
        name, points, at = local.table.name, local.parameter.points, local.lookups[number][start:stop]
        rows[name] = at.reshape(-1)
        vectors[name] = points.index_select(0, rows[name]).view(size, -1, points.shape[1])
        vectors[name].requires_grad_(name not in frozen)
        found = candidates_of(task, local, examples, epoch, number, step)
        if found is not None:
            candidates[name], positions = found
            rows[name] = torch.cat((rows[name], positions))
    own = {d.name: dense[d.name].points.index_select(0, client) for d in task.dense}
    for name, copy in own.items():
        copy.requires_grad_(name not in frozen)
    shaped = {d.name: own[d.name].view(size, *d.shape) for d in task.dense}
    batch = {name: column[start:stop] for name, column in epoch.columns.items()}
    if candidates and isinstance(task, ListwiseTask):
        loss = task.loss(vectors, shaped, batch, candidates)
    else:
        loss = task.loss(vectors, shaped, batch)
    moving = {name: value for name, value in (*vectors.items(), *own.items()) if name not in frozen}
    drawn = {name: found.points for name, found in candidates.items() if name not in frozen}
    wanted = [*moving.values(), *drawn.values()]
    gradients = torch.autograd.grad(loss, wanted, epoch.scale[start:stop].to(loss.dtype))
    of_vectors = dict(zip(moving, gradients, strict=False))
    of_candidates = dict(zip(drawn, gradients[len(of_vectors) :], strict=True))
    for local in locals_:
        name, width = local.table.name, local.parameter.points.shape[1]
        if name in frozen:
            continue
        gradient = of_vectors[name].reshape(-1, width)
        if name in candidates:
            gradient = torch.cat((gradient, of_candidates[name].reshape(-1, width)))
        settings.optimizer.step(
            local.parameter, rows[name], gradient, settings.rate(round), settings.max_step
        )
    for name in own.keys() - frozen:
        settings.optimizer.step(dense[name], client, of_vectors[name], settings.dense_rate(round))
    return loss.detach()


def row_updates(local: Local, epochs: Sequence[Epoch], num_clients: int) -> RowUpdates:
    """Where a table's copies were moved to from what was received, by client."""
    table, manifold = local.table, local.table.manifold
    trained = local.parameter.points
    values = manifold.to_frame(local.received, manifold.log(local.received, trained))
    own = [observed(at, epoch.columns).reshape(-1) for at, epoch in zip(local.lookups, epochs, strict=True)]
    counts = torch.bincount(torch.cat(own), minlength=len(local.keys)).to(values.dtype)
    starts = torch.arange(num_clients + 1, dtype=torch.int64, device=local.keys.device) * table.num_rows
    offsets = torch.searchsorted(local.keys, starts).cpu()
    rows = local.keys % table.num_rows if num_clients > 1 else local.keys
    return RowUpdates(rows, values, counts, offsets)


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
    memory: OptimizerMemory | None,
    phase: Phase,
) -> Updates:
    device = next((tensor.device for tensor in (*tables.values(), *dense.values())), torch.device("cpu"))
    seen = phase.seen(shards.offsets, clients, seed, round)
    if settings.share < 1:
        seen = in_turn(shards.offsets, clients, settings.share, seed, round)
    examples = examples_of(task, shards, clients, seen)
    numbers = range(phase.first_epoch, phase.first_epoch + settings.epochs)
    summed, private = settings.reduction == SUM, settings.privacy
    if private is None:
        epochs = [
            epoch_of(task, examples, settings.batch_size, seed, round, number, clients, summed)
            for number in numbers
        ]
    else:
        coins = private.noise.coins(seed)
        epochs = [
            poisson_epoch(task, examples, settings.batch_size, seed, coins, round, number, clients)
            for number in numbers
        ]
    whole = private is not None
    locals_ = [gather(t, epochs, clients, tables, personal, seed, device, memory, whole) for t in task.tables]
    ids = torch.from_numpy(clients).to(device)
    epochs = [to_device(epoch, device) for epoch in epochs]
    if examples.known is not None:
        examples = replace(examples, known=examples.known.to(device))
    copies = {
        d.name: Parameter(
            dense[d.name].reshape(1, -1).repeat(len(clients), 1),
            Euclidean(dense[d.name].dtype),
            {} if memory is None else memory.take(d.name, ids),
        )
        for d in task.dense
    }
    rate = settings.rate(round)
    steps = None
    if private is not None:
        sampling = Sampling.of(shards.sizes, settings.batch_size)
        steps = PrivateSteps.of(
            task, private, settings.optimizer, settings.max_step, rate, settings.dense_rate(round), round,
            clients, sampling, summed, locals_, copies,
        )  # fmt: skip
    loss = torch.zeros(len(clients), dtype=torch.float64, device=device)
    trained_on = torch.zeros(len(clients), dtype=torch.float64, device=device)
    for number, epoch in enumerate(epochs):
        losses = [
            _step(task, locals_, copies, examples, epoch, number, step, settings, round, phase.frozen)
            if steps is None
            else steps.step(examples, epoch, number, step)
            for step in range(len(epoch.steps) - 1)
        ]
        if losses:
            loss.scatter_add_(0, epoch.client, torch.cat(losses).double())
        trained_on += torch.bincount(epoch.client, minlength=len(clients))
    if steps is not None:
        steps.finish(len(epochs))
    moved = [local for local in locals_ if local.table.name not in phase.frozen]
    moved_dense = [d for d in task.dense if d.name not in phase.frozen]
    if memory is not None:
        for local in moved:
            memory.put(local.table.name, lasting(local.table, local.keys, clients), local.parameter.state)
        for d in moved_dense:
            memory.put(d.name, ids, copies[d.name].state)
    for local in moved:
        if not local.table.shared:
            personal[local.table.name].put(local.keys.cpu(), local.parameter.points.cpu())
    return Updates(
        clients=clients,
        tables={
            local.table.name: row_updates(local, epochs, len(clients))
            for local in moved
            if local.table.shared
        },
        dense={
            d.name: (copies[d.name].points - dense[d.name].reshape(1, -1)).view(len(clients), *d.shape)
            for d in moved_dense
        },
        weights=torch.ones(len(clients), dtype=torch.float64),
        metrics={"examples": trained_on.cpu(), "loss": loss.cpu()},
    )


def _row_bytes(table: Table) -> int:
    return table.manifold.num_coordinates(table.dim) * table.manifold.dtype.itemsize


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
        total += ids[table.name].shape[1] * (24 + 3 * _row_bytes(table))
    return total * settings.epochs


def _client_bytes(task: Task, shards: Shards, settings: LocalTraining) -> Int64:
    """Working memory ``(clients,)`` that each client takes."""
    sizes = shards.sizes
    total = np.maximum(sizes, 1) * _example_bytes(task, shards, settings)
    in_step = np.minimum(sizes, settings.batch_size) if settings.batch_size else sizes
    copies = 4 * sum(math.prod(parameter.shape) for parameter in task.dense)
    total += 3 * (in_step + 1) * copies  # a client's copy, an example's, and their gradients
    for table, drawn in candidate_tables(task):
        held = np.minimum(2 * sizes, table.num_rows)
        most = held if drawn is None else np.full_like(sizes, min(drawn.count, table.num_rows))
        anew = drawn is not None and (drawn.cdf is not None or drawn.count < table.num_rows)
        steps = settings.epochs * -(-sizes // np.maximum(in_step, 1)) if anew else 1
        total += in_step * most * _COMPARISON_BYTES + most * (3 * _row_bytes(table) + 24 * steps)
        if settings.privacy is not None:  # every example has a copy of its own, with gradients in two forms
            total += in_step * most * 6 * _row_bytes(table)
    if settings.privacy is not None:  # every client has all rows, and their noise
        total += sum(table.num_rows * (4 * _row_bytes(table) + 24) for table in task.tables)
    return total


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
    memory: OptimizerMemory | None = None,
    phase: Phase = WHOLE,
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
        memory: Takes up every client's optimiser where it was left; None: it begins anew.
        phase: What moves, and on which examples; everything on all of them unless said otherwise.

    Yields:
        Updates, of what moves alone, of consecutive clients. How many are trained together does not change them.
    """
    for start, stop in chunk_bounds(_client_bytes(task, shards, settings), settings.chunk_bytes):
        part = shards.take(np.arange(start, stop, dtype=np.int64))
        yield _train_chunk(
            task, tables, dense, personal, part, clients[start:stop], settings, seed, round, memory, phase
        )


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
