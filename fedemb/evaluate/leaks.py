"""Alarms for leaks from the future: a walk over the batches as they are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedemb.data.cells import show_time
from fedemb.data.shards import Shards
from fedemb.data.time_slices import slice_of
from fedemb.evaluate.ranking import asked_at
from fedemb.tasks.contexts import NOTHING
from fedemb.train.epochs import epoch_of, examples_of
from fedemb.types import Dataset, Int64, Temporal

_CLIENTS_AT_ONCE = 512


def walk_batches(task: Temporal, dataset: Dataset, batch_size: int, seed: int) -> dict[str, int]:
    """Walks the batches of one pass of every client, as training draws them, and counts what it saw.

    Checked of every example: it lies before whatever of its client is held out; its context is what its client trains
    on, and, where that has ages, none was first taken later than the example, nor is an age negative; and every row
    that belongs to a slice of time, negatives included, belongs to the slice that the example lies in.

    Args:
        task: What is learnt.
        dataset: What it trains on.
        batch_size: As for training.
        seed: The run's seed.

    Raises:
        RuntimeError: If anything comes from the future: a defect in the code.
    """
    split = next((name for name in ("validation", "test") if name in dataset.held_out), None)
    limits = None if split is None else asked_at(dataset, split)
    num_clients = dataset.train.num_clients
    until = np.full(num_clients, np.iinfo(np.int64).max) if limits is None else limits
    counts = {"batches": 0, "examples": 0}
    for start in range(0, num_clients, _CLIENTS_AT_ONCE):
        clients = np.arange(start, min(start + _CLIENTS_AT_ONCE, num_clients), dtype=np.int64)
        lines = dataset.train.take(clients)
        shards = task.examples(lines)
        if not shards.num_examples:
            continue
        epoch = epoch_of(task, examples_of(task, shards, clients), batch_size, seed, 1, 0, clients)
        first = _first_taken(lines, len(dataset.vocabularies["item"]))
        for begin, end in pairwise(epoch.steps):
            batch = {name: column[begin:end] for name, column in epoch.columns.items()}
            owner = epoch.client[begin:end].numpy()
            _check(batch, owner, first, until[clients], len(dataset.vocabularies["item"]))
            for table in task.tables:
                if table.num_slices > 1:
                    _check_slices(epoch.ids[table.name][begin:end], batch, table.num_slices, task.slices)
            counts["batches"] += 1
            counts["examples"] += end - begin
    return counts


def _first_taken(lines: Shards, num_items: int) -> tuple[Int64, Int64]:
    """``client * num_items + item`` of all that was taken, ascending, and when it first was."""
    keys = lines.owners() * num_items + np.asarray(lines.columns["item"])
    time = np.asarray(lines.columns["time"])
    order = np.lexsort((time, keys))
    keys, time = keys[order], time[order]
    first = np.r_[True, keys[1:] != keys[:-1]]
    return keys[first], time[first]


def _check(
    batch: Mapping[str, Tensor], owner: Int64, taken: tuple[Int64, Int64], until: Int64, num_items: int
) -> None:
    time = batch["time"].numpy()
    if (time > until[owner]).any():
        worst = int((time > until[owner]).argmax())
        raise RuntimeError(
            f"a training batch must hold nothing after {show_time(int(until[owner[worst]]))}, "
            f"got {show_time(int(time[worst]))}; the future leaked"
        )
    context = batch["context"].numpy()
    line, place = np.nonzero(context != NOTHING)
    keys, first = taken
    at = np.searchsorted(keys, owner[line] * num_items + context[line, place]).clip(max=len(keys) - 1)
    beside = "age" not in batch  # neighbours in a text stand beside an example, not before it
    later = np.zeros(len(line), dtype=np.bool_) if beside else first[at] > time[line]
    if (keys[at] != owner[line] * num_items + context[line, place]).any() or later.any():
        raise RuntimeError("a context must hold what its client took before; the future leaked")
    if not beside and bool((batch["age"] < 0).any()):
        raise RuntimeError("ages in a context must not be negative; the future leaked")


def _check_slices(ids: Tensor, batch: Mapping[str, Tensor], num_slices: int, bounds: Int64) -> None:
    own = torch.from_numpy(slice_of(batch["time"].numpy(), bounds))
    if not bool((ids % num_slices == own[:, None]).all()):
        raise RuntimeError("an example must look up rows of its own slice of time; the future leaked")
