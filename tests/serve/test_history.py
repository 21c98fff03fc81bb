from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch

from fedemb.data.shards import Shards
from fedemb.serve.history import Clients, Tails, joins_lines, new_examples
from fedemb.tasks.factorization import Factorization
from fedemb.tasks.skipgram import Skipgram

CDF = torch.linspace(0.1, 1, 10, dtype=torch.float64)
DTYPES = {"item": "int64", "session": "int64"}


def skipgram(within: str) -> Skipgram:
    return Skipgram(10, CDF, None, 4, 2, False, 3, within=within)


def shards(*clients: list[int]) -> Shards:
    items = np.array([item for client in clients for item in client], dtype=np.int64)
    return Shards({"item": items, "session": items * 0}, np.cumsum([0, *map(len, clients)]))


def pairs(examples: Shards) -> list[list[int]]:
    columns = [examples.owners(), *(examples.columns[n].astype(int) for n in ("left", "right"))]
    return sorted(np.stack(columns, axis=1).tolist())


def test_the_longest_unseen_client_is_forgotten() -> None:
    clients = Clients(2, OrderedDict())
    assert clients.seen(["a", "b", "a"])[0].tolist() == [0, 1, 0]
    assert clients.seen(["a"])[1] == []
    slots, forgotten = clients.seen(["c", "a"])  # b was unseen for longest
    assert slots.tolist() == [1, 0]
    assert forgotten == [1]
    assert list(clients.slots) == ["a", "c"]


@pytest.mark.parametrize("within", ["session", "history"])
def test_windows_cut_anywhere_make_the_pairs_of_the_whole(within: str) -> None:
    """Sequences with repetitions, cut at random into windows: all pairs come about, and none twice."""
    task, random = skipgram(within), np.random.default_rng(0)
    sequences = [random.integers(4, size=30).tolist() for _ in range(3)]
    tails, found = Tails.empty(DTYPES, 5, 16), []
    slots, at = np.array([0, 2, 4]), [0, 0, 0]
    while min(at) < 30:
        sizes = random.integers(0, 7, size=3)
        window = [
            sequence[start : start + size] for sequence, start, size in zip(sequences, at, sizes, strict=True)
        ]
        at = [start + len(new) for start, new in zip(at, window, strict=True)]
        lines = shards(*window)
        found += pairs(new_examples(task, tails.of(slots), lines))
        tails.add(slots, lines)
    assert sorted(found) == pairs(task.examples(shards(*sequences)))
    assert tails.counts.tolist() == [16, 0, 16, 0, 16]


def test_a_forgotten_slot_has_no_past() -> None:
    tails, slot = Tails.empty(DTYPES, 2, 4), np.array([1])
    tails.add(slot, shards([1, 2]))
    assert tails.of(slot).columns["item"].tolist() == [1, 2]
    tails.forget([1])
    assert tails.of(slot).num_examples == 0


def test_tasks_that_join_lines_are_known() -> None:
    factors = Factorization(10, CDF, 4, 2, "bpr", True, 0.1)
    assert joins_lines(skipgram("session"), DTYPES)
    assert not joins_lines(factors, DTYPES)
