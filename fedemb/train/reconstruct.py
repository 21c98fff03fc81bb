"""Clients without a memory: personal rows are found anew from the client's own examples whenever they are needed.

    examples ──> support ── shared part frozen: train the personal rows ──┐
            └──> query ──── personal rows frozen: train the shared part <─┘──> Updates; the personal rows are forgotten

Nothing is stored between rounds, so clients may be far too many to take part twice, and one that never took part has
its rows as soon as it has examples and the shared model.

Reference: Singhal, Sidahmed, Garrett, Wu, Rush, Prakash, "Federated Reconstruction: Partially Local Federated
Learning", NeurIPS 2021, algorithm 1. Both of its steps are epochs in batches of ``train.batch_size``, with the
optimiser of ``train.optimizer``; a client's examples of either set are never negatives of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.train.optimizers import OptimizerMemory
from fedemb.train.personal import PersonalRows, rows_of
from fedemb.train.phases import ALL, QUERY, SUPPORT, Phase
from fedemb.train.rows import ORIGIN, RECONSTRUCTED, LocalTraining, train_cohort
from fedemb.types import Evaluated, Evaluation, Fitted, Int64, Task, Updates

MEASURING = 0  # the round whose draws a client uses while it is measured; training begins with 1


def reconstruct(
    task: Task,
    tables: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    shards: Shards,
    clients: Int64,
    settings: LocalTraining,
    seed: int,
    round: int,
    part: str = ALL,
) -> dict[str, PersonalRows]:
    """Personal rows of these clients, from their examples and the shared model alone.

    They begin where ``settings.reconstruction_start`` says; a client without examples has them as they begin.

    Args:
        task: What is learnt.
        tables: Shared tables; not changed.
        dense: Dense parameters; not changed.
        shards: Examples of these clients, in their order.
        clients: ``(clients,)`` ids, ascending.
        settings: Local training.
        seed: The run's seed.
        round: The round.
        part: Which examples are seen: ``all`` or ``support``.
    """
    first, end = (int(clients[0]), int(clients[-1]) + 1) if len(clients) else (0, 0)
    make = PersonalRows.at_origin if settings.reconstruction_start == ORIGIN else PersonalRows.empty
    personal = {t.name: make(t, first, end - first) for t in task.tables if not t.shared}
    shared = [*(table.name for table in task.tables if table.shared), *(part.name for part in task.dense)]
    rate = settings.reconstruction_learning_rate
    training = replace(
        settings,
        epochs=settings.reconstruction_epochs,
        learning_rate=settings.learning_rate if rate is None else rate,
        burn_in_rounds=0,
        decay=1.0,
    )
    phase = Phase(frozenset(shared), part, settings.support_share)
    for _ in train_cohort(task, tables, dense, personal, shards, clients, training, seed, round, phase=phase):
        pass  # the rows are changed in place, and there are no updates
    return personal


def train_clients(
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
) -> Iterator[Updates]:
    """Updates of a cohort, chunk by chunk, whether its clients keep their personal rows or reconstruct them.

    Args as those of ``train_cohort``; ``personal`` and ``memory`` are not asked where nothing is kept.
    """
    if settings.personal != RECONSTRUCTED:
        yield from train_cohort(task, tables, dense, personal, shards, clients, settings, seed, round, memory)
        return
    own = reconstruct(task, tables, dense, shards, clients, settings, seed, round, SUPPORT)
    query = Phase(frozenset(own), QUERY, settings.support_share, settings.reconstruction_epochs)
    yield from train_cohort(task, tables, dense, own, shards, clients, settings, seed, round, phase=query)


@dataclass(frozen=True)
class Reconstructing:
    """An evaluation of clients that have nothing but what they know: their rows are reconstructed from all of it.

    Attributes:
        inner: What measures.
        task: What is learnt.
        examples: Of everything that each client knows when it is measured, by client id.
        training: How rows are reconstructed.
        seed: The run's seed.
    """

    inner: Evaluation
    task: Task
    examples: Shards
    training: LocalTraining
    seed: int

    @property
    def on_clients(self) -> bool:
        return self.inner.on_clients

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """The inner evaluation with rows found now; ``personal`` is not asked, ``clients`` ascend."""
        return self.inner(tables, self._rows(tables, clients), clients)

    def fit_sums(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Mapping[str, Int64]:
        """Those of the inner evaluation with rows found now; none if it fits nothing."""
        if not isinstance(self.inner, Fitted):
            return {}
        return self.inner.fit_sums(tables, self._rows(tables, clients), clients)

    def fitted(self, sums: Mapping[str, Int64]) -> dict[str, Tensor]:
        """What the inner evaluation fits."""
        return self.inner.fitted(sums) if isinstance(self.inner, Fitted) else {}

    def _rows(self, tables: Mapping[str, Tensor], clients: Int64) -> dict[str, Tensor]:
        """Personal rows of these clients, by name."""
        dense = {part.name: tables[part.name] for part in self.task.dense}
        shared = {table.name: tables[table.name] for table in self.task.tables if table.shared}
        own = reconstruct(
            self.task,
            shared,
            dense,
            self.examples.take(clients),
            clients,
            self.training,
            self.seed,
            MEASURING,
        )
        return rows_of(own, clients, self.seed, tables)
