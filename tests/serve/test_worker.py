from __future__ import annotations

from pathlib import Path

import pytest

from fedemb.model import Run
from fedemb.serve.queue import Window, open_database
from fedemb.serve.run import settings_of
from fedemb.serve.worker import Work, prepared
from tests.serve.runs import trained


@pytest.fixture
def work(tmp_path: Path) -> Work:
    run = Run(trained(tmp_path / "run", "task=factorization"))
    updater, state = prepared(run, settings_of([]))
    database = open_database(tmp_path / "queue.sqlite")
    database.executemany("INSERT INTO windows VALUES (?, ?, ?)", [(1, 1, 4), (2, 5, 8), (3, 9, 12)])
    state.number = 1
    found = Work(updater, state, database, run.name)
    database.close()
    return found


def test_windows_that_are_known_are_not_applied_twice(work: Work) -> None:
    """The service tells of windows while the worker reads them from the queue: each counts once."""
    assert list(work.windows) == [Window(2, 5, 8), Window(3, 9, 12)]
    work.hear({"kind": "windows", "windows": [[3, 9, 12], [4, 13, 16]]})
    assert list(work.windows)[1:] == [Window(3, 9, 12), Window(4, 13, 16)]
    work.windows.clear()
    work.state.number = 4
    work.hear({"kind": "windows", "windows": [[4, 13, 16]]})
    assert not work.windows


def test_a_worker_that_is_told_to_stop_applies_what_waits_first(work: Work) -> None:
    assert not work.finished
    work.hear({"kind": "go"})
    assert not work.finished
    work.hear({"kind": "stop"})
    assert not work.finished
    work.windows.clear()
    assert work.finished
