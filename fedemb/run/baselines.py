"""What a federated result stands beside: all data in one place, and nobody talking to anybody."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedemb.build import Parts
from fedemb.data.shards import Shards
from fedemb.evaluate.choose import measurable
from fedemb.evaluate.measure import measured
from fedemb.evaluate.spread import added, over_clients
from fedemb.train.apply import apply_
from fedemb.train.optimizers import OptimizerMemory
from fedemb.train.personal import PersonalRows, personal_rows, rows_of
from fedemb.train.rows import LocalTraining, concatenate, train_cohort
from fedemb.types import (
    Batch,
    Candidates,
    Dense,
    Evaluated,
    Exclusion,
    Int64,
    ListwiseTask,
    MetricsSink,
    Pooled,
    Table,
    Task,
)
from fedemb.walk import Evidence, smooth_

_LOCAL_BYTES = 1 << 29


def passes_of(parts: Parts, training: LocalTraining, rounds: int) -> int:
    """Passes that a client makes over its data on average: the budget of a baseline."""
    return max(1, round(participations(parts, rounds) * training.epochs * training.share))


def participations(parts: Parts, rounds: int) -> int:
    """Rounds that a client takes part in on average."""
    eligible = int((parts.dataset.train.sizes > 0).sum())
    return max(1, round(rounds * parts.sampler.participation(eligible).size / max(1, eligible)))


def scaled(training: LocalTraining, rounds: int, passes: int) -> LocalTraining:
    """The same schedule over another number of passes."""
    share = passes / max(1, rounds)
    return replace(
        training,
        burn_in_rounds=round(training.burn_in_rounds * share),
        decay=training.decay ** (1 / share),
    )


def centralized(
    parts: Parts, training: LocalTraining, rounds: int, evaluate_every: int, on_round: MetricsSink
) -> tuple[Evaluated | None, dict[str, Tensor]]:
    """All shards pooled, the same task, and as many passes over the data as the federation makes.

    Personal rows still belong to their owners. An adaptive optimiser goes on from pass to pass, as one machine's does.
    """
    passes = passes_of(parts, training, rounds)
    training = replace(scaled(training, rounds, passes), epochs=1, share=1.0)
    data = parts.dataset.train
    pooled = parts.task.examples(data).pooled()
    tables, dense = parts.initial()
    personal = personal_rows(parts.task.tables, 0, data.num_clients)
    everybody, one = np.arange(data.num_clients, dtype=np.int64), np.zeros(1, dtype=np.int64)
    evaluated, memory, evidence = None, OptimizerMemory(), Evidence()
    for number in range(1, passes + 1):
        begin = time.perf_counter()
        updates = concatenate(
            list(
                train_cohort(
                    parts.task, tables, dense, personal, pooled, one, training, parts.seed, number, memory
                )
            )
        )
        apply_(parts.task.tables, tables, dense, updates, evidence)
        line = {
            "phase": "centralized",
            "round": number,
            "rounds": passes,
            "loss": float(updates.metrics["loss"][0]) / max(1.0, float(updates.metrics["examples"][0])),
            "seconds": time.perf_counter() - begin,
        }
        if parts.evaluation and (number == passes or (evaluate_every and number % evaluate_every == 0)):
            rows = rows_of(personal, everybody, parts.seed, tables)
            evaluated = measured(parts.evaluation, {**tables, **dense}, rows, everybody)
            line |= evaluated.metrics
        on_round(line)
    return evaluated, tables


@dataclass(frozen=True)
class _Alone:
    """A task whose every table is personal: what clients learn who never talk."""

    inner: Task
    tables: tuple[Table, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", tuple(replace(t, shared=False) for t in self.inner.tables))

    @property
    def dense(self) -> tuple[Dense, ...]:
        return self.inner.dense

    @property
    def num_draws(self) -> int:
        return self.inner.num_draws

    @property
    def exclusion(self) -> Exclusion | None:
        return self.inner.exclusion

    def examples(self, shards: Shards) -> Shards:
        return self.inner.examples(shards)

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        return self.inner.sample(batch, uniforms)

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        return self.inner.lookup(batch)

    @property
    def candidates(self) -> Mapping[str, int | None]:
        return self.inner.candidates if isinstance(self.inner, ListwiseTask) else {}

    def loss(
        self,
        vectors: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        batch: Batch,
        candidates: Mapping[str, Candidates] | None = None,
    ) -> Tensor:
        if candidates and isinstance(self.inner, ListwiseTask):
            return self.inner.loss(vectors, dense, batch, candidates)
        return self.inner.loss(vectors, dense, batch)


def local_only(parts: Parts, training: LocalTraining, rounds: int, on_round: MetricsSink) -> Evaluated | None:
    """Every client alone, from the same start and for as many passes as it makes in the federation.

    Only clients that can be measured are trained. Metrics are means over them. Clients go in chunks:
    a client that is alone holds a table of its own, and one with dense parameters goes by itself.

    Args:
        parts: The run.
        training: How clients train.
        rounds: Rounds of the federation.
        on_round: Told after every chunk.
    """
    task = _Alone(parts.task)
    passes = max(1, round(participations(parts, rounds) * training.share))
    training = replace(scaled(training, rounds, passes), share=1.0)
    data = parts.dataset.train
    tables, dense = parts.initial()
    per_client = sum(t.numel() * t.element_size() for t in tables.values())
    size = 1 if task.dense else max(1, _LOCAL_BYTES // max(1, per_client))
    if parts.evaluation is None:
        return None
    eligible = measurable(parts.evaluation, parts.dataset)
    results: list[Evaluated] = []
    sums: list[Mapping[str, Int64]] = []
    for start in range(0, len(eligible), size):
        chunk = eligible[start : start + size]
        begin = time.perf_counter()
        for result in _alone(parts, task, training, passes, chunk, tables, dense):
            sums = [added([*sums, result.sums])]
            results.append(replace(result, sums={}))
        line = {"phase": "local_only", "round": min(start + size, len(eligible)), "rounds": len(eligible)}
        on_round({**line, "seconds": time.perf_counter() - begin})
    if not results:
        return None
    together = joined(results, eligible, data.num_clients)
    if sums[0] and isinstance(parts.evaluation, Pooled):
        pooled = parts.evaluation.pooled(sums[0])
        together = replace(together, metrics={**together.metrics, **pooled}, sums=sums[0])
    return together


def _alone(
    parts: Parts,
    task: _Alone,
    training: LocalTraining,
    passes: int,
    chunk: Int64,
    tables: Mapping[str, Tensor],
    shared_dense: Mapping[str, Tensor],
) -> list[Evaluated]:
    first, count = int(chunk[0]), int(chunk[-1] - chunk[0] + 1)
    rows = personal_rows(task.tables, first, count)
    for name, table in tables.items():
        own = rows[name]
        own.points.view(count, *table.shape)[:] = table.cpu()
        own.known[:] = True
    cohort = task.examples(parts.dataset.train.take(chunk))
    dense = {name: value.clone() for name, value in shared_dense.items()}
    memory = OptimizerMemory() if training.keep_state else None
    for number in range(1, passes + 1):
        for updates in train_cohort(
            task, {}, dense, rows, cohort, chunk, training, parts.seed, number, memory
        ):
            for name, value in updates.dense.items():
                dense[name] += value[0]
        _smooth_own(task.tables, rows)
    if parts.evaluation is None:
        return []
    personal = {t.name: rows[t.name] for t in parts.task.tables if not t.shared}
    out = []
    for client in chunk:
        own_tables = {
            name: rows[name].points.view(count, *table.shape)[client - first].to(table.device)
            for name, table in tables.items()
        }
        alone = np.array([client])
        own_rows = rows_of(personal, alone, parts.seed, own_tables)
        out.append(measured(parts.evaluation, {**own_tables, **dense}, own_rows, alone))
    return out


def _smooth_own(tables: tuple[Table, ...], rows: Mapping[str, PersonalRows]) -> None:
    """The prior of the slices of time for clients that are alone."""
    for table in tables:
        own = rows[table.name]
        if table.num_slices > 1 and own.touched is not None:
            smooth_(table, own.points, torch.nonzero(own.touched)[:, 0], own.touched)


def joined(results: list[Evaluated], clients: Int64, num_clients: int) -> Evaluated:
    """Results of clients that were measured alone, ``(num_clients,)`` per client, and their means."""
    names = results[0].per_client
    per_client = {name: np.full(num_clients, np.nan) for name in names}
    for client, result in zip(clients, results, strict=True):
        for name in names:
            per_client[name][client] = result.per_client[name][0]
    alone = {name: np.array([result.metrics[name] for result in results]) for name in results[0].metrics}
    weights = None
    if results[0].weights is not None:
        weights = np.concatenate([r.weights for r in results if r.weights is not None])
    return Evaluated(over_clients(alone, weights), per_client, np.arange(num_clients, dtype=np.int64))
