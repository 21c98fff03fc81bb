"""``fedemb serve``: from a run folder to a service that listens."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import uvicorn

from fedemb.config import command_settings
from fedemb.errors import RunError, SettingError
from fedemb.model import Run
from fedemb.run.lock import locked
from fedemb.serve.app import application
from fedemb.serve.service import Service
from fedemb.serve.settings import Settings
from fedemb.serve.state import FOLDER

_CONNECTIONS = 512
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_log = logging.getLogger("fedemb")


def settings_of(overrides: Sequence[str]) -> Settings:
    """Settings of a service.

    Raises:
        SettingError: If one is wrong.
    """
    settings = Settings(**command_settings("serve", overrides))
    token = os.environ.get("FEDEMB_TOKEN")
    return replace(settings, token=token) if settings.token is None and token else settings


def bound_to(host: str, port: int) -> socket.socket:
    """A socket that listens nowhere yet, but holds the port.

    Raises:
        SettingError: If it is taken, or there is no such address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise SettingError(
            f"port must be free and host this machine's, got {host}:{port} ({error.strerror})"
        ) from error
    return bound


def server_of(service: Service) -> uvicorn.Server:
    """A server that is yet to be run; it starts and ends the service."""
    config = uvicorn.Config(
        application(service),
        lifespan="on",
        ws="none",
        log_level="warning",
        access_log=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=10,
    )
    return uvicorn.Server(config)


@contextmanager
def _signals_are_answered() -> Iterator[None]:
    """At SIGTERM and Ctrl-C uvicorn ends in good order and then raises the signal again, for nobody in particular."""

    def nothing(number: int, frame: object) -> None:
        return None

    before = {number: signal.signal(number, nothing) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(folder: Path, overrides: Sequence[str]) -> None:
    """Serves a run until SIGTERM or Ctrl-C; all that was accepted is then on the disk.

    Raises:
        SettingError: If a setting is wrong, the port is taken, or another service holds the run.
        DataError: If the folder holds no finished run.
        RunError: If the service cannot go on learning.
    """
    settings = settings_of(overrides)
    Run(folder)
    torch.set_num_threads(settings.num_threads)
    bound = bound_to(settings.host, settings.port)
    busy = f"another service runs on {folder}; stop it, or serve a copy of the folder"
    with bound, locked(folder / FOLDER, busy=busy):
        server: list[uvicorn.Server] = []

        def end() -> None:
            for one in server:
                one.should_exit = True

        service = Service(folder, settings, on_failure=end)
        port = bound.getsockname()[1]
        server.append(server_of(service))
        if settings.host not in _LOOPBACK and settings.token is None:
            _log.warning(
                "token is not set: whoever reaches %s reads vectors and writes interactions", settings.host
            )
        print(f"serving {folder} on http://{settings.host}:{port} (documentation: /docs)", flush=True)
        with _signals_are_answered():
            server[0].run(sockets=[bound])
        if service.failed or not server[0].started:
            raise RunError(
                "the service could not go on; what was accepted is in the queue for the next start"
            )
