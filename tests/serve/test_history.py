from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedemb.data.shards import Shards
from fedemb.serve.history import Clients, Tails, joins_lines, new_examples
from fedemb.tasks.contexts import DAY
from fedemb.tasks.dynamic import Dynamic
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


TIMED = {"item": "int64", "time": "int64", "session": "int64"}


def dynamic(**changes: object) -> Dynamic:
    task = Dynamic(
        10,
        np.array([0, 40, 100]) * DAY,
        3,
        4,
        2,
        "slices",
        "exponential",
        "history",
        5,
        True,
        1.0,
        2,
        0.1,
        0.5,
    )
    return replace(task, **changes)  # type: ignore[arg-type]


def test_tasks_that_join_lines_are_known() -> None:
    factors = Factorization(10, CDF, 4, 2, "bpr", True, 0.1)
    assert joins_lines(skipgram("session"), DTYPES)
    assert joins_lines(skipgram("history"), TIMED)
    assert not joins_lines(factors, DTYPES)
    assert not joins_lines(factors, TIMED)
    assert joins_lines(dynamic(), TIMED)
    window = {"context": "window", "state": "mean", "repeats": False, "own_negatives": 0}
    assert joins_lines(dynamic(**window), TIMED)


def timed(*clients: list[tuple[int, int]]) -> Shards:
    """Lines (item, hour) of each client; a session is a day."""
    lines = np.array([line for client in clients for line in client], dtype=np.int64).reshape(-1, 2)
    columns = {"item": lines[:, 0], "time": lines[:, 1] * 3_600, "session": lines[:, 1] // 24}
    return Shards(columns, np.cumsum([0, *map(len, clients)]))


def test_windows_cut_anywhere_make_the_examples_of_the_whole_with_their_histories() -> None:
    """One example for each line, whatever the windows; its context reaches back into earlier ones."""
    task, random = dynamic(), np.random.default_rng(0)
    events = [
        sorted((int(h), int(random.integers(6))) for h in random.integers(0, 900, 30)) for _ in range(3)
    ]
    sequences = [[(item, hour) for hour, item in client] for client in events]
    tails, slots, at = Tails.empty(TIMED, 5, 40), np.array([0, 2, 4]), [0, 0, 0]
    found: list[list[float]] = []
    while min(at) < 30:
        sizes = random.integers(0, 7, size=3)
        new = [s[start : start + size] for s, start, size in zip(sequences, at, sizes, strict=True)]
        at = [start + len(n) for start, n in zip(at, new, strict=True)]
        examples = new_examples(task, tails.of(slots), timed(*new))
        found += as_rows(examples)
        tails.add(slots, timed(*new))
    assert sorted(found) == sorted(as_rows(task.examples(timed(*sequences))))
    assert sum(value >= 0 for row in found for value in row[2:7]) > 100, "contexts are not empty"


def as_rows(examples: Shards) -> list[list[float]]:
    if not examples.num_examples:
        return []
    columns = [examples.owners(), *(examples.columns[name] for name in ("item", "context", "age"))]
    return np.concatenate(
        [np.asarray(c).reshape(examples.num_examples, -1) for c in columns], axis=1
    ).tolist()


def test_a_line_that_comes_late_sees_what_was_before_it_and_changes_nothing_after() -> None:
    task, tails, slot = dynamic(), Tails.empty(TIMED, 1, 8), np.array([0])
    tails.add(slot, timed([(1, 0), (2, 100)]))
    late = timed([(3, 50), (4, 200)])  # in the order of their arrival here; then the other way round
    for lines in (late, timed([(4, 200), (3, 50)])):
        examples = new_examples(task, tails.of(slot), lines)
        assert examples.columns["item"].tolist() == [3, 4]
        assert [c[c >= 0].tolist() for c in examples.columns["context"]] == [[1], [2, 3, 1]]
        assert (examples.columns["age"] >= 0).all()
    tails.add(slot, late)
    assert tails.of(slot).columns["item"].tolist() == [1, 3, 2, 4], (
        "what is remembered is in the order of time"
    )
