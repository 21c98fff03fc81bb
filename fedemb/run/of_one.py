"""Baselines where it is the server that learns from sums of gradients: federations of one client and its server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fedemb.aggregate.plain import Plain
from fedemb.build import Parts
from fedemb.data.shards import Shards
from fedemb.evaluate.choose import measurable
from fedemb.evaluate.measure import measured
from fedemb.evaluate.spread import added
from fedemb.run.baselines import joined, participations, scaled
from fedemb.train.personal import PersonalRows, personal_rows, rows_of
from fedemb.train.rows import SUM, LocalTraining, concatenate, train_cohort
from fedemb.types import Evaluated, Int64, MetricsSink, Pooled


def learns_at_server(training: LocalTraining) -> bool:
    """Whether clients send sums of gradients, or evidence: then local steps alone lead nowhere."""
    return training.reduction == SUM


@dataclass(frozen=True)
class _Round:
    number: int
    model: dict[str, Tensor]
    loss: float
    seconds: float


def _rounds(
    parts: Parts,
    training: LocalTraining,
    shards: Shards,
    client: Int64,
    personal: dict[str, PersonalRows],
    rounds: int,
) -> Iterator[_Round]:
    """The rounds of one client and its own server, one after another; personal rows are trained in place."""
    tables, dense = parts.initial()
    optimizer, aggregator = parts.optimizer_of(), Plain(parts.shared, "sum")
    for number in range(1, rounds + 1):
        begin = time.perf_counter()
        chunks = train_cohort(
            parts.task, tables, dense, personal, shards, client, training, parts.seed, number
        )
        updates = concatenate(list(chunks))
        aggregator.add(updates, tables)
        optimizer.step(tables, dense, aggregator.finish(tables))
        loss = float(updates.metrics["loss"][0]) / max(1.0, float(updates.metrics["examples"][0]))
        yield _Round(number, {**tables, **dense}, loss, time.perf_counter() - begin)


def centralized_of_one(
    parts: Parts, training: LocalTraining, rounds: int, evaluate_every: int, on_round: MetricsSink
) -> Evaluated | None:
    """All shards pooled, the same task and server, and as many rounds as a client takes part in."""
    rounds_of_one = participations(parts, rounds)
    data = parts.dataset.train
    pooled, one = parts.task.examples(data).pooled(), np.zeros(1, dtype=np.int64)
    everybody, personal = (
        np.arange(data.num_clients, dtype=np.int64),
        personal_rows(parts.task.tables, 0, data.num_clients),
    )
    training, evaluated = scaled(training, rounds, rounds_of_one), None
    for now in _rounds(parts, training, pooled, one, personal, rounds_of_one):
        line = {"phase": "centralized", "round": now.number, "rounds": rounds_of_one}
        line |= {"loss": now.loss, "seconds": now.seconds}
        due = now.number == rounds_of_one or (evaluate_every and now.number % evaluate_every == 0)
        if parts.evaluation and due:
            rows = rows_of(personal, everybody, parts.seed, now.model)
            evaluated = measured(parts.evaluation, now.model, rows, everybody)
            line |= evaluated.metrics
        on_round(line)
    return evaluated


def local_only_of_one(
    parts: Parts, training: LocalTraining, rounds: int, on_round: MetricsSink
) -> Evaluated | None:
    """Every client alone with its own server, for as many rounds as it takes part in; metrics are means over them."""
    if parts.evaluation is None:
        return None
    rounds_of_one, eligible = participations(parts, rounds), measurable(parts.evaluation, parts.dataset)
    training, results = scaled(training, rounds, rounds_of_one), []
    for place, client in enumerate(eligible):
        begin, alone = time.perf_counter(), np.array([client])
        personal = personal_rows(parts.task.tables, int(client), 1)
        shards = parts.task.examples(parts.dataset.train.take(alone))
        *_, last = _rounds(parts, training, shards, alone, personal, rounds_of_one)
        rows = rows_of(personal, alone, parts.seed, last.model)
        results.append(measured(parts.evaluation, last.model, rows, alone))
        line = {"phase": "local_only", "round": place + 1, "rounds": len(eligible)}
        on_round({**line, "seconds": time.perf_counter() - begin})
    if not results:
        return None
    together = joined(results, eligible, parts.dataset.train.num_clients)
    if results[0].sums and isinstance(parts.evaluation, Pooled):
        sums = added([result.sums for result in results])
        pooled = parts.evaluation.pooled(sums)
        together = replace(together, metrics={**together.metrics, **pooled}, sums=sums)
    return together
