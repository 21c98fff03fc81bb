"""Applying a window: the same local trainer as in a federation, then the rows that it touched.

    entries ── slots, columns ──> lines by client ── with each client's tail ──> examples
                                                                                 │ train_cohort, from the same tables
                                     tables, in place <── one step a row <── sum of all clients' updates
                                         │
                                         └── touched rows as they are now ──> Change, for the readers

The random walk of rows in slices of time (fedemb/walk.py) is not solved for again: a window brings no new data to older
slices, and a prior that is applied window after window would wear away what they know.

What a window does follows from the state before it, its number and its interactions, so it can be applied again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from fedemb.aggregate.plain import Plain
from fedemb.data.shards import Column, Shards, group_by_client, offsets_of
from fedemb.serve.history import joins_lines, new_examples
from fedemb.serve.queue import Entry, Window
from fedemb.serve.rows import Change
from fedemb.serve.state import State
from fedemb.server.optimizers import RowOptimizer
from fedemb.train.personal import rows_of
from fedemb.train.rows import LocalTraining, train_cohort
from fedemb.types import Int64, Task, Total, Updates


@dataclass(frozen=True)
class Updater:
    """How windows are applied.

    Attributes:
        task: What is learnt.
        training: How clients of a window train; see ``streaming``.
        batch_size: Of the run: an example counts for as much as it does in a batch of so many.
        dtypes: Of the columns that the task was trained on.
        seed: Of the run.
        first_round: Rounds of the run: windows draw as if they were the rounds after these.
    """

    task: Task
    training: LocalTraining
    batch_size: int
    dtypes: Mapping[str, str]
    seed: int
    first_round: int

    def apply(self, state: State, window: Window, entries: list[Entry]) -> Change:
        """Moves ``state`` on by a window; returns what changed."""
        slots, forgotten = state.clients.seen([client for client, _ in entries])
        for own in state.personal.values():
            own.known[forgotten] = False
        if state.tails is not None:
            state.tails.forget(forgotten)
        clients, examples = self._examples(state, entries, slots)
        total, broken = self._total(state, clients, examples)
        state.number, state.sequence = window.number, window.last
        state.rejected += int(np.isin(slots, broken).sum())
        shared = tuple(table for table in self.task.tables if table.shared)
        RowOptimizer(shared).step(state.tables, state.dense, total)
        rows = {name: part.rows.cpu() for name, part in total.tables.items()}
        values = {name: state.tables[name].index_select(0, ids) for name, ids in rows.items()}
        dense = {name: state.dense[name].clone() for name in total.dense}
        return Change(window.number, window.last, rows, values, dense)

    def _examples(self, state: State, entries: list[Entry], slots: Int64) -> tuple[Int64, Shards]:
        """The window's clients, ascending, and their new examples."""
        clients, position = np.unique(slots, return_inverse=True)
        columns: dict[str, Column] = {
            name: np.array([values[place] for _, values in entries], dtype=dtype)
            for place, (name, dtype) in enumerate(self.dtypes.items())
        }
        lines = group_by_client(columns, position, len(clients))
        if state.tails is None:
            past = Shards(
                {n: c[:0] for n, c in columns.items()}, offsets_of(np.zeros(len(clients), np.int64))
            )
        else:
            past = state.tails.of(clients)
        examples = new_examples(self.task, past, lines)
        if state.tails is not None:
            state.tails.add(clients, lines)
        # One step for each client, in which n examples count n / batch_size of a full batch, and never more than one.
        count = np.repeat(examples.sizes, examples.sizes)
        share = np.minimum(1.0, count / self.batch_size) if self.batch_size else np.ones(len(count))
        weight = examples.columns.get("weight", np.ones(len(count), dtype=np.float32))
        return clients, Shards(
            {**examples.columns, "weight": (weight * share).astype(np.float32)}, examples.offsets
        )

    def _total(self, state: State, clients: Int64, examples: Shards) -> tuple[Total, Int64]:
        """The sum of the clients' updates, and the clients whose update is no number: these are left out."""
        shared = tuple(table for table in self.task.tables if table.shared)
        before = rows_of(state.personal, clients, self.seed, state.tables)
        updates = self._updates(state, clients, examples)
        fine = _finite(updates, len(clients))
        for rows in rows_of(state.personal, clients, self.seed, state.tables).values():
            fine &= rows.isfinite().flatten(1).all(1).numpy()
        if not fine.all():  # once more, as if the others had not come
            for name, points in before.items():
                own = state.personal[name]
                each = np.arange(own.table.num_rows, dtype=np.int64)
                keys = torch.from_numpy((clients[:, None] * own.table.num_rows + each).ravel())
                own.put(keys, points.reshape(len(keys), -1))
            updates = self._updates(state, clients[fine], examples.take(np.flatnonzero(fine)))
        if not updates:
            return Total({}, {}, 0), clients[~fine]
        aggregator = Plain(shared, rows="sum")
        for part in updates:
            aggregator.add(part, state.tables)
        return aggregator.finish(state.tables), clients[~fine]

    def _updates(self, state: State, clients: Int64, examples: Shards) -> list[Updates]:
        if not examples.num_examples:
            return []
        round = self.first_round + state.number + 1
        return list(
            train_cohort(
                self.task,
                state.tables,
                state.dense,
                state.personal,
                examples,
                clients,
                self.training,
                self.seed,
                round,
            )
        )


def _finite(updates: list[Updates], num_clients: int) -> npt.NDArray[np.bool_]:
    """Whether all numbers of each client's update are finite ``(clients,)``."""
    if not updates:
        return np.ones(num_clients, dtype=np.bool_)
    found = []
    for part in updates:
        fine = torch.ones(len(part.clients), dtype=torch.bool)
        for rows in part.tables.values():
            owner = torch.repeat_interleave(torch.arange(len(part.clients)), rows.offsets.diff())
            fine[owner[~rows.values.isfinite().all(1).cpu()]] = False
        for value in part.dense.values():
            fine &= value.isfinite().reshape(len(value), -1).all(1).cpu()
        found.append(fine.numpy())
    return np.concatenate(found)


def streaming(training: LocalTraining, learning_rate: float | None) -> LocalTraining:
    """Local training of a window: one step for each client, at a rate that stays the same for good."""
    return replace(
        training,
        epochs=1,
        batch_size=0,
        burn_in_rounds=0,
        decay=1.0,
        keep_state=False,
        learning_rate=training.learning_rate if learning_rate is None else learning_rate,
    )


def wants_tails(task: Task, dtypes: Mapping[str, str], history: int) -> bool:
    """Whether clients' latest interactions must be kept."""
    return history > 0 and joins_lines(task, dtypes)
