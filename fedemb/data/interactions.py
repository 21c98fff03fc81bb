"""Interactions: who took which item, and when (purchases, clicks, plays)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedemb.data.assemble import Assembly, assemble, in_order, keep_lines
from fedemb.data.columns import check_roles, resolve_columns
from fedemb.data.declared import read_vocabulary
from fedemb.data.events import Reading, check_patterns, read_events, window_of
from fedemb.data.held_out import DAY, HoldOut
from fedemb.data.shards import Column, Shards
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset, Int64, Partition

ROLES = ("client", "item", "time", "session", "weight", "quantity")
ONE_EACH = ("none", "day")


@dataclass(frozen=True)
class Interactions:
    """Interactions from a CSV, TSV, Parquet or JSON Lines file, a line for each.

    Training columns: ``item`` int64; with a time column ``time`` int64 (seconds since 1970), by which a
    client's lines are sorted; ``session`` int64, a number for each client's session, or day, or, without
    either, client; ``weight`` float32 where there is a column for it. Rows without client, item or
    time are left out.

    Attributes:
        path: The file; compressed text is fine (``.csv.gz``).
        columns: Column name of ``client``, ``item``, ``time``, ``session``, ``weight`` and
            ``quantity``. Null: the column with a usual name for it, if any (``CustomerID``,
            ``user_id``; ``StockCode``, ``product``; ``InvoiceDate``, ``timestamp``...), which is
            logged; an empty name: none. Without a client column ``partition`` makes the clients.
            Rows whose quantity is not above zero (returns, cancellations) are left out.
        min_count: Items with fewer training events are out of vocabulary: their events are dropped.
        min_client_count: Clients with fewer training events (of known items) are dropped.
        drop: Per column, a regular expression: rows whose cell starts with a match are cancelled,
            such as ``{InvoiceNo: C}``.
        positive: More columns that must be above zero, such as a price.
        since: ISO time; earlier events are not used at all. Null: all.
        until: ISO time; events from here on are not used at all. Null: all.
        shuffle_times: A leak check: the training sessions' times are dealt anew among all of them (a basket
            moves as a whole), so that what training could learn of time is lost; what is known of clients when
            they are measured keeps its times. A model that does as well as before does not live on time, or it
            knows the future.
        validation_from: ISO time; from here on events are validation, not training. Null: no such
            part, or, if ``test_from`` is null as well, by shares.
        test_from: ISO time; from here on events are test.
        validation_share: Of all events, the last before the test period (of a client's, without time).
        test_share: Of all events, the last ones (of a client's, without time).
        leave_last: Instead, each client's last events: so many for test, as many before for validation.
        deduplicate: ``day``: of a client's events with an item on a day (UTC), the first stands for
            all, with the sum of their weights. ``none``: every event counts.
        keep_cold_clients: Keep clients who have validation events but no training events: their
            shard is empty, they never train, but they can be evaluated on the test events.
        vocabulary: A file that declares all items (a name per line, or the first column, or the one
            named like the item column, of a table, which may be the data file itself: then what its
            items are is public); null: the items of the training events.
        time_format: Of times that are neither ISO 8601 nor epoch numbers, as for ``strptime``.
        delimiter: Between cells; null: a tab in ``.tsv``, else a comma.
        memory_bytes: Budget for lines in memory; more go to temporary files, mapped into memory.
    """

    path: str
    columns: Mapping[str, str | None] = field(default_factory=dict)
    min_count: int = 1
    min_client_count: int = 1
    drop: Mapping[str, str] = field(default_factory=dict)
    positive: Sequence[str] = ()
    since: str | None = None
    until: str | None = None
    shuffle_times: bool = False
    validation_from: str | None = None
    test_from: str | None = None
    validation_share: float = 0.1
    test_share: float = 0.1
    leave_last: int | None = None
    deduplicate: str = "none"
    keep_cold_clients: bool = False
    vocabulary: str | None = None
    time_format: str | None = None
    delimiter: str | None = None
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        check_roles(self.columns, ROLES)
        check_patterns("data.drop", self.drop)
        check_counts(self.min_count, self.min_client_count, self.memory_bytes, self.vocabulary)
        if isinstance(self.positive, str):
            raise SettingError(
                f"data.positive must be a list of columns, got {self.positive!r}; write [{self.positive}]"
            )
        if self.deduplicate not in ONE_EACH:
            raise SettingError(
                f"data.deduplicate must be one of {', '.join(ONE_EACH)}, got {self.deduplicate!r}"
            )
        _ = self.hold_out, window_of(self.since, self.until)

    @property
    def hold_out(self) -> HoldOut:
        return HoldOut(
            self.validation_from, self.test_from, self.validation_share, self.test_share, self.leave_last
        )

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The interactions in the file.

        Raises:
            DataError: If the file or a column is not as it must be, or nothing is left to train on.
            SettingError: If the partition does not suit the data.
        """
        counts: dict[str, int] = {}
        columns = resolve_columns(self.path, self.columns, ROLES, ("item",), self.delimiter)
        quantity = columns.pop("quantity", None)
        if self.deduplicate == "day" and columns and "time" not in columns:
            raise DataError("data.columns.time must name a column for data.deduplicate=day, got none")
        declared = read_vocabulary(self.vocabulary, columns.get("item")) if self.vocabulary else None
        reading = Reading(
            path=self.path,
            columns=columns or {"item": "item"},  # no such file: the reader says so
            entity_of={role: role for role in ("item", "session") if role in columns},
            numbers={"weight": True},
            drop=self.drop,
            positive=[*([quantity] if quantity else []), *self.positive],
            time_format=self.time_format,
            delimiter=self.delimiter,
            memory_bytes=self.memory_bytes,
            window=window_of(self.since, self.until),
        )
        assembly = Assembly(
            entity_of={"item": "item"},
            hold_out=self.hold_out,
            min_count=self.min_count,
            min_client_count=self.min_client_count,
            keep_cold_clients=self.keep_cold_clients,
            declared={"item": declared} if declared else {},
            shuffle_times=self.shuffle_times,
            memory_bytes=self.memory_bytes,
        )
        events = read_events(reading, partition, seed, counts)
        return assemble(events, self._arrange, assembly, seed, counts)

    def _arrange(self, lines: Shards) -> tuple[Shards, int]:
        lines = in_order(lines)
        num_lines = lines.num_examples
        if self.deduplicate == "day":
            lines = first_of_day(lines)
        columns = {**lines.columns, "session": sessions(lines.columns, lines.num_examples)}
        return Shards(columns, lines.offsets), num_lines - lines.num_examples


def check_counts(min_count: int, min_client_count: int, memory_bytes: int, vocabulary: str | None) -> None:
    """Refuses thresholds that make no sense.

    Raises:
        SettingError: If there is one.
    """
    lowest = {"min_count": min_count, "min_client_count": min_client_count, "memory_bytes": memory_bytes}
    for name, value in lowest.items():
        if value < 1:
            raise SettingError(f"data.{name} must be at least 1, got {value}")
    if vocabulary is not None and min_count > 1:
        raise SettingError(
            f"data.min_count must be 1 where data.vocabulary declares the names, got {min_count}"
        )


def first_of_day(lines: Shards) -> Shards:
    """Of a client's lines with an item on a day, the first, with the sum of all their weights."""
    item, day, owner = lines.columns["item"], lines.columns["time"] // DAY, lines.owners()
    order = np.lexsort((day, item, owner))
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = np.any([np.diff(column[order]) != 0 for column in (item, day, owner)], axis=0)
    keep = np.zeros(len(order), dtype=np.bool_)
    keep[order[new]] = True
    columns = dict(lines.columns)
    if "weight" in columns and len(order):
        weight = columns["weight"].copy()
        weight[order[new]] = np.add.reduceat(weight[order], np.flatnonzero(new))
        columns["weight"] = weight
    return keep_lines(Shards(columns, lines.offsets), keep)


def sessions(columns: Mapping[str, Column], num_lines: int) -> Int64:
    """What makes a client's session: its column; its day where that is empty; else one session for all."""
    day = columns["time"] // DAY if "time" in columns else np.zeros(num_lines, dtype=np.int64)
    if "session" not in columns:
        return day
    named = columns["session"].astype(np.int64)
    return np.where(named < 0, -1 - (day - day.min(initial=0)), named)
