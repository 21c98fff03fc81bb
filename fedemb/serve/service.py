"""A served run: the version that readers see, the queue that interactions go to, and the worker between them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedemb.build import rebuild
from fedemb.errors import DataError, SettingError
from fedemb.gaussian import Gaussian
from fedemb.manifolds import manifold
from fedemb.model import Run
from fedemb.serve.fields import Fields
from fedemb.serve.link import Launch, Link, in_a_process
from fedemb.serve.metrics import Metrics
from fedemb.serve.queue import Queue
from fedemb.serve.rows import Change, Rows, Version
from fedemb.serve.settings import Settings
from fedemb.serve.state import FOLDER, newest, read_facts, read_tensors, tables_of
from fedemb.types import Manifold, Table, Task, Temporal

_log = logging.getLogger("fedemb")


def _rebuilt(run: Run) -> tuple[Task | None, str | None]:
    """The run's task; None, and why, where it cannot be built without the data."""
    try:
        return rebuild(run.folder, run.without_examples())[0], None
    except (SettingError, DataError) as error:
        return None, str(error)


class Service:
    """Everything behind the routes. ``start`` begins to learn, ``close`` ends it.

    Args:
        folder: A run folder.
        settings: Of the service.
        launch: Starts the worker.
        on_failure: Is told when the service can no longer learn.

    Raises:
        DataError: If the folder holds no finished run.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        launch: Launch = in_a_process,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.settings, self.metrics = Run(folder), settings, Metrics.make()
        self.own = folder / FOLDER
        self._launch, self._on_failure = launch, on_failure
        self.task, self.why_not = _rebuilt(self.run)
        tables, dense = self.run.tensors()
        self.tables = {name: _table_of(self.run, name, tables[name]) for name in self.run.tables}
        # Rows of slices are looked up by time, through the main table.
        self.visible = {name: table for name, table in self.tables.items() if table.num_slices == 1}
        self.names = {entity: v.to_list() for entity, v in self.run.vocabularies.items()}
        self.ids = {
            entity: {name: at for at, name in enumerate(names)} for entity, names in self.names.items()
        }
        columns = tuple(self.run.facts.get("columns", {}))
        entity_of = dict(self.run.facts.get("entity_of", {}))
        unknown = Fields.unknown(columns, entity_of)
        if self.why_not is None and unknown is not None:
            self.why_not = f"an interaction cannot bring {unknown}, which this task was trained with"
        ids = {column: self.ids[entity] for column, entity in entity_of.items() if entity in self.ids}
        self.fields = Fields(columns, ids)
        self.version = Version(0, 0, {name: Rows.of(tables[name]) for name in self.tables}, dense)
        self.ready = False
        self.failed = False
        self.queue: Queue | None = None
        self._link: Link | None = None
        self._applied_at = time.monotonic()
        self._changed = threading.Condition()
        self.at_time = lru_cache(maxsize=4)(self._at_time)

    @property
    def temporal(self) -> Temporal | None:
        """The task, if its vectors depend on time."""
        return self.task if isinstance(self.task, Temporal) and self.task.moves else None

    def start(self) -> None:
        """Takes up the last state and begins to learn; ready once all that was accepted is applied.

        Raises:
            RunError: If the state on disk cannot be taken up.
        """
        if self.why_not is not None:  # what was learnt before is served all the same
            path = newest(self.own, self.run.name) if self.own.is_dir() else None
            self._take_up(path)
            self.ready = True
            return
        self._link = Link(self.run.folder, self.settings, self._launch)
        name = self._link.loaded()
        self._take_up(None if name is None else self.own / name)
        self.queue = Queue(
            self.own / "queue.sqlite",
            self.settings.queue_limit,
            self.settings.window,
            self.settings.interval_seconds,
            (self.version.sequence, self.version.number),
            self._link.windows,
            lambda error: self.on_lost(),
        )
        queue = self.queue
        self.metrics.watch("queue_depth", "Interactions that wait to be applied", lambda: queue.depth)
        self.metrics.watch(
            "lag_seconds", "Since the last window was applied while others wait", self.lag_seconds
        )
        self.metrics.watch("version", "Windows applied since the run ended", lambda: self.version.number)
        self.metrics.watch(
            "sequence", "The last interaction that the version knows", lambda: self.version.sequence
        )
        self._link.go(self)

    def _take_up(self, path: Path | None) -> None:
        if path is None:
            return
        facts, (tables, dense) = read_facts(path), tables_of(read_tensors(path))
        rows = {name: Rows.of(tables[name]) for name in self.tables}
        self.version = Version(facts["number"], facts["sequence"], rows, dense)

    def lag_seconds(self) -> float:
        """How long nothing has been applied although something waits."""
        waits = self.queue is not None and self.queue.depth > 0
        return time.monotonic() - self._applied_at if waits else 0.0

    def save(self) -> Future[dict[str, Any]]:
        """Asks for the state to be written down."""
        assert self._link is not None
        return self._link.save()

    def wait_for(self, sequence: int, seconds: float) -> bool:
        """Waits until a version knows this interaction; whether one does."""
        with self._changed:
            return self._changed.wait_for(lambda: self.version.sequence >= sequence, seconds)

    def close(self) -> None:
        """Writes what is pending, applies it, writes the state down; nothing is taken any more."""
        self.ready = False
        if self.queue is not None:
            self.queue.close()
        if self._link is not None:
            self._link.stop()

    def on_change(self, change: Change, facts: dict[str, Any]) -> None:
        before = self.version
        self.version = change.applied(before)  # one assignment: a reader has the one or the other
        assert self.queue is not None
        self.queue.mark_applied(change.sequence)
        self._applied_at = time.monotonic()
        self.metrics.applied.inc(change.sequence - before.sequence)
        self.metrics.rejected.set(facts["rejected"])
        self.metrics.window_seconds.observe(facts["seconds"])
        with self._changed:
            self._changed.notify_all()

    def on_ready(self) -> None:
        self.ready = True

    def on_saved(self, facts: dict[str, Any]) -> None:
        if self.queue is not None:
            self.queue.prune(facts["forget_sequence"], facts["forget_number"])

    def on_lost(self) -> None:
        _log.error(
            "the learning process is gone: the service ends; what was accepted is applied at the next start"
        )
        self.ready, self.failed = False, True
        self._on_failure()

    def _at_time(self, version: Version, time: int) -> Tensor:
        """Vectors of the main table's rows at a time ``(rows, coordinates)``; kept for the latest few questions."""
        assert isinstance(self.task, Temporal)
        with torch.no_grad():
            return self.task.vectors_at(version.whole, time)


def _table_of(run: Run, name: str, tensor: Tensor) -> Table:
    facts = next(table for table in run.facts["tables"] if table["name"] == name)
    dtype = str(tensor.dtype).removeprefix("torch.")
    curvature = facts["curvature"] or -1.0  # flat space has no use for it
    if facts["manifold"] == "gaussian":
        space: Manifold = Gaussian(facts["prior_precision"], dtype=tensor.dtype)
    else:
        space = manifold(facts["manifold"], curvature, dtype)
    return Table(
        name,
        facts["rows"],
        facts["dim"],
        space,
        0.0,
        entity=facts["entity"],
        num_slices=facts.get("slices", 1),
    )
