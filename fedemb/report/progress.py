"""A live line per phase of a run while it lasts; nothing where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from fedemb.report.format import duration, number, size
from fedemb.report.metrics_log import FACTS, evaluation_metrics
from fedemb.types import MetricsSink

REFRESHES_PER_SECOND = 4
_MAX_METRICS = 3


@contextmanager
def progress(total_rounds: int, enabled: bool | None = None) -> Iterator[MetricsSink]:
    """Yields what is to be told each round's line, as it stands in ``metrics.jsonl``.

    A call only adds up; a thread draws four times a second. What is printed meanwhile to a terminal
    appears above the bars. Without a terminal nothing at all is written.

    Args:
        total_rounds: Rounds of the first phase, unless its lines have ``rounds``.
        enabled: Whether to show anything; None: if standard error is a terminal.
    """
    console = Console(stderr=True, force_terminal=True if enabled else None)
    if enabled is False or (enabled is None and not (sys.stderr.isatty() and console.is_terminal)):
        yield _ignore
        return
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        _Facts(),
        console=console,
        refresh_per_second=REFRESHES_PER_SECOND,
        redirect_stdout=sys.stdout.isatty(),  # a redirected result must not end up on standard error
    )
    phases: dict[str, _Phase] = {}

    def show(line: Mapping[str, Any]) -> None:
        if "round" not in line:  # a reference that nobody trains
            return
        name = str(line.get("phase", "federated"))
        if name not in phases:
            total, done = line.get("rounds", total_rounds), line["round"] - 1
            phases[name] = _Phase(bars.add_task(name.replace("_", " "), total=total, completed=done), total)
            bars.update(phases[name].task, phase=phases[name])
        phases[name].add(line, bars)

    with bars:
        try:
            yield show
        finally:
            for phase in phases.values():
                phase.draw(bars)


def _ignore(line: Mapping[str, Any]) -> None:
    """Shows nothing."""


@dataclass
class _Phase:
    """What the lines of a phase add up to; rounds before a run was resumed are not among them."""

    task: TaskID
    total: int
    round: int = 0
    loss: float | None = None
    seconds: float = 0.0
    client_updates: int = 0
    upload_bytes: int = 0
    download_bytes: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    drawn: float = 0.0

    def add(self, line: Mapping[str, Any], bars: Progress) -> None:
        self.round = line["round"]
        self.loss = line.get("loss", self.loss)
        self.seconds += line.get("seconds") or 0.0
        self.client_updates += line.get("client_updates") or 0
        self.upload_bytes += line.get("upload_bytes") or 0
        self.download_bytes += line.get("download_bytes") or 0
        if not line.keys() <= FACTS:
            self.metrics = evaluation_metrics(line) or self.metrics
        now = time.monotonic()
        if now - self.drawn > 0.5 / REFRESHES_PER_SECOND or self.round >= self.total:
            self.drawn = now
            self.draw(bars)

    def draw(self, bars: Progress) -> None:
        bars.update(self.task, completed=self.round)


class _Facts(ProgressColumn):
    """Loss, speed, bytes, metrics and time left, drawn from a ``_Phase``."""

    def render(self, task: Task) -> Text:
        phase: _Phase | None = task.fields.get("phase")
        if phase is None:  # the drawing thread came between
            return Text()
        if task.finished:
            parts = [f"in {duration(task.finished_time or 0.0)}"]
        else:
            parts = [] if task.time_remaining is None else [f"{duration(task.time_remaining)} left"]
        if phase.loss is not None:
            parts.append(f"loss {number(phase.loss)}")
        if phase.client_updates and phase.seconds:
            rate = phase.client_updates / phase.seconds
            parts.append(f"{rate:,.{0 if rate >= 10 else 1}f} clients/s")
        if phase.upload_bytes or phase.download_bytes:
            parts.append(f"↑ {size(phase.upload_bytes)} ↓ {size(phase.download_bytes)}")
        parts += [f"{name} {number(value)}" for name, value in list(phase.metrics.items())[:_MAX_METRICS]]
        return Text("  ".join(parts), overflow="ellipsis", no_wrap=True)
