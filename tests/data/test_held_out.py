"""data/held_out.py: where the future begins, and the check that it stays out of training."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedemb.data.held_out import (
    DAY,
    NEVER,
    TEST,
    TRAIN,
    VALIDATION,
    HoldOut,
    check_no_future,
    client_blocks,
)
from fedemb.data.shards import Shards, offsets_of
from fedemb.errors import DataError, SettingError


def shards_of(times: list[list[int]]) -> Shards:
    return Shards(
        {"time": np.array(list(chain(*times)), dtype=np.int64)}, offsets_of(np.array([len(t) for t in times]))
    )


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"test_share": 1.0}, r"data.test_share must be in \[0, 1\), got 1.0"),
        ({"validation_share": -0.1}, r"data.validation_share must be in \[0, 1\), got -0.1"),
        ({"validation_share": 0.5, "test_share": 0.5}, "must stay below 1, got 1.0"),
        ({"leave_last": 0}, "data.leave_last must be at least 1, or null, got 0"),
        ({"leave_last": 1, "test_from": "2020-01-01"}, "data.leave_last must be null .* got 1"),
        ({"test_from": "soon"}, "data.test_from must be an ISO 8601 time .* got 'soon'"),
        (
            {"validation_from": "2020-01-02", "test_from": "2020-01-02"},
            "must be before data.test_from, got 2020-01-02",
        ),
    ],
)
def test_bad_settings(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        HoldOut(**settings_)


def test_points_in_time() -> None:
    hold_out = HoldOut(validation_from="1970-01-02", test_from="1970-01-03")
    cuts = hold_out.cuts(np.array([0, 5 * DAY]))
    assert cuts == (DAY, 2 * DAY)
    lines = shards_of([[0, DAY - 1, DAY], [2 * DAY - 1, 2 * DAY]])
    assert hold_out.label(lines, cuts, np.arange(2), 0).tolist() == [TRAIN, TRAIN, *[VALIDATION] * 2, TEST]
    only_test = HoldOut(test_from="1970-01-02").cuts(lines.columns["time"])
    assert only_test == (NEVER, DAY)
    with pytest.raises(DataError, match=r"data.columns.time must name a column where .* got none"):
        hold_out.cuts(None)


@pytest.mark.parametrize("unit", [1, DAY])
@pytest.mark.parametrize("num_lines", [7, 10_000])
def test_shares_become_points_in_time(unit: int, num_lines: int) -> None:
    times = np.random.default_rng(0).permutation(np.arange(1000) * unit + 123 * DAY)
    validation, test = HoldOut(validation_share=0.2, test_share=0.1).cuts(times, num_lines) or (0, 0)
    assert (times >= test).sum() == 100
    assert ((times >= validation) & (times < test)).sum() == 200
    assert unit == 1 or test % DAY == 0
    assert HoldOut(validation_share=0, test_share=0).cuts(times) == (NEVER, NEVER)
    assert HoldOut(validation_share=0.1, test_share=0).cuts(times) == (123 * DAY + 900 * unit, NEVER)


def test_all_at_one_moment_stays_in_training() -> None:
    hold_out = HoldOut()
    lines = shards_of([[5] * 9])
    label = hold_out.label(lines, hold_out.cuts(lines.columns["time"]), np.arange(1), 0)
    assert label.tolist() == [TRAIN] * 9


sizes_of_clients = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@settings(deadline=None)
@given(sizes_of_clients, st.integers(1, 3))
def test_leave_last(sizes: list[int], last: int) -> None:
    lines = shards_of([list(range(size)) for size in sizes])
    label = HoldOut(leave_last=last).label(lines, None, np.arange(len(sizes)), 0)
    for mine, size in zip(np.split(label, lines.offsets[1:-1]), sizes, strict=True):
        assert mine.tolist() == sorted(mine.tolist())
        assert (mine == TEST).sum() == min(last, max(size - 1, 0))
        assert size == 0 or (mine == TRAIN).sum() >= 1
        assert size <= 2 * last or (mine == VALIDATION).sum() == last


@settings(deadline=None)
@given(sizes_of_clients, st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.0, 0.2, 0.6]), st.booleans())
def test_shares_of_each_client(sizes: list[int], validation: float, test: float, at_random: bool) -> None:
    lines = shards_of([list(range(size)) for size in sizes])
    hold_out = HoldOut(validation_share=validation, test_share=test, at_random=at_random)
    label = hold_out.label(lines, None, np.arange(len(sizes)), 5)
    for mine, size in zip(np.split(label, lines.offsets[1:-1]), sizes, strict=True):
        assert at_random or mine.tolist() == sorted(mine.tolist())
        assert (mine == TEST).sum() == min(int(size * test + 0.5), max(size - 1, 0))
        assert size == 0 or (mine == TRAIN).sum() >= 1


def test_random_parts_are_keyed_by_client() -> None:
    hold_out = HoldOut(test_share=0.3, at_random=True)
    lines = shards_of([list(range(50)), list(range(80)), list(range(50))])
    whole = hold_out.label(lines, None, np.arange(3), 1)
    alone = hold_out.label(lines.take(np.array([1])), None, np.array([1]), 1)
    assert whole[50:130].tolist() == alone.tolist()
    assert whole[:50].tolist() != whole[130:].tolist()
    assert whole.tolist() != hold_out.label(lines, None, np.arange(3), 2).tolist()
    assert whole[50:130].tolist() != sorted(whole[50:130].tolist())


def test_a_leak_is_found() -> None:
    early, late = shards_of([[1, 5], [2]]), shards_of([[9], [7]])
    check_no_future(early, {"test": late}, (NEVER, 6))
    check_no_future(early, {"test": late}, None)
    check_no_future(shards_of([[1, 9], [2]]), {"test": late}, None)  # the same second: one basket
    with pytest.raises(
        RuntimeError, match=r"training must hold nothing from 1970-01-01 00:00:05 on, .*:05 at client 0"
    ):
        check_no_future(early, {"test": late}, (NEVER, 5))
    with pytest.raises(RuntimeError, match=r"training .* got 1970-01-01 00:00:08 at client 1"):
        check_no_future(shards_of([[1, 5], [8]]), {"test": late}, None)
    with pytest.raises(RuntimeError, match=r"training must hold nothing from .*:02 on"):
        check_no_future(early, {"validation": late}, (2, NEVER))
    with pytest.raises(RuntimeError, match=r"validation must hold nothing"):
        check_no_future(shards_of([[1], []]), {"validation": early, "test": late}, (2, 5))
    with pytest.raises(RuntimeError, match=r"at client 1"):
        check_no_future(shards_of([[1, 5], [8]]), {"test": late}, None, num_clients=1)


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 12))
def test_blocks_cover_all_clients(sizes: list[int], num_lines: int) -> None:
    blocks = client_blocks(np.array(sizes), num_lines)
    assert [client for start, end in blocks for client in range(start, end)] == list(range(len(sizes)))
    assert all(end - start == 1 or sum(sizes[start:end]) <= num_lines for start, end in blocks)
