"""Training events with each other's times: what time tells is lost, all else stays.

A session, such as a basket, moves as a whole: what is taken together stays together. Without sessions a line is one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedemb.data.held_out import TRAIN, Label
from fedemb.data.shards import Shards
from fedemb.seeds import generator
from fedemb.types import Int64


def session_starts(lines: Shards, label: Label) -> Int64:
    """When each training session began ``(sessions,)``, in the order of clients and their sessions."""
    return _sessions(lines, label)[0]


def shuffled_times(parts: Sequence[Int64], seed: int) -> Int64:
    """All these times in an order that the seed draws; how they come in parts does not matter."""
    times = np.concatenate(parts)
    return times[generator(seed, "shuffled times").permutation(len(times))]


def with_times(lines: Shards, label: Label, starts: Int64, last: int) -> tuple[Shards, Label]:
    """Lines whose training sessions begin at these times, each client's in order again.

    Args:
        lines: Each client's in the order of time.
        label: ``(lines,)`` the part that each belongs to.
        starts: ``(sessions,)`` as ``session_starts`` counts them.
        last: No line goes beyond this time, the last of all training.
    """
    own, session = _sessions(lines, label)
    train = label == TRAIN
    time = np.array(lines.columns["time"])
    time[train] = np.minimum(starts[session] + time[train] - own[session], last)
    order = np.lexsort((time, lines.owners()))
    columns = {**lines.columns, "time": time}
    return Shards({name: column[order] for name, column in columns.items()}, lines.offsets), label[order]


def _sessions(lines: Shards, label: Label) -> tuple[Int64, Int64]:
    """When each training session began, and the session ``(training lines,)`` of each line."""
    train = label == TRAIN
    time = np.asarray(lines.columns["time"])[train]
    if "session" not in lines.columns:
        return time, np.arange(len(time))
    keys = np.stack((lines.owners()[train], np.asarray(lines.columns["session"])[train].astype(np.int64)))
    distinct, session = np.unique(keys, axis=1, return_inverse=True)
    session = session.reshape(-1)
    starts = np.full(distinct.shape[1], np.iinfo(np.int64).max)
    np.minimum.at(starts, session, time)
    return starts, session
