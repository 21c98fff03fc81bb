"""Alarms for leaks from the future: a walk over a pass as the trainer draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedemb.data.cells import show_time
from fedemb.data.shards import Shards
from fedemb.data.time_slices import slice_of
from fedemb.errors import SettingError
from fedemb.evaluate.ranking import asked_at
from fedemb.tasks.contexts import DAY, NOTHING
from fedemb.train.epochs import epoch_of, examples_of
from fedemb.types import Dataset, Int64, Temporal

_CLIENTS_AT_ONCE = 512
_SAME_TIME = 4  # lines of a client with one item at one time that are looked at


def walk_batches(task: Temporal, dataset: Dataset, batch_size: int, seed: int) -> dict[str, int]:
    """Walks one pass of every client, batch by batch, as the trainer draws them, and counts what it saw.

    Contexts are the same in every pass; negatives are drawn anew. Checked of every example: it lies before what is held
    out; every entry of its context is a line of its own client, at the time that its age says, no later than the
    example and, where lines have sessions, of another session (of a text's neighbours, which have no age: a line of
    its client); and every row that belongs to a slice of time, negatives included, belongs to the slice that the
    example lies in.

    Args:
        task: What is learnt.
        dataset: What it trains on.
        batch_size: As for training.
        seed: The run's seed.

    Raises:
        SettingError: If what is held out begins at another time for each client: then some train on what is the
            future of others.
        RuntimeError: If anything comes from the future: a defect in the code.
    """
    until = _cut(dataset)
    num_clients, num_items = dataset.train.num_clients, len(dataset.vocabularies["item"])
    counts = {"batches": 0, "examples": 0}
    for start in range(0, num_clients, _CLIENTS_AT_ONCE):
        clients = np.arange(start, min(start + _CLIENTS_AT_ONCE, num_clients), dtype=np.int64)
        lines = dataset.train.take(clients)
        shards = task.examples(lines)
        if not shards.num_examples:
            continue
        epoch = epoch_of(task, examples_of(task, shards, clients), batch_size, seed, 1, 0, clients)
        known = _Lines.of(lines, num_items)
        for begin, end in pairwise(epoch.steps):
            batch = {name: column[begin:end] for name, column in epoch.columns.items()}
            _check(batch, epoch.client[begin:end].numpy(), known, until)
            for table in task.tables:
                if table.num_slices > 1:
                    _check_slices(epoch.ids[table.name][begin:end], batch, table.num_slices, task.slices)
            counts["batches"] += 1
            counts["examples"] += end - begin
    return counts


def _cut(dataset: Dataset) -> int:
    """Before when training must end, for all clients."""
    split = next((name for name in ("validation", "test") if name in dataset.held_out), None)
    limits = None if split is None else asked_at(dataset, split)
    if limits is None or not len(limits):
        return int(np.iinfo(np.int64).max)
    if (limits != limits[0]).any():
        raise SettingError(
            "data.leave_last must be null for task=dynamic: each client's future would begin at another time, and "
            "training would hold what is the future of others; use data.test_from or shares of time"
        )
    return int(limits[0])


@dataclass(frozen=True)
class _Lines:
    """Lines of some clients in the order of client, item and time.

    ``keys`` are ``client * num_items + item`` and ``codes`` one number that grows with key and time.
    """

    num_items: int
    keys: Int64
    distinct: Int64
    codes: Int64
    first_time: int
    span: int
    session: Int64 | None

    @staticmethod
    def of(lines: Shards, num_items: int) -> _Lines:
        time = np.asarray(lines.columns["time"])
        keys = lines.owners() * num_items + np.asarray(lines.columns["item"])
        order = np.lexsort((time, keys))
        first, span = int(time.min()), int(time.max() - time.min()) + 1
        distinct, place = np.unique(keys[order], return_inverse=True)
        session = np.asarray(lines.columns["session"])[order] if "session" in lines.columns else None
        codes = place.reshape(-1) * span + (time[order] - first)
        return _Lines(num_items, keys[order], distinct, codes, first, span, session)

    def has(self, owner: Int64, item: Int64) -> bool:
        """Whether all of these clients took these items at some time."""
        return bool(np.isin(owner * self.num_items + item, self.distinct).all())

    def had(self, owner: Int64, item: Int64, time: Int64, slack: Int64, session: Int64 | None) -> bool:
        """Whether all of these clients took these items at these times, in another session than these."""
        keys = owner * self.num_items + item
        place = np.searchsorted(self.distinct, keys).clip(max=len(self.distinct) - 1)
        if (self.distinct[place] != keys).any():
            return False
        since = (time - slack - self.first_time).clip(0, self.span - 1)
        at = np.searchsorted(self.codes, place * self.span + since)
        latest = place * self.span + (time + slack - self.first_time).clip(-1, self.span - 1)
        found = np.zeros(len(keys), dtype=np.bool_)
        for _ in range(_SAME_TIME):  # lines of one item at one time: the first one of another session counts
            there = (at < len(self.codes)) & (self.codes[at.clip(max=len(self.codes) - 1)] <= latest)
            other = np.ones(len(keys), dtype=np.bool_)
            if self.session is not None and session is not None:
                other = self.session[at.clip(max=len(self.codes) - 1)] != session
            found |= there & other
            at = at + 1
        return bool(found.all())


def _check(batch: Mapping[str, Tensor], owner: Int64, known: _Lines, until: int) -> None:
    time = batch["time"].numpy()
    if (time > until).any():
        worst = int((time > until).argmax())
        raise RuntimeError(
            f"a training batch must hold nothing after {show_time(until)}, "
            f"got {show_time(int(time[worst]))}; the future leaked"
        )
    context = batch["context"].numpy()
    line, place = np.nonzero(context != NOTHING)
    items = context[line, place].astype(np.int64)
    if "age" not in batch:  # neighbours in a text stand beside an example, not before it
        if not known.has(owner[line], items):
            raise RuntimeError("a context must hold what its client trains on; something else leaked")
        return
    days = batch["age"].numpy()[line, place].astype(np.float64)
    if (days < 0).any():
        raise RuntimeError("ages in a context must not be negative; the future leaked")
    then = np.round(time[line] - days * DAY).astype(np.int64)
    slack = np.ceil(1 + days * DAY * np.finfo(np.float32).eps).astype(np.int64)  # ages are float32
    session = batch["session"].numpy()[line] if "session" in batch else None
    if not known.had(owner[line], items, then, slack, session):
        raise RuntimeError(
            "a context must hold what its client took before, in an earlier session; the future leaked"
        )


def _check_slices(ids: Tensor, batch: Mapping[str, Tensor], num_slices: int, bounds: Int64) -> None:
    own = torch.from_numpy(slice_of(batch["time"].numpy(), bounds))
    if not bool((ids % num_slices == own[:, None]).all()):
        raise RuntimeError("an example must look up rows of its own slice of time; the future leaked")
