"""The process that learns: applies windows in order, and writes down what it knows every so often.

It has an interpreter of its own, so that training never keeps an answer waiting, and a lower priority.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fedemb.build import rebuild
from fedemb.model import Run
from fedemb.run.lock import locked
from fedemb.serve.history import Tails
from fedemb.serve.queue import Window, open_database, read_window, windows_after
from fedemb.serve.settings import Settings
from fedemb.serve.state import FOLDER, State, fresh_state, load_state, newest, save_state
from fedemb.serve.update import Updater, streaming, wants_tails
from fedemb.serve.wire import receive, send, send_change

_NICENESS = 5
_LAST_WINDOWS_SECONDS = 20.0  # what a stopping service still applies; the rest stays in the queue


def prepared(run: Run, settings: Settings) -> tuple[Updater, State]:
    """How windows of a run are applied, and the trained model before the first one."""
    dataset = run.without_examples()
    task, training, seed = rebuild(run.folder, dataset)
    dtypes = {name: str(column.dtype) for name, column in dataset.train.columns.items()}
    tails = None
    if wants_tails(task, dtypes, settings.history):
        tails = Tails.empty(dtypes, settings.max_clients, settings.history)
    tables, dense = run.tensors()
    state = fresh_state(tables, dense, task.tables, settings.max_clients, tails)
    rounds, slower = int(run.facts["rounds"]), streaming(training, settings.learning_rate)
    return Updater(task, slower, training.batch_size, dtypes, seed, rounds), state


def work(connection: Connection, folder: Path, settings: Settings) -> None:
    """Serves the other end of ``connection`` until it says stop, or is gone.

    Sends ``loaded`` (which state), and after ``go`` a ``change`` for each window, ``ready`` when all that the queue
    held is applied, ``saved`` after each state that was written.
    """
    run, own = Run(folder), folder / FOLDER
    # A worker whose service was killed holds this until it has noticed.
    with locked(own / "worker", patience_seconds=30.0):
        updater, state = prepared(run, settings)
        path = newest(own, run.name)
        if path is not None:
            load_state(path, state)
        send(connection, "loaded", path=None if path is None else path.name)
        while receive(connection)["kind"] != "go":  # until the other side has read the same state
            pass  # windows that it tells of before are in the queue
        database = open_database(own / "queue.sqlite")
        try:
            _loop(connection, own, settings, Work(updater, state, database, run.name))
        finally:
            database.close()


class Work:
    """State, and what is to be done to it."""

    def __init__(self, updater: Updater, state: State, database: Any, model: str) -> None:
        self.updater, self.state, self.database, self.model = updater, state, database, model
        self.windows: deque[Window] = deque(windows_after(database, state.number))
        self.stop_at: float | None = None
        self.save = False

    def hear(self, message: dict[str, Any]) -> None:
        """Takes a message up."""
        if message["kind"] == "windows":
            known = self.windows[-1].number if self.windows else self.state.number
            news = (Window(*window) for window in message["windows"])
            self.windows.extend(window for window in news if window.number > known)
        elif message["kind"] == "save":
            self.save = True
        elif message["kind"] == "stop":
            self.stop_at = time.monotonic() + _LAST_WINDOWS_SECONDS

    @property
    def finished(self) -> bool:
        """Whether to stop now."""
        return self.stop_at is not None and (not self.windows or time.monotonic() > self.stop_at)


def _loop(connection: Connection, own: Path, settings: Settings, work: Work) -> None:
    state, ready = work.state, False
    saved_number, save_at = state.number, time.monotonic() + settings.snapshot_seconds
    try:
        while not work.finished:
            if not work.windows and not ready:
                send(connection, "ready")
                ready = True
            wait = 0.0 if work.windows or work.save else max(0.0, save_at - time.monotonic())
            while connection.poll(wait):
                work.hear(receive(connection))
                wait = 0.0
            if work.windows:
                window = work.windows.popleft()
                begin = time.perf_counter()
                change = work.updater.apply(state, window, read_window(work.database, window))
                seconds = time.perf_counter() - begin
                send_change(connection, change, rejected=state.rejected, seconds=seconds)
            due = time.monotonic() >= save_at
            if work.save or due:
                if work.save or state.number > saved_number:
                    _save(connection, own, work)
                saved_number, save_at = state.number, time.monotonic() + settings.snapshot_seconds
                work.save = False
        if state.number > saved_number:
            _save(connection, own, work)
        send(connection, "stopped")
    except (EOFError, BrokenPipeError):
        return  # the service is gone; whoever starts the next one finds queue and states


def _save(connection: Connection, own: Path, work: Work) -> None:
    sequence, number = save_state(own, work.state, work.model)
    facts = {"number": work.state.number, "sequence": work.state.sequence}
    send(connection, "saved", forget_sequence=sequence, forget_number=number, **facts)


def main() -> None:
    """``python -m fedemb.serve.worker DESCRIPTOR FOLDER SETTINGS``: started by the service only."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the service, which then says stop
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    settings = Settings(**json.loads(sys.argv[3]))
    torch.set_num_threads(settings.num_threads)
    with Connection(int(sys.argv[1])) as connection:
        work(connection, Path(sys.argv[2]), settings)


if __name__ == "__main__":
    main()
