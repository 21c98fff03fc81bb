"""The answering process's side of the one that learns: starts it, and swaps in each version that it makes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from fedemb.errors import RunError
from fedemb.serve.queue import Window
from fedemb.serve.rows import Change
from fedemb.serve.settings import Settings
from fedemb.serve.wire import receive, receive_change, send

_STOP_SECONDS = 60.0


class Listener(Protocol):
    """Who is told what the worker did; called on the link's thread."""

    def on_change(self, change: Change, facts: dict[str, Any]) -> None: ...
    def on_ready(self) -> None: ...
    def on_saved(self, facts: dict[str, Any]) -> None: ...
    def on_lost(self) -> None: ...


Ended = Callable[[], None]
Launch = Callable[[socket.socket, Path, Settings], Ended]


def in_a_process(other: socket.socket, folder: Path, settings: Settings) -> Ended:
    """Starts the worker in a process of its own; the result waits for its end."""
    # Everybody can read arguments, and the worker has no use for the token.
    arguments = [str(other.fileno()), str(folder), json.dumps({**asdict(settings), "token": None})]
    command = [sys.executable, "-m", "fedemb.serve.worker", *arguments]
    process = subprocess.Popen(command, pass_fds=[other.fileno()])
    other.close()

    def ended() -> None:
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    return ended


class Link:
    """A running worker.

    Args:
        folder: The run folder.
        settings: Of the service.
        launch: Starts the worker at the other end of a socket.
    """

    def __init__(self, folder: Path, settings: Settings, launch: Launch = in_a_process) -> None:
        own, other = socket.socketpair()
        self._ended = launch(other, folder, settings)
        self._connection = Connection(os.dup(own.fileno()))
        own.close()
        self._sending = threading.Lock()
        self._saves: list[Future[dict[str, Any]]] = []
        self._stopping = False
        self._thread: threading.Thread | None = None

    def loaded(self) -> str | None:
        """Name of the state that the worker begins with; None for the trained model.

        Raises:
            RunError: If it ended before it could say; what went wrong stands on stderr.
        """
        try:
            path: str | None = receive(self._connection)["path"]
        except EOFError as error:
            self._ended()
            raise RunError("the learning process ended before it began; see above") from error
        return path

    def go(self, listener: Listener) -> None:
        """Lets it learn, and tells ``listener``."""
        self._send("go")
        self._thread = threading.Thread(target=self._listen, args=(listener,), name="link", daemon=True)
        self._thread.start()

    def windows(self, windows: list[Window]) -> None:
        """Tells it of windows that are on the disk."""
        self._send("windows", windows=[(w.number, w.first, w.last) for w in windows])

    def save(self) -> Future[dict[str, Any]]:
        """Asks it to write its state down; what it wrote."""
        answer: Future[dict[str, Any]] = Future()
        self._saves.append(answer)
        self._send("save")
        return answer

    def stop(self) -> None:
        """Lets it apply what it knows of, write its state down, and end."""
        self._stopping = True
        self._send("stop")
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
        self._connection.close()
        self._ended()

    def _send(self, kind: str, **facts: Any) -> None:
        try:
            with self._sending:
                send(self._connection, kind, **facts)
        except OSError:
            return  # it is gone, which the listening thread sees and tells

    def _listen(self, listener: Listener) -> None:
        while True:
            try:
                message = receive(self._connection)
                change = receive_change(self._connection, message) if message["kind"] == "change" else None
            except (EOFError, OSError):
                break
            if change is not None:
                listener.on_change(change, message)
            elif message["kind"] == "ready":
                listener.on_ready()
            elif message["kind"] == "saved":
                listener.on_saved(message)
                waiting, self._saves = self._saves, []
                for answer in waiting:
                    answer.set_result(message)
            elif message["kind"] == "stopped":
                return
        for answer in self._saves:
            answer.set_exception(RunError("the learning process ended"))
        listener.on_lost()
