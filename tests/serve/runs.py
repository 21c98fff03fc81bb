"""Runs to be served, and services whose worker is a thread of this process."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

import fedemb
from fedemb.serve.link import Ended
from fedemb.serve.run import server_of, settings_of
from fedemb.serve.service import Service
from fedemb.serve.settings import Settings
from fedemb.serve.worker import work

ITEMS = [
    "data=synthetic", "data.num_items=60", "data.num_clients=12", "data.examples_per_client=12", "task.dim=4",
    "rounds=2", "baselines=[]",
]  # fmt: skip


def taxonomy(folder: Path) -> list[str]:
    """A run on a binary tree of 40 nodes; its file stands in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"n{child},n{child // 2}\n" for child in range(2, 40))
    (folder / "tree.csv").write_text("child,parent\n" + lines)
    tree = [
        f"data.path={folder / 'tree.csv'}",
        "partition=iid",
        "partition.num_clients=3",
        "task.negatives=4",
    ]
    return ["data=taxonomy", *tree, "task.dim=4", "rounds=2", "baselines=[]"]


def train_tree(folder: Path) -> Path:
    fedemb.train(taxonomy(folder.parent / "data"), folder=folder)
    return folder


def trained(folder: Path, *overrides: str) -> Path:
    fedemb.train([*ITEMS, *overrides], folder=folder)
    return folder


def in_a_thread(other: socket.socket, folder: Path, settings: Settings) -> Ended:
    connection = Connection(os.dup(other.fileno()))
    other.close()

    def run() -> None:
        with connection:
            work(connection, folder, settings)

    thread = threading.Thread(target=run)
    thread.start()
    return thread.join


@contextmanager
def served(
    folder: Path, *overrides: str, headers: dict[str, str] | None = None
) -> Iterator[tuple[Service, httpx.Client]]:
    """A service that learns as soon as a window is full, and a client of it."""
    service = Service(folder, settings_of(["window=4", "interval_seconds=60", *overrides]), in_a_thread)
    bound = socket.create_server(("127.0.0.1", 0))
    server = server_of(service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        assert thread.is_alive(), "the service did not start"
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with httpx.Client(base_url=address, headers=headers, timeout=30, trust_env=False) as client:
            yield service, client
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def interaction(number: int, **changes: object) -> dict[str, object]:
    """The ``number``-th of an endless series."""
    item = f"item-{number * 7 % 60:02d}"
    return {"client": f"c{number % 5}", "item": item, "time": 1_600_000_000 + number, **changes}
