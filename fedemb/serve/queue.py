"""A queue on disk: what was acknowledged is there after any kill, and windows are cut once and for all.

SQLite in WAL mode with ``synchronous=FULL``: a commit returns when it is on the disk. Requests that come in while one
is being written are written together by the next, so the rate is not one disk flush for each request. Where a window
ends is written in the same transactions, before anybody applies it: a restart applies the same windows again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedemb.errors import RunError

Entry = tuple[str, list[Any]]  # client, values of the columns in their order
_KEPT_KEYS = 100_000
_PRUNED_AT_ONCE = 5_000  # lines in a transaction, so that nobody waits long behind it
_log = logging.getLogger("fedemb")


@dataclass(frozen=True)
class Accepted:
    """Sequence numbers that a request's interactions have, and whether it had been accepted before."""

    first: int
    last: int
    repeated: bool = False


class QueueFullError(Exception):
    """No room: ``depth`` wait already."""

    def __init__(self, depth: int) -> None:
        super().__init__(f"{depth:,} interactions wait to be applied")
        self.depth = depth


class KeyReusedError(Exception):
    """An idempotency key came with another body before."""


@dataclass
class _Pending:
    entries: Sequence[Entry]
    key: str | None
    digest: str
    answer: Future[Accepted]


@dataclass(frozen=True)
class Window:
    """Interactions ``first .. last``, applied together as number ``number``."""

    number: int
    first: int
    last: int


