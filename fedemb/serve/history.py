"""What a service remembers of clients: a slot for each, and the latest interactions of each; bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedemb.data.assemble import in_order
from fedemb.data.held_out import DAY
from fedemb.data.shards import Column, Shards, group_by_client, join, offsets_of
from fedemb.types import Int64, Task


@dataclass
class Clients:
    """Slots ``0 .. limit - 1`` by name, the longest unseen client first; a full house forgets that one.

    Attributes:
        limit: How many.
        slots: Name to slot.
    """

    limit: int
    slots: OrderedDict[str, int]

    def seen(self, names: Sequence[str]) -> tuple[Int64, list[int]]:
        """The slot of each name ``(names,)``, and slots that belonged to somebody else until now.

        At most ``limit`` different names.
        """
        out, forgotten = np.empty(len(names), dtype=np.int64), []
        for name in dict.fromkeys(names):
            if name in self.slots:
                self.slots.move_to_end(name)
        for place, name in enumerate(names):
            if name not in self.slots:
                if len(self.slots) >= self.limit:
                    _, slot = self.slots.popitem(last=False)
                    forgotten.append(slot)
                else:
                    slot = len(self.slots)
                self.slots[name] = slot
            out[place] = self.slots[name]
        return out, forgotten


@dataclass
class Tails:
    """Each slot's latest interactions, the newest last.

    Attributes:
        columns: ``(slots, length)`` per name.
        counts: ``(slots,)`` how many there are.
    """

    columns: dict[str, Column]
    counts: Int64

    @staticmethod
    def empty(dtypes: Mapping[str, str], slots: int, length: int) -> Tails:
        # Memory that nobody wrote to is not committed by the operating system.
        columns: dict[str, Column] = {
            name: np.zeros((slots, length), dtype=dtype) for name, dtype in dtypes.items()
        }
        return Tails(columns, np.zeros(slots, dtype=np.int64))

    def forget(self, slots: Sequence[int]) -> None:
        """These slots have no past."""
        self.counts[list(slots)] = 0

    def of(self, slots: Int64) -> Shards:
        """The latest interactions of these, as shards in this order."""
        sizes = self.counts[slots]
        length = next(iter(self.columns.values())).shape[1]
        filled = np.arange(length) >= length - sizes[:, None]
        return Shards({name: c[slots][filled] for name, c in self.columns.items()}, offsets_of(sizes))

    def add(self, slots: Int64, lines: Shards) -> None:
        """Remembers the latest of these lines, client by client in the order of ``slots``."""
        both = in_order(join([self.of(slots), lines]))
        length = next(iter(self.columns.values())).shape[1]
        sizes = np.minimum(both.sizes, length)
        from_end = np.repeat(both.offsets[1:], both.sizes) - np.arange(both.num_examples)
        latest = from_end <= length
        owner = np.repeat(slots, sizes)
        for name, column in self.columns.items():
            column[owner, length - from_end[latest]] = both.columns[name][latest]
        self.counts[slots] = sizes


def new_examples(task: Task, tails: Shards, lines: Shards) -> Shards:
    """Examples that come about by these lines, put in the order of time among what their clients did before.

    A line that comes late is one of the past: it sees what was before it, and changes no example of what came after.

    Where a task makes one example of each line, those of the new lines. Else those of past and present together, less
    those of the past alone: right for every task whose examples of a sequence's beginning are among those of the whole.

    Args:
        task: What is learnt.
        tails: Past lines of the same clients, in the same order; none of a client that has no past.
        lines: New ones.
    """
    marked = [
        Shards({**part.columns, "_new": np.full(part.num_examples, new)}, part.offsets)
        for part, new in ((tails, False), (lines, True))
    ]
    both = in_order(join(marked))
    new = both.columns["_new"]
    both = Shards({name: column for name, column in both.columns.items() if name != "_new"}, both.offsets)
    examples = task.examples(both)
    if not tails.num_examples:
        return examples
    if np.array_equal(examples.offsets, both.offsets):
        return _chosen(examples, new)
    past = task.examples(tails)
    if not past.num_examples:
        return examples
    keys = np.concatenate((_keys(past), _keys(examples)))
    _, kind = np.unique(keys, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    before, now = kind[: past.num_examples], kind[past.num_examples :]
    order = np.argsort(now, kind="stable")
    ordered = now[order]
    rank = np.empty(len(now), dtype=np.int64)  # how many alike stand before it
    rank[order] = np.arange(len(now)) - np.searchsorted(ordered, ordered)
    return _chosen(examples, rank >= np.bincount(before, minlength=int(kind.max()) + 1)[now])


def _chosen(examples: Shards, fresh: npt.NDArray[np.bool_]) -> Shards:
    columns = {name: column[fresh] for name, column in examples.columns.items()}
    return group_by_client(columns, examples.owners()[fresh], examples.num_clients)


def _keys(shards: Shards) -> Int64:
    """Every example as whole numbers ``(examples, width)``: its client, and its columns bit by bit."""
    parts = [shards.owners()[:, None]]
    for column in shards.columns.values():
        flat = np.ascontiguousarray(column).reshape(len(column), -1)
        whole = flat if flat.dtype.kind in "iub" else flat.astype(np.float64).view(np.int64)
        parts.append(whole.astype(np.int64))
    return np.concatenate(parts, axis=1)


def joins_lines(task: Task, dtypes: Mapping[str, str]) -> bool:
    """Whether a task's examples join several lines of a client: two lines make other examples than one and one.

    Asked of two lines of one session, and of two sessions a day apart.
    """
    for apart in (0, 1):
        steps = np.arange(2) * apart
        columns: dict[str, Column] = {
            name: (steps * DAY if name == "time" else steps if name == "session" else np.zeros(2)).astype(
                dtype
            )
            for name, dtype in dtypes.items()
        }
        together, alone = (
            task.examples(Shards(columns, np.array(offsets, dtype=np.int64)))
            for offsets in ([0, 2], [0, 1, 2])
        )
        if together.num_examples != alone.num_examples:
            return True
        for name, column in together.columns.items():
            if not np.array_equal(column, alone.columns[name]):
                return True
    return False
