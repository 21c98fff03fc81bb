"""What stands around an event: what its client took before, or its neighbours in a text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedemb.data.shards import Shards
from fedemb.types import Int64

DAY = 86_400
NOTHING = -1
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


def earlier_items(shards: Shards, length: int) -> tuple[Int32, Float32]:
    """What each line's client took before the line's session began, the latest first.

    What is taken in one session is taken together: none of it is a past of the rest.

    Args:
        shards: Columns ``item`` and ``time``, each client's lines in the order of time; ``session`` where a client's
            lines are grouped.
        length: How many at most.

    Returns:
        Items ``(lines, length)``, -1 where there are no more; and how many days before the line each was taken.
    """
    first = _session_starts(shards)
    at = first[:, None] - 1 - np.arange(length)
    return _taken(shards, at, np.repeat(shards.offsets[:-1], shards.sizes), shards.columns["time"])


def latest_items(shards: Shards, length: int, now: Int64) -> tuple[Int32, Float32]:
    """What each client took last before it is asked, as ``earlier_items``.

    Args:
        shards: As there.
        length: How many at most.
        now: ``(clients,)`` epoch seconds.

    Raises:
        ValueError: If something was taken after that.
    """
    if (shards.columns["time"] > np.repeat(now, shards.sizes)).any():
        raise ValueError("a history must lie before its client is asked; the future leaked")
    at = shards.offsets[1:, None] - 1 - np.arange(length)
    return _taken(shards, at, shards.offsets[:-1], now)


def neighbours(shards: Shards, window: int) -> Int32:
    """Items ``(lines, 2 * window)`` at distances up to ``window`` on either side within the session, else -1."""
    at = np.arange(shards.num_examples)[:, None] + np.r_[-window:0, 1 : window + 1]
    inside = (at >= 0) & (at < shards.num_examples)
    at = np.where(inside, at, 0)
    owner, item = shards.owners(), np.asarray(shards.columns["item"])
    inside &= owner[at] == owner[:, None]
    if "session" in shards.columns:
        session = np.asarray(shards.columns["session"])
        inside &= session[at] == session[:, None]
    return np.where(inside, item[at], NOTHING).astype(np.int32)


def _session_starts(shards: Shards) -> Int64:
    """The line with which each line's session began; every line is its own without a column for it."""
    if "session" not in shards.columns:
        return np.arange(shards.num_examples)
    keys = np.stack((shards.owners(), np.asarray(shards.columns["session"])))
    _, first, session = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    return first[session.reshape(-1)]


def _taken(shards: Shards, at: Int64, begin: Int64, now: npt.NDArray[np.int64]) -> tuple[Int32, Float32]:
    """Items and ages of the lines ``at`` that do not lie before their client's first one."""
    there = at >= begin[:, None]
    if not shards.num_examples:
        return np.full(at.shape, NOTHING, dtype=np.int32), np.zeros(at.shape, dtype=np.float32)
    at = np.where(there, at, 0)
    item, time = np.asarray(shards.columns["item"]), np.asarray(shards.columns["time"])
    age = np.where(there, (np.asarray(now)[:, None] - time[at]) / DAY, 0.0)
    return np.where(there, item[at], NOTHING).astype(np.int32), age.astype(np.float32)
