from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedemb.errors import RunError
from fedemb.serve.queue import (
    Accepted,
    Entry,
    KeyReusedError,
    Queue,
    QueueFullError,
    Window,
    open_database,
    read_window,
    windows_after,
)


def entries(count: int, start: int = 0) -> list[Entry]:
    return [(f"c{number}", [number, 1.5]) for number in range(start, start + count)]


class Opened:
    """A queue, and what it told."""

    def __init__(self, folder: Path, limit: int = 100, window: int = 4, interval: float = 60.0) -> None:
        self.path = folder / "queue.sqlite"
        self.windows: list[Window] = []
        self.failures: list[BaseException] = []
        self.queue = Queue(
            self.path, limit, window, interval, (0, 0), self.windows.extend, self.failures.append
        )

    def put(self, count: int, key: str | None = None) -> Accepted:
        return self.queue.put(entries(count), key).result(10)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    found = Opened(tmp_path)
    yield found
    found.queue.close()


def test_interactions_are_numbered_and_cut_into_windows(opened: Opened) -> None:
    assert opened.put(3) == Accepted(1, 3)
    assert not opened.windows
    assert opened.put(6) == Accepted(4, 9)
    assert opened.windows == [Window(1, 1, 4), Window(2, 5, 8)]
    assert opened.queue.depth == 9
    database = open_database(opened.path)
    assert read_window(database, Window(2, 5, 8)) == [*entries(6)[1:5]]
    assert windows_after(database, 1) == [Window(2, 5, 8)]
    database.close()


def test_an_answer_means_that_it_is_on_the_disk(opened: Opened) -> None:
    """Another connection sees it at once: it was committed before the answer."""
    opened.put(2)
    database = open_database(opened.path)
    assert database.execute("SELECT count(*) FROM interactions").fetchone() == (2,)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_an_open_window_is_closed_after_the_interval(tmp_path: Path) -> None:
    opened = Opened(tmp_path, interval=0.1)
    opened.put(2)
    deadline = time.monotonic() + 5
    while not opened.windows and time.monotonic() < deadline:
        time.sleep(0.01)
    assert opened.windows == [Window(1, 1, 2)]
    opened.queue.close()


def test_what_was_open_is_cut_at_the_end_and_taken_up_after(tmp_path: Path) -> None:
    first = Opened(tmp_path)
    first.put(5)
    first.queue.close()
    assert first.windows == [Window(1, 1, 4), Window(2, 5, 5)]
    second = Opened(tmp_path)
    assert second.put(4) == Accepted(6, 9)
    assert second.windows == [Window(3, 6, 9)]
    assert second.queue.depth == 9
    second.queue.close()


def test_a_full_queue_takes_nothing(tmp_path: Path) -> None:
    opened = Opened(tmp_path, limit=6)
    opened.put(4)
    with pytest.raises(QueueFullError, match="4 interactions wait"):
        opened.queue.put(entries(3))
    opened.queue.mark_applied(4)
    assert opened.put(3) == Accepted(5, 7)
    opened.queue.close()


def test_a_repeated_request_counts_once(opened: Opened) -> None:
    first = opened.put(2, "key")
    assert opened.put(2, "key") == Accepted(first.first, first.last, repeated=True)
    with pytest.raises(KeyReusedError):
        opened.put(3, "key")
    assert opened.put(1) == Accepted(3, 3)


def test_what_two_states_know_is_forgotten(opened: Opened) -> None:
    opened.put(9)
    opened.queue.prune(4, 1)
    opened.put(1, "key")  # the same thread does both
    database = open_database(opened.path)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if database.execute("SELECT min(sequence) FROM interactions").fetchone() == (5,):
            break
        time.sleep(0.01)
    assert database.execute("SELECT min(sequence) FROM interactions").fetchone() == (5,)
    assert windows_after(database, 0) == [Window(2, 5, 8)]
    with pytest.raises(RunError, match="interactions 1 to 4 must be in the queue, found 0"):
        read_window(database, Window(1, 1, 4))
    database.close()


def test_numbers_go_on_when_everything_was_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "queue.sqlite"
    queue = Queue(path, 100, 4, 60.0, (40, 10), lambda windows: None, lambda error: None)
    assert queue.put(entries(1)).result(10) == Accepted(41, 41)
    queue.close()


def test_a_file_that_is_no_queue_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "queue.sqlite").write_bytes(b"nothing of the kind, " * 100)
    with pytest.raises(RunError, match=r"must be the service's queue"):
        Opened(tmp_path)


def test_a_disk_that_refuses_is_told_to_everybody(opened: Opened) -> None:
    opened.queue._connection.execute("DROP TABLE interactions")
    with pytest.raises(RunError, match="cannot be written"):
        opened.put(1)
    with pytest.raises(RunError, match="takes nothing any more"):
        opened.put(1)
    opened.queue.close()
    assert opened.failures
