"""tasks/contexts.py: what came before, and what stands beside, by an obvious loop."""

import numpy as np
import pytest

from fedemb.data.shards import Shards, offsets_of
from fedemb.tasks.contexts import DAY, earlier_items, latest_items, neighbours


def shards(with_session: bool = True) -> Shards:
    rng = np.random.default_rng(3)
    sizes = np.array([9, 0, 1, 14])
    total, owner = int(sizes.sum()), np.repeat(np.arange(4), sizes)
    time = rng.integers(0, 20 * DAY, total)
    order = np.lexsort((time, owner))
    columns = {"item": rng.integers(0, 6, total), "time": time[order]}
    if with_session:
        columns["session"] = np.array(columns["time"] // (3 * DAY))  # the same numbers at several clients
    return Shards(columns, offsets_of(sizes))


@pytest.mark.parametrize("with_session", [True, False])
@pytest.mark.parametrize("length", [1, 3, 40])
def test_earlier_items(with_session: bool, length: int) -> None:
    data = shards(with_session)
    items, ages = earlier_items(data, length)
    for client in range(data.num_clients):
        lines = range(data.offsets[client], data.offsets[client + 1])
        for line in lines:

            def session(i: int) -> int:
                return int(data.columns["session"][i]) if with_session else i

            before = [i for i in lines if i < line and session(i) != session(line)][::-1][:length]
            got = [(int(i), float(a)) for i, a in zip(items[line], ages[line], strict=True) if i >= 0]
            days = [(data.columns["time"][line] - data.columns["time"][i]) / DAY for i in before]
            assert [i for i, _ in got] == [int(data.columns["item"][i]) for i in before]
            assert [a for _, a in got] == pytest.approx(days, rel=1e-5)
            assert (items[line][len(before) :] == -1).all()


def test_latest_items_and_a_future_that_leaks() -> None:
    data = shards()
    now = np.full(4, 20 * DAY)
    items, ages = latest_items(data, 5, now)
    assert (items[1] == -1).all()
    assert items[3].tolist() == data.columns["item"][-5:][::-1].tolist()
    assert ages[3] == pytest.approx((20 * DAY - data.columns["time"][-5:][::-1]) / DAY, rel=1e-5)
    with pytest.raises(ValueError, match="the future leaked"):
        latest_items(data, 5, np.full(4, int(data.columns["time"].max()) - 1))


def test_neighbours() -> None:
    data = shards()
    got = neighbours(data, 2)
    for client in range(data.num_clients):
        lines = range(data.offsets[client], data.offsets[client + 1])
        for line in lines:
            for place, distance in enumerate((-2, -1, 1, 2)):
                other = line + distance
                beside = other in lines and data.columns["session"][other] == data.columns["session"][line]
                assert got[line, place] == (data.columns["item"][other] if beside else -1)


def test_nobody_has_anything() -> None:
    empty = Shards({"item": np.zeros(0, int), "time": np.zeros(0, int)}, np.zeros(3, dtype=np.int64))
    assert earlier_items(empty, 3)[0].shape == (0, 3)
    assert (latest_items(empty, 3, np.array([5, 5]))[0] == -1).all()
