"""Baselines of tasks with Gaussian rows: federations of one, whose server adds the prior to the evidence as ever."""

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
from fedemb.gaussian import Gaussian
from fedemb.run.baselines import joined, participations, scaled
from fedemb.train.rows import LocalTraining, concatenate, train_cohort
from fedemb.types import Evaluated, Int64, MetricsSink, Pooled


def is_posterior(parts: Parts) -> bool:
    """Whether what is learnt is a posterior, which local steps alone do not lead to."""
    return any(isinstance(table.manifold, Gaussian) for table in parts.task.tables)


@dataclass(frozen=True)
class _Round:
    number: int
    tables: dict[str, Tensor]
    dense: dict[str, Tensor]
    loss: float
    seconds: float


def _rounds(
    parts: Parts, training: LocalTraining, shards: Shards, client: Int64, rounds: int
) -> Iterator[_Round]:
    """The rounds of one client and its own server, one after another; tables are trained in place."""
    tables, dense = parts.initial()
    optimizer, aggregator = parts.optimizer_of(), Plain(parts.shared, "sum")
    for number in range(1, rounds + 1):
        begin = time.perf_counter()
        parts_of = train_cohort(parts.task, tables, dense, {}, shards, client, training, parts.seed, number)
        updates = concatenate(list(parts_of))
        aggregator.add(updates, tables)
        optimizer.step(tables, dense, aggregator.finish(tables))
        loss = float(updates.metrics["loss"][0]) / max(1.0, float(updates.metrics["examples"][0]))
        yield _Round(number, tables, dense, loss, time.perf_counter() - begin)


def centralized_posterior(
    parts: Parts, training: LocalTraining, rounds: int, evaluate_every: int, on_round: MetricsSink
) -> Evaluated | None:
    """All shards pooled, the same task, and as many rounds as a client takes part in."""
    passes = participations(parts, rounds)
    pooled = parts.task.examples(parts.dataset.train).pooled()
    everybody = np.arange(parts.dataset.train.num_clients, dtype=np.int64)
    training, evaluated = scaled(training, rounds, passes), None
    for now in _rounds(parts, training, pooled, np.zeros(1, dtype=np.int64), passes):
        line = {"phase": "centralized", "round": now.number, "rounds": passes}
        line |= {"loss": now.loss, "seconds": now.seconds}
        due = now.number == passes or (evaluate_every and now.number % evaluate_every == 0)
        if parts.evaluation and due:
            evaluated = measured(parts.evaluation, {**now.tables, **now.dense}, {}, everybody)
            line |= evaluated.metrics
        on_round(line)
    return evaluated


def local_only_posterior(
    parts: Parts, training: LocalTraining, rounds: int, on_round: MetricsSink
) -> Evaluated | None:
    """Every client alone with its own server, for as many rounds as it takes part in; metrics are means over them."""
    if parts.evaluation is None:
        return None
    passes, eligible = participations(parts, rounds), measurable(parts.evaluation, parts.dataset)
    training, results = scaled(training, rounds, passes), []
    for place, client in enumerate(eligible):
        begin, alone = time.perf_counter(), np.array([client])
        for now in _rounds(
            parts, training, parts.task.examples(parts.dataset.train.take(alone)), alone, passes
        ):
            if now.number == passes:
                results.append(measured(parts.evaluation, {**now.tables, **now.dense}, {}, alone))
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
