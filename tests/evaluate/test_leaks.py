"""evaluate/leaks.py: the walk over the batches finds every kind of future that is slipped in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedemb.data.partition import Natural
from fedemb.data.shards import Shards
from fedemb.data.synthetic import Synthetic
from fedemb.errors import SettingError
from fedemb.evaluate.leaks import walk_batches
from fedemb.tasks.dynamic import Dynamic
from fedemb.types import Batch, Dataset


def dataset() -> Dataset:
    return Synthetic(num_clients=9, num_items=20, examples_per_client=15, num_clusters=3, days=6).load(
        Natural(), 0
    )


def task(data: Dataset, **changes: object) -> Dynamic:
    settings = {
        "dim": 2, "negatives": 3, "own_negatives": 1, "rows": "slices", "state": "mean", "context": "history",
        "length": 3, "repeats": True, "slice": "2 days", "walk": 1.0, "num_waves": 1, "l2": 0.0, "init_scale": 0.1,
    }  # fmt: skip
    return Dynamic.build(data, **{**settings, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Leaking:
    """A task whose examples or lookups are changed on their way."""

    inner: Dynamic
    change: Callable[[Shards], Shards] = lambda shards: shards
    change_ids: Callable[[dict], dict] = lambda ids: ids

    def examples(self, shards: Shards) -> Shards:
        return self.change(self.inner.examples(shards))

    def lookup(self, batch: Batch) -> dict:
        return self.change_ids(self.inner.lookup(batch))

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


def with_column(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Shards], Shards]:
    def changed(shards: Shards) -> Shards:
        return Shards({**shards.columns, name: change(shards.columns[name])}, shards.offsets)

    return changed


def test_a_sound_task_is_walked_whole() -> None:
    data = dataset()
    counts = walk_batches(task(data), data, 4, 0)
    assert counts["examples"] == data.train.num_examples
    steps = int(np.ceil(data.train.sizes / 4).max())
    assert counts["batches"] == steps
    assert walk_batches(task(data, context="window", repeats=False), data, 0, 0)["batches"] == 1


def later(column: np.ndarray) -> np.ndarray:
    out = column.copy()
    out[-1] += 10**9
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_column("time", later), "a training batch must hold nothing after"),
        (with_column("age", lambda age: age - 400.0), "ages in a context must not be negative"),
        (with_column("context", lambda c: np.where(c >= 0, (c + 7) % 20, c)), "what its client took before"),
        (with_column("slice", lambda s: np.maximum(s - 1, 0) + (s == 0)), "rows of its own slice"),
    ],
    ids=["late example", "negative age", "foreign context", "wrong slice"],
)
def test_leaks_are_found(change: Callable[[Shards], Shards], message: str) -> None:
    data = dataset()
    with pytest.raises(RuntimeError, match=message):
        walk_batches(Leaking(task(data), change), data, 4, 0)  # type: ignore[arg-type]


def test_negatives_of_another_slice_are_found() -> None:
    data = dataset()

    def foreign(ids: dict) -> dict:
        moved = ids["bias_slice"].clone()
        moved[:, -1] += 1
        return {**ids, "bias_slice": moved % (20 * task(data).num_slices)}

    with pytest.raises(RuntimeError, match="rows of its own slice"):
        walk_batches(Leaking(task(data), change_ids=foreign), data, 4, 0)  # type: ignore[arg-type]


def test_what_an_item_becomes_later_is_no_context() -> None:
    """A context of what the client takes NEXT is found, although the client does take it."""
    data = dataset()

    def next_items(shards: Shards) -> Shards:
        context = shards.columns["context"].copy()
        context[:-1, 0] = np.where(np.diff(shards.owners()) == 0, shards.columns["item"][1:], context[:-1, 0])
        return Shards({**shards.columns, "context": context}, shards.offsets)

    with pytest.raises(RuntimeError, match="what its client"):
        walk_batches(Leaking(task(data), next_items), data, 4, 0)  # type: ignore[arg-type]


def of_lines(shards: Shards, choose: Callable[[int, int], bool]) -> np.ndarray:
    """A context of one line of the same client, the first that is chosen by (example, line)."""
    owner, context = shards.owners(), np.full(shards.columns["context"].shape, -1, dtype=np.int32)
    for example in range(shards.num_examples):
        own = (line for line in np.flatnonzero(owner == owner[example]) if choose(example, int(line)))
        if (line := next(own, None)) is not None:
            context[example, 0] = shards.columns["item"][line]
    return context


def test_the_rest_of_a_basket_is_no_context() -> None:
    data = dataset()

    def basket(shards: Shards) -> Shards:
        session = shards.columns["session"]
        context = of_lines(
            shards, lambda example, line: line != example and session[line] == session[example]
        )
        assert (context >= 0).any()
        return Shards(
            {**shards.columns, "context": context, "age": 0 * shards.columns["age"]}, shards.offsets
        )

    with pytest.raises(RuntimeError, match="in an earlier session"):
        walk_batches(Leaking(task(data), basket), data, 4, 0)  # type: ignore[arg-type]


def test_what_is_taken_again_later_is_no_context() -> None:
    """The item WAS taken before, but the line that the context tells of comes later."""
    data = dataset()

    def repurchases(shards: Shards) -> Shards:
        item, owner = shards.columns["item"], shards.owners()

        def later(example: int, line: int) -> bool:
            before = (owner == owner[example]) & (np.arange(len(item)) < example)
            return line > example and item[line] in item[before]

        context = of_lines(shards, later)
        assert (context >= 0).any()
        return Shards(
            {**shards.columns, "context": context, "age": 0 * shards.columns["age"]}, shards.offsets
        )

    with pytest.raises(RuntimeError, match="in an earlier session"):
        walk_batches(Leaking(task(data), repurchases), data, 4, 0)  # type: ignore[arg-type]


def test_the_same_item_at_the_same_time_in_another_session_is_a_context() -> None:
    """Two baskets of one second: the later session has the earlier one before it, item for item."""
    columns = {
        "item": np.array([3, 4, 3, 4, 5]),
        "time": np.array([50, 50, 50, 50, 90]),
        "session": np.array([0, 0, 1, 1, 2]),
    }
    data = replace(dataset(), train=Shards(columns, np.array([0, 5])), held_out={}, span=(50, 90))
    assert walk_batches(task(data), data, 4, 0)["examples"] == 5


def test_a_future_that_begins_at_another_time_for_each_client_is_refused() -> None:
    data = dataset()
    owner, time = data.train.owners(), data.train.columns["time"]
    last = np.array([time[owner == c].max() for c in range(data.train.num_clients)])
    one = {
        "item": np.zeros(len(last), dtype=np.int64),
        "time": last + 1,
        "session": 10**6 + np.arange(len(last)),
    }
    data = replace(data, held_out={"test": Shards(one, np.arange(len(last) + 1))})
    with pytest.raises(SettingError, match=r"data\.leave_last must be null for task=dynamic"):
        walk_batches(task(data), data, 4, 0)


def test_without_a_held_out_part_all_else_is_checked() -> None:
    data = replace(dataset(), held_out={})
    assert walk_batches(task(data), data, 4, 0)["examples"] == data.train.num_examples
