"""What a service remembers of clients: a slot for each, and the latest interactions of each; bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
        """Remembers the last of these lines, client by client in the order of ``slots``."""
        both = join([self.of(slots), lines])
        length = next(iter(self.columns.values())).shape[1]
        sizes = np.minimum(both.sizes, length)
        from_end = np.repeat(both.offsets[1:], both.sizes) - np.arange(both.num_examples)
        latest = from_end <= length
        owner = np.repeat(slots, sizes)
        for name, column in self.columns.items():
            column[owner, length - from_end[latest]] = both.columns[name][latest]
        self.counts[slots] = sizes


def new_examples(task: Task, tails: Shards, lines: Shards) -> Shards:
    """Examples that come about by these lines: those of past and present together, less those of the past alone.

    Right for every task whose examples of a sequence's beginning are among those of the whole.

    Args:
        task: What is learnt.
        tails: Past lines of the same clients, in the same order; none of a client that has no past.
        lines: New ones.
    """
    examples = task.examples(join([tails, lines]))
    if not tails.num_examples:
        return examples
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
    fresh = rank >= np.bincount(before, minlength=int(kind.max()) + 1)[now]
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
    """Whether a task's examples join several lines of a client: two lines make other examples than one and one."""

    def num_examples(num_lines: int) -> int:
        columns: dict[str, Column] = {
            name: np.zeros(num_lines, dtype=dtype) for name, dtype in dtypes.items()
        }
        return task.examples(Shards(columns, np.array([0, num_lines], dtype=np.int64))).num_examples

    return num_examples(2) != 2 * num_examples(1)
