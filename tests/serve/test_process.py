"""`fedemb serve` as a person starts and ends it: in processes of its own, killed, stopped, and started twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import fedemb
from fedemb.errors import SettingError
from fedemb.model import Run
from fedemb.serve.queue import open_database, read_window, windows_after
from fedemb.serve.run import bound_to, settings_of
from fedemb.serve.worker import prepared
from tests.serve.runs import interaction, trained

Start = Callable[..., tuple[subprocess.Popen[str], httpx.Client]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return trained(tmp_path / "run", "task=factorization")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts services, and ends those that a test leaves."""
    begun: list[tuple[subprocess.Popen[str], httpx.Client]] = []

    def begin(folder: Path, *overrides: str) -> tuple[subprocess.Popen[str], httpx.Client]:
        command = [sys.executable, "-m", "fedemb", "serve", str(folder), "port=0", "window=4", *overrides]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://" in line, process.communicate(timeout=30)[1]
        address = next(word for word in line.split() if word.startswith("http://"))
        client = httpx.Client(base_url=address, timeout=30, trust_env=False)
        begun.append((process, client))
        wait_for(lambda: ready(client), process)
        return process, client

    yield begin
    for process, client in begun:
        client.close()
        process.kill()
        process.communicate(timeout=60)


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate(timeout=30)[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sequence(client: httpx.Client) -> int:
    found: dict[str, Any] = client.get("/tables").json()
    return int(found["sequence"])


def test_nothing_acknowledged_is_lost_or_applied_twice(folder: Path, start: Start) -> None:
    """Killed between states on disk, in the middle of requests: the rows are those of one uninterrupted pass."""
    process, client = start(folder, "snapshot_seconds=1000", "interval_seconds=0.2")
    last = 0
    for number in range(40):
        lines = [interaction(3 * number + place) for place in range(3)]
        last = client.post("/interactions", json=lines).raise_for_status().json()["last"]
        if number == 20:
            assert client.post("/snapshot").raise_for_status().json()["sequence"] > 0
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert last == 120
    database = open_database(folder / "serve" / "queue.sqlite")
    windows, kept = windows_after(database, 0), database.execute("SELECT max(sequence) FROM interactions")
    assert kept.fetchone() == (120,)
    given = {window.number: read_window(database, window) for window in windows}
    database.close()
    assert windows[0].number == 1, "one state is on the disk, and it may turn out corrupt"
    process, client = start(folder, "snapshot_seconds=1000", "interval_seconds=0.2")
    wait_for(lambda: sequence(client) == 120, process)
    names = fedemb.load(folder).table("item")[0]
    found = client.post("/vectors", json={"ids": names}).json()
    database = open_database(folder / "serve" / "queue.sqlite")
    windows = windows_after(database, 0)  # one more than before, if the last one was open at the kill
    given |= {
        window.number: read_window(database, window) for window in windows if window.number not in given
    }
    database.close()
    updater, state = prepared(Run(folder), settings_of(["window=4"]))
    for window in windows:
        updater.apply(state, window, given[window.number])
    assert (state.sequence, state.number) == (found["sequence"], found["version"])
    assert torch.equal(torch.tensor(found["vectors"]), state.tables["item"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_service_has_applied_everything_and_ends_well(
    number: signal.Signals, folder: Path, start: Start
) -> None:
    process, client = start(folder, "interval_seconds=1000")
    client.post("/interactions", json=[interaction(place) for place in range(6)]).raise_for_status()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    process, client = start(folder)
    assert sequence(client) == 6


def test_a_killed_worker_ends_the_service(folder: Path, start: Start) -> None:
    process, client = start(folder)
    (worker,) = (
        int(child)
        for thread in Path(f"/proc/{process.pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    )
    client.post("/interactions", json=[interaction(0)]).raise_for_status()
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the learning process is gone" in err
    assert "Traceback" not in err
    process, client = start(folder, "interval_seconds=0.1")
    wait_for(lambda: sequence(client) == 1, process)


def refused(*arguments: str) -> str:
    command = [sys.executable, "-m", "fedemb", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_two_services_do_not_share_a_run_or_a_port(folder: Path, start: Start, tmp_path: Path) -> None:
    _, client = start(folder)
    assert f"another service runs on {folder}" in refused(str(folder), "port=0")
    assert "port must be free" in refused(str(folder), f"port={client.base_url.port}")


def test_mistakes_are_told_in_a_line(folder: Path) -> None:
    assert "nowhere must be the folder of a finished run" in refused("nowhere")
    assert "needs a run folder before its settings, got 'port=1'" in refused("port=1")


MISTAKES = {
    "prot=1": "prot is not a setting of fedemb serve; did you mean port?",
    "port": "a setting must read key=value, got 'port'",
    "port=70000": "port must be at most 65535, got 70000",
    "port=a": "port must be a whole number, at least 0, got 'a'",
    "window=0": "window must be a whole number, at least 1, got 0",
    "window=true": "window must be a whole number, at least 1, got True",
    "interval_seconds=0": "interval_seconds must be a positive number, got 0",
    "learning_rate=-1": "learning_rate must be a positive number, got -1",
    "queue_limit=5": "window must be at most queue_limit, 5, or it never fills, got 100",
    "max_clients=5": "max_clients must be at least window, 100, for all its clients train together, got 5",
    "token=short": "token must be text of at least 8 characters",
    "host=''": "host must be an address such as 127.0.0.1, got ''",
    "window=[": "settings must be plain values, got 'window=['",
}


@pytest.mark.parametrize("setting", MISTAKES)
def test_wrong_settings_are_named(setting: str) -> None:
    with pytest.raises(SettingError) as caught:
        settings_of([setting])
    assert str(caught.value).startswith(MISTAKES[setting])


def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDEMB_TOKEN", "from outside")
    assert settings_of([]).token == "from outside"
    assert settings_of(["token=from_inside"]).token == "from_inside"
    assert "from" not in repr(settings_of([]))


def test_a_port_that_is_taken_is_no_traceback() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SettingError, match="port must be free"),
    ):
        bound_to("127.0.0.1", taken.getsockname()[1])
