"""Training events with each other's times: what time tells is lost, all else stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedemb.data.held_out import DAY, TRAIN, Label
from fedemb.data.shards import Shards
from fedemb.seeds import generator
from fedemb.types import Int64


def shuffled_times(parts: Sequence[Int64], seed: int) -> Int64:
    """All these times in an order that the seed draws; how they come in parts does not matter."""
    times = np.concatenate(parts)
    return times[generator(seed, "shuffled times").permutation(len(times))]


def with_times(lines: Shards, label: Label, times: Int64) -> tuple[Shards, Label]:
    """Lines whose training events have these times, each client's in order again.

    A session that spread over all times would be none: those of training are now the days (UTC) of a client.

    Args:
        lines: Each client's in the order of time.
        label: ``(lines,)`` the part that each belongs to.
        times: ``(training lines,)``.
    """
    train = label == TRAIN
    columns = dict(lines.columns)
    columns["time"] = columns["time"].copy()
    columns["time"][train] = times
    if "session" in columns:
        held_out = columns["session"].astype(np.int64)
        lowest = min(0, int(held_out.min(initial=0)))
        day = columns["time"] // DAY
        columns["session"] = np.where(train, lowest - 1 - (day - day.min(initial=0)), held_out)
    order = np.lexsort((columns["time"], lines.owners()))
    return Shards({name: column[order] for name, column in columns.items()}, lines.offsets), label[order]