def open_database(path: Path) -> sqlite3.Connection:
    """A connection for one thread; the tables are there.

    Raises:
        RunError: If the file is no such database.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(
            "CREATE TABLE IF NOT EXISTS interactions (sequence INTEGER PRIMARY KEY, body TEXT NOT NULL);"
            "CREATE TABLE IF NOT EXISTS windows (number INTEGER PRIMARY KEY, first INTEGER NOT NULL,"
            " last INTEGER NOT NULL);"
            "CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, digest TEXT NOT NULL, first INTEGER NOT NULL,"
            " last INTEGER NOT NULL);"
        )
    except sqlite3.DatabaseError as error:
        connection.close()
        raise RunError(f"{path} must be the service's queue, but cannot be read ({error})") from error
    return connection


def read_window(connection: sqlite3.Connection, window: Window) -> list[Entry]:
    """The interactions of a window, in order.

    Raises:
        RunError: If some are missing.
    """
    found = connection.execute(
        "SELECT body FROM interactions WHERE sequence BETWEEN ? AND ? ORDER BY sequence",
        (window.first, window.last),
    ).fetchall()
    if len(found) != window.last - window.first + 1:
        raise RunError(
            f"interactions {window.first} to {window.last} must be in the queue, found {len(found)} of them"
        )
    return [(client, values) for client, values in (json.loads(body) for (body,) in found)]


def windows_after(connection: sqlite3.Connection, number: int) -> list[Window]:
    """All windows after this one."""
    rows = connection.execute(
        "SELECT number, first, last FROM windows WHERE number > ? ORDER BY number", (number,)
    )
    return [Window(*row) for row in rows.fetchall()]


class Queue:
    """The only writer of the database: a thread that commits for all requests and cuts windows.

    Args:
        path: The database.
        limit: Interactions that may wait to be applied.
        window: Interactions in a full window.
        interval_seconds: After so long a window is closed anyway.
        applied: Sequence number and number of the state that the service starts from.
        on_windows: Is told of windows once they are on the disk.
        on_failure: Is told when nothing can be written any more; all further requests fail.
    """

    def __init__(
        self,
        path: Path,
        limit: int,
        window: int,
        interval_seconds: float,
        applied: tuple[int, int],
        on_windows: Callable[[list[Window]], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._connection = open_database(path)
        self._limit, self._window, self._interval = limit, window, interval_seconds
        self._on_windows, self._on_failure = on_windows, on_failure
        sequence, number = applied
        last_row = self._connection.execute("SELECT max(sequence) FROM interactions").fetchone()[0]
        last_key = self._connection.execute("SELECT max(last) FROM keys").fetchone()[0]
        last_window = self._connection.execute(
            "SELECT number, last FROM windows ORDER BY number DESC LIMIT 1"
        )
        known: tuple[int, int] = last_window.fetchone() or (number, sequence)
        self._number, self._cut = max(known[0], number), max(known[1], sequence)
        self.last: int = max(last_row or 0, last_key or 0, self._cut)
        self.applied = sequence
        self._opened: float | None = time.monotonic() if self.last > self._cut else None
        self._pending: list[_Pending] = []
        self._num_pending = 0
        self._prune_to: tuple[int, int] | None = None
        self._stopping = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="queue", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Interactions that wait to be applied."""
        return self.last - self.applied + self._num_pending

    def put(self, entries: Sequence[Entry], key: str | None = None) -> Future[Accepted]:
        """Sequence numbers of these interactions, as soon as they are on the disk.

        Args:
            entries: At least one.
            key: A retry with the same key and the same interactions is answered as the first one was.

        Raises:
            QueueFullError: If there is no room for all of them.
            RunError: If the queue is closed or cannot write.
        """
        digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest() if key is not None else ""
        pending = _Pending(entries, key, digest, Future())
        with self._changed:
            if self._failure is not None or self._stopping:
                raise RunError(f"the queue takes nothing any more ({self._failure or 'it is being closed'})")
            if self.depth + len(entries) > self._limit:
                raise QueueFullError(self.depth)
            self._pending.append(pending)
            self._num_pending += len(entries)
            self._changed.notify()
        return pending.answer

    def mark_applied(self, sequence: int) -> None:
        """Interactions up to here wait no more."""
        self.applied = sequence

    def prune(self, sequence: int, number: int) -> None:
        """Forgets interactions and windows up to these, which two states on disk know."""
        with self._changed:
            self._prune_to = sequence, number
            self._changed.notify()

    def close(self) -> None:
        """Writes what is pending, closes the open window and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            with self._changed:
                self._failure = error
                waiting, self._pending = self._pending, []
            for pending in waiting:
                if not pending.answer.done():
                    pending.answer.set_exception(RunError(f"the queue cannot be written ({error})"))
            _log.error("the queue cannot be written: %s", error)
            self._on_failure(error)

    def _wait(self) -> float | None:
        """Seconds until the open window is due; None: nothing is open."""
        if self._opened is None:
            return None
        return max(0.0, self._opened + self._interval - time.monotonic())

    def _step(self) -> bool:
        with self._changed:
            while not (self._pending or self._stopping or self._prune_to or self._wait() == 0.0):
                self._changed.wait(self._wait())
            batch, stopping, prune_to = list(self._pending), self._stopping, self._prune_to
            due = stopping or self._wait() == 0.0
        answers = self._commit(batch, due)
        with self._changed:
            self._pending = self._pending[len(batch) :]
            self._num_pending -= sum(len(pending.entries) for pending in batch)
        for pending, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Accepted):
                pending.answer.set_result(answer)
            else:
                pending.answer.set_exception(answer)
        if prune_to and self._pruned(*prune_to):
            with self._changed:
                self._prune_to = None if self._prune_to == prune_to else self._prune_to
        return not (stopping and not self._pending)

    def _commit(self, batch: list[_Pending], due: bool) -> list[Accepted | KeyReusedError]:
        run, last, answers = self._connection.execute, self.last, []
        run("BEGIN IMMEDIATE")
        for pending in batch:
            known = pending.key and run("SELECT * FROM keys WHERE key = ?", (pending.key,)).fetchone()
            if known:
                _, digest, first, end = known
                same = digest == pending.digest
                answers.append(Accepted(first, end, True) if same else KeyReusedError(pending.key))
                continue
            lines = [
                (last + 1 + place, json.dumps(entry, separators=(",", ":")))
                for place, entry in enumerate(pending.entries)
            ]
            self._connection.executemany("INSERT INTO interactions VALUES (?, ?)", lines)
            accepted = Accepted(last + 1, last + len(lines))
            if pending.key is not None:
                run(
                    "INSERT INTO keys VALUES (?, ?, ?, ?)",
                    (pending.key, pending.digest, accepted.first, accepted.last),
                )
            answers.append(accepted)
            last = accepted.last
        number, cut, closed = self._number, self._cut, []
        while last - cut >= self._window or (due and last > cut):
            number, first, cut = number + 1, cut + 1, min(cut + self._window, last)
            closed.append(Window(number, first, cut))
        self._connection.executemany(
            "INSERT INTO windows VALUES (?, ?, ?)", [(w.number, w.first, w.last) for w in closed]
        )
        run("COMMIT")
        if last == cut:
            self._opened = None
        elif closed or self._opened is None:
            self._opened = time.monotonic()
        self.last, self._number, self._cut = last, number, cut
        if closed:
            self._on_windows(closed)
        return answers

    def _pruned(self, sequence: int, number: int) -> bool:
        """Removes some; whether all are gone."""
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        gone = run(
            "DELETE FROM interactions WHERE sequence IN (SELECT sequence FROM interactions WHERE sequence <= ?"
            f" LIMIT {_PRUNED_AT_ONCE})",
            (sequence,),
        ).rowcount
        run("DELETE FROM windows WHERE number <= ?", (number,))
        run("DELETE FROM keys WHERE last <= (SELECT max(last) FROM keys) - ?", (_KEPT_KEYS,))
        run("COMMIT")
        return bool(gone < _PRUNED_AT_ONCE)
