"""data/store.py: a builder gives what group_by_client gives, in memory and on disk."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedemb.data.shards import Shards, group_by_client
from fedemb.data.store import ShardBuilder
from fedemb.errors import RunError
from fedemb.types import Int64


def lines(clients: Int64) -> dict[str, np.ndarray]:
    count = np.arange(len(clients))
    return {
        "item": count.astype(np.int32),
        "time": count * 7,
        "parts": np.stack([count, -count], axis=1).astype(np.int16),
        "weight": (count / 3).astype(np.float32),
    }


def equal(ours: Shards, theirs: Shards) -> None:
    np.testing.assert_array_equal(ours.offsets, theirs.offsets)
    assert ours.columns.keys() == theirs.columns.keys()
    for name, column in theirs.columns.items():
        np.testing.assert_array_equal(ours.columns[name], column)
        assert ours.columns[name].dtype == column.dtype


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 6), max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
    st.sampled_from([0, 100, 700, 1 << 30]),
    st.booleans(),
)
def test_equals_group_by_client(owners: list[int], cuts: list[int], memory_bytes: int, ordered: bool) -> None:
    clients = np.array(sorted(owners) if ordered else owners, dtype=np.int64)
    columns = lines(clients)
    builder = ShardBuilder(memory_bytes=memory_bytes)
    edges = [0, *sorted(min(cut, len(clients)) for cut in cuts), len(clients)]
    for start, end in pairwise(edges):
        builder.append({name: c[start:end] for name, c in columns.items()}, clients[start:end])
    assert builder.num_examples == len(clients)
    equal(builder.finish(8), group_by_client(columns, clients, 8))


@pytest.mark.parametrize("memory_bytes", [0, 2_000, 50_000])
def test_many_lines_to_a_chunk(memory_bytes: int) -> None:
    clients = np.random.default_rng(0).integers(0, 50, 3_000)
    columns, builder = lines(clients), ShardBuilder(memory_bytes=memory_bytes)
    for start in range(0, 3_000, 700):
        builder.append({n: c[start : start + 700] for n, c in columns.items()}, clients[start : start + 700])
    equal(builder.finish(50), group_by_client(columns, clients, 50))


def test_folder_can_be_opened_and_written_again(tmp_path: Path) -> None:
    clients = np.array([2, 0, 2, 1, 0])
    builder = ShardBuilder(tmp_path, memory_bytes=64)
    builder.append(lines(clients), clients)
    first = builder.finish(3)
    expected = group_by_client(lines(clients), clients, 3)
    equal(first, expected)
    equal(Shards.open(tmp_path), expected)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json"] + [".npy"] * 5
    again = ShardBuilder(tmp_path)
    again.append(lines(clients[:1]), clients[:1])
    again.finish(3)
    equal(first, expected)  # files are replaced, not overwritten: what is mapped stays whole


def test_temporary_files_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    clients = np.array([1, 0])
    builder = ShardBuilder(memory_bytes=0)
    builder.append(lines(clients), clients)
    assert list(tmp_path.iterdir())
    shards = builder.finish(2)
    assert not list(tmp_path.iterdir())
    assert shards.columns["item"].tolist() == [1, 0]


def test_no_lines_keep_columns_and_types(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        builder = ShardBuilder(folder)
        builder.append(lines(np.zeros(0, dtype=np.int64)), np.zeros(0, dtype=np.int64))
        shards = builder.finish(3)
        assert shards.sizes.tolist() == [0, 0, 0]
        assert shards.columns["parts"].shape == (0, 2)


def test_bad_batches_are_refused() -> None:
    builder = ShardBuilder()
    with pytest.raises(ValueError, match=r"must be given a batch"):
        builder.finish(1)
    builder.append(lines(np.array([0])), np.array([0]))
    with pytest.raises(ValueError, match=r"weight has not"):
        builder.append({**lines(np.array([0])), "weight": np.zeros(1)}, np.array([0]))
    with pytest.raises(ValueError, match=r"time has not"):
        builder.append({k: v for k, v in lines(np.array([0])).items() if k != "time"}, np.array([0]))
    builder.append(lines(np.array([5])), np.array([5]))
    with pytest.raises(ValueError, match=r"must be below 5"):
        builder.finish(5)


def test_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match=r"shards must be written to .*below, got .*; make room"):
        ShardBuilder(blocked / "below").append(lines(np.array([0])), np.array([0]))
