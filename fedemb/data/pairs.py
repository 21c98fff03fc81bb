"""Pairs: two things, and whether they belong together (similar texts, queries and clicks)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedemb.data.assemble import Assembly, assemble, in_order
from fedemb.data.columns import check_roles, resolve_columns
from fedemb.data.declared import read_vocabulary
from fedemb.data.events import Reading, read_events, window_of
from fedemb.data.held_out import HoldOut
from fedemb.data.interactions import check_counts
from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.types import Dataset, Partition

ROLES = ("client", "left", "right", "label", "time")


@dataclass(frozen=True)
class Pairs:
    """Pairs from a CSV, TSV, Parquet or JSON Lines file, a line for each.

    Training columns: ``left`` and ``right`` int64, ``label`` float32 (1 where the file has no such
    column), and ``time`` int64, by which a client's lines are sorted, where there is one.

    Attributes:
        path: The file; compressed text is fine (``.csv.gz``).
        columns: Column name of ``client``, ``left``, ``right``, ``label`` and ``time``. Null: the
            column with a usual name for it, if any, which is logged; an empty name: none. Without a
            client column ``partition`` makes the clients.
        tied: Whether both sides are things of one kind (vocabulary ``item``), or of two (vocabularies
            ``left`` and ``right``).
        min_count: Names seen less often in training, on either side, are out of vocabulary: their
            pairs are dropped.
        min_client_count: Clients with fewer training pairs are dropped.
        since: ISO time; earlier events are not used at all. Null: all.
        until: ISO time; events from here on are not used at all. Null: all.
        shuffle_times: A leak check: the training pairs' times are dealt anew among all of them, so that what
            training could learn of time is lost; what is known of clients when they are measured keeps its
            times. A model that does as well as before does not live on time, or it knows the future.
        validation_from: ISO time; from here on pairs are validation. Null: no such part, or, if
            ``test_from`` is null as well, by shares.
        test_from: ISO time; from here on pairs are test.
        validation_share: Of all pairs, the last before the test period; without time, of each
            client's, drawn at random.
        test_share: Of all pairs, the last ones; without time, of each client's, drawn at random.
        vocabulary: A file that declares all names of a tied vocabulary; null: those in training.
        time_format: Of times that are neither ISO 8601 nor epoch numbers, as for ``strptime``.
        delimiter: Between cells; null: a tab in ``.tsv``, else a comma.
        memory_bytes: Budget for lines in memory; more go to temporary files, mapped into memory.
    """

    path: str
    columns: Mapping[str, str | None] = field(default_factory=dict)
    tied: bool = True
    min_count: int = 1
    min_client_count: int = 1
    since: str | None = None
    until: str | None = None
    shuffle_times: bool = False
    validation_from: str | None = None
    test_from: str | None = None
    validation_share: float = 0.1
    test_share: float = 0.1
    vocabulary: str | None = None
    time_format: str | None = None
    delimiter: str | None = None
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        check_roles(self.columns, ROLES)
        check_counts(self.min_count, self.min_client_count, self.memory_bytes, self.vocabulary)
        if self.vocabulary is not None and not self.tied:
            raise SettingError(
                "data.vocabulary must be null where data.tied is false (there are two), "
                f"got {self.vocabulary!r}"
            )
        _ = self.hold_out, window_of(self.since, self.until)

    @property
    def hold_out(self) -> HoldOut:
        return HoldOut(
            self.validation_from, self.test_from, self.validation_share, self.test_share, at_random=True
        )

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The pairs in the file.

        Raises:
            DataError: If the file or a column is not as it must be, or nothing is left to train on.
            SettingError: If the partition does not suit the data.
        """
        counts: dict[str, int] = {}
        columns = resolve_columns(self.path, self.columns, ROLES, ("left", "right"), self.delimiter)
        entity_of = {role: "item" if self.tied else role for role in ("left", "right")}
        reading = Reading(
            path=self.path,
            columns=columns or {"left": "left", "right": "right"},  # no such file: the reader says so
            entity_of=entity_of,
            numbers={"label": False},
            time_format=self.time_format,
            delimiter=self.delimiter,
            memory_bytes=self.memory_bytes,
            window=window_of(self.since, self.until),
        )
        assembly = Assembly(
            entity_of=entity_of,
            hold_out=self.hold_out,
            min_count=self.min_count,
            min_client_count=self.min_client_count,
            declared={"item": read_vocabulary(self.vocabulary)} if self.vocabulary else {},
            shuffle_times=self.shuffle_times,
            memory_bytes=self.memory_bytes,
        )
        events = read_events(reading, partition, seed, counts)
        return assemble(events, _arrange, assembly, seed, counts)


def _arrange(lines: Shards) -> tuple[Shards, int]:
    if "label" not in lines.columns:
        label = np.ones(lines.num_examples, dtype=np.float32)
        lines = Shards({**lines.columns, "label": label}, lines.offsets)
    return in_order(lines), 0
