"""report/progress.py: silent where nobody watches, and cheap where somebody does."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.progress import Progress

from fedemb.report.progress import progress

SCRIPT = """
import sys
from fedemb.report.progress import progress
with progress(3) as show:
    for number in (1, 2, 3):
        show({"phase": "federated", "round": number, "rounds": 3, "loss": 0.5, "client_updates": 40,
              "seconds": 0.5, "upload_bytes": 2048, "download_bytes": 1 << 20,
              **({"map": 0.875} if number == 3 else {})})
    show({"phase": "local_only", "round": 2, "rounds": 4, "seconds": 0.1})
    show({"phase": "popularity", "map": 0.1})
    print("a result")
"""


def lines(count: int, **more: Any) -> Iterator[dict[str, Any]]:
    for number in range(1, count + 1):
        yield {
            "phase": "federated",
            "round": number,
            "rounds": count,
            "loss": 1 / number,
            "seconds": 1.0,
            **more,
        }


@pytest.mark.parametrize("enabled", [None, False])
def test_silent_without_a_terminal(enabled: bool | None, capfd: pytest.CaptureFixture[str]) -> None:
    with progress(5, enabled) as show:
        for line in lines(5):
            show(line)
    assert capfd.readouterr() == ("", "")


def test_silent_without_a_terminal_whatever_the_environment() -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == (b"a result\n", b"")


def run_on_a_terminal(environment: dict[str, str]) -> tuple[bytes, bytes]:
    """What lands on standard output, a pipe, and on standard error, a terminal."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "COLUMNS": "150", **environment},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    out, _ = child.communicate()
    os.close(master)
    assert child.returncode == 0
    return out, shown


def test_a_terminal_sees_everything_and_a_pipe_stays_clean() -> None:
    out, shown = run_on_a_terminal({"TERM": "xterm"})
    assert out == b"a result\n"
    text = shown.decode()
    last = text[text.rindex("federated") :]
    for part in (
        "3/3",
        "loss 0.5000",
        "80 clients/s",
        "↑ 6.00 KiB ↓ 3.00 MiB",
        "map 0.8750",
        "local only",
        "2/4",
    ):
        assert part in last
    assert "popularity" not in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_a_dumb_terminal_gets_no_codes() -> None:
    _, shown = run_on_a_terminal({"TERM": "dumb"})
    assert b"\x1b" not in shown


def test_a_call_costs_little(capfd: pytest.CaptureFixture[str]) -> None:
    """A hundredth of a millisecond, usually; 0.1 leaves room for a busy machine."""
    with progress(5000, enabled=True) as show:
        told = list(lines(5000, client_updates=10, upload_bytes=1, download_bytes=1, map=0.5))
        start = time.thread_time()
        for line in told:
            show(line)
        seconds = time.thread_time() - start
    assert seconds / 5000 < 1e-4
    assert "5000/5000" in capfd.readouterr().err


def test_many_calls_are_few_drawings(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What came last is drawn all the same, also if a phase does not end."""
    drawings, update = [], Progress.update

    def counted(self: Progress, *arguments: Any, **settings: Any) -> None:
        drawings.append(settings)
        update(self, *arguments, **settings)

    monkeypatch.setattr(Progress, "update", counted)
    start = time.monotonic()
    with progress(5000, enabled=True) as show:
        for line in list(lines(5000))[:4999]:
            show(line)
    seconds = time.monotonic() - start
    assert len(drawings) <= 4 + 8 * seconds
    assert "4999/5000" in capfd.readouterr().err


def test_an_error_inside_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with progress(5, enabled=True) as show:
            show(next(lines(5)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capfd.readouterr().err.endswith("\x1b[?25h")
