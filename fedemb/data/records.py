"""Records: things made of parts, any of which may be missing, and labels to be known of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.data.cells import NO_TIME, parse_times
from fedemb.data.columns import check_roles
from fedemb.data.events import show_counts, warn_of_years
from fedemb.data.grams import NOTHING, is_whole
from fedemb.data.held_out import SPLITS, TRAIN, HoldOut, Label, check_no_future
from fedemb.data.label_tree import read_label_tree
from fedemb.data.lacking import Lacking, keys_of
from fedemb.data.partition import Natural, assigned
from fedemb.data.parts import Mask, as_lists, as_texts, coded, encode_part, part_rules
from fedemb.data.record_rows import PART, PARTITION, ROLES, RecordReading, Rows
from fedemb.data.record_splits import OUT_OF_DISTRIBUTION, PUBLISHED, at_random, by_time, dealt
from fedemb.data.shards import Column, Shards, group_by_client, span_of
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import DataError, SettingError
from fedemb.types import Component, Dataset, Int64, Partition

logger = logging.getLogger("fedemb")

LABEL_KINDS = ("category", "multi")


@dataclass(frozen=True)
class Records:
    """Records from a CSV, TSV, JSON Lines or Parquet file, a line for each; all are read into memory.

    Training columns: ``part_<component>``, see ``types.Component``; ``label`` ``(examples, width)`` int32, ids of the
    vocabulary ``label`` filled up with -1; ``key`` int64, the record's own number; with times ``time``; with groups
    ``group`` int64, -1 for none, which nothing learns from: it is measured whether records of one group lie together.
    What labels, values and bins there are, the training records of all clients say, as counts; hashed texts need no
    such count.

    Without times a record is held out by a draw of its own, whoever holds it. Records without any known label are left
    out.

    A column ``split`` says instead what is held out: ``train`` (or nothing), ``validation``, ``test`` or
    ``out_of_distribution``; times are then not read. Records out of distribution are what no label fits: they have
    none, whatever stands there, and no vocabulary knows them. Those without a client, and all of them where
    ``partition`` makes the clients, are dealt out evenly to the clients that train: whoever answers, sees such records.

    Attributes:
        path: The file; compressed text is fine (``.jsonl.gz``).
        components: Kind of each component (``category``, ``multi``, ``number``, ``text``), or its settings; see
            ``parts.PartRule``.
        columns: Column name of ``id``, ``client``, ``label``, ``time``, ``split`` and ``group``. Null: the column with
            a usual name for it, if any, which is logged; an empty name: none. Without a client column ``partition``
            makes the clients; without an id, records are told apart by their line; no column is taken as ``split`` or
            ``group`` by its name.
        label: ``category``: a record has one label; ``multi``: many.
        labels: How many of the most common ones there are, or their names; null: all of training.
        label_separator: Between the labels of a cell that is no list.
        label_tree: ``path`` of a table with ``id``, ``parent`` and maybe ``name``, and ``depth``: labels are taken up
            to their ancestors there. Without a path, labels are as they stand.
        missing: Components that records are made to lack; see ``Lacking``.
        min_client_count: Clients with fewer training records are left out.
        keep_cold_clients: Keep clients without training records: they never train, and are measured.
        validation_from: ISO time; from here on records are validation, not training.
        test_from: ISO time; from here on records are test.
        validation_share: Of all records: the last before the test period, or drawn at random without time. Void where
            there is a column ``split``, as is ``test_share``.
        test_share: Of all records: the last ones, or drawn at random without time.
        time_format: Of times that are neither ISO 8601 nor epoch numbers, as for ``strptime``.
        delimiter: Between cells; null: a tab in ``.tsv``, else a comma.
    """

    path: str
    components: Mapping[str, Any]
    columns: Mapping[str, str | None] = field(default_factory=dict)
    label: str = "category"
    labels: Any = None
    label_separator: str = ";"
    label_tree: Mapping[str, Any] = field(default_factory=dict)
    missing: Mapping[str, Any] = field(default_factory=dict)
    min_client_count: int = 1
    keep_cold_clients: bool = False
    validation_from: str | None = None
    test_from: str | None = None
    validation_share: float = 0.1
    test_share: float = 0.1
    time_format: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        check_roles(self.columns, ROLES)
        rules = part_rules(self.components)
        if self.label not in LABEL_KINDS:
            raise SettingError(f"data.label must be category or multi, got {self.label!r}")
        if not _few_labels(self.labels):
            raise SettingError(
                "data.labels must be a whole number from 2 on, a list of different names, or null, "
                f"got {self.labels!r}"
            )
        if self.label_tree.get("path") == "":
            raise SettingError(
                "data.label_tree.path must be a table with id, parent and maybe name, or null for labels as they "
                "stand, got ''"
            )
        depth = self.label_tree.get("depth", 1)
        if not set(self.label_tree) <= {"path", "depth"} or not isinstance(depth, int) or depth < 0:
            raise SettingError(
                f"data.label_tree must have path and depth, a number from 0 on, got {dict(self.label_tree)}"
            )
        if self.min_client_count < 1:
            raise SettingError(f"data.min_client_count must be at least 1, got {self.min_client_count}")
        try:
            self.lacking.check(list(rules))
        except TypeError:
            there = ", ".join(self.missing)
            raise SettingError(f"data.missing must have random, client and column, got {there}") from None
        _ = self.hold_out
        if self.columns.get("split"):
            own = {name: getattr(self, name) for name in ("validation_from", "test_from")}
            for name, value in {**own, "columns.time": self.columns.get("time") or None}.items():
                if value is not None:
                    raise SettingError(
                        f"data.{name} must be null where data.columns.split says what is held out, got {value!r}"
                    )

    @property
    def lacking(self) -> Lacking:
        return Lacking(**self.missing)

    @property
    def hold_out(self) -> HoldOut:
        return HoldOut(self.validation_from, self.test_from, self.validation_share, self.test_share)

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The records in the file.

        Raises:
            DataError: If the file or a column is not as it must be, or nothing is left to train on.
            SettingError: If the partition does not suit the data.
        """
        counts: dict[str, int] = {}
        reading = RecordReading(
            self.path, self.columns, part_rules(self.components), self.label, self.delimiter
        )
        return self.made_of(reading.rows(partition, counts), partition, seed, counts)

    def made_of(
        self, rows: Rows, partition: Partition, seed: int, counts: MutableMapping[str, int]
    ) -> Dataset:
        """The data set of these cells, of which there are all that is needed.

        Args:
            rows: As ``RecordReading`` has them.
            partition: Makes the clients where there is no role ``client``.
            seed: Of what is random.
            counts: Is added what was left out and why, and stands in the data set.

        Raises:
            DataError: If nothing is left to train on.
            SettingError: If the partition does not suit the data.
        """
        keys, rows = _distinct(rows, counts)
        num_rows = len(keys)
        given = np.asarray(rows["split"]) if "split" in rows else None
        outside = np.zeros(num_rows, dtype=np.bool_) if given is None else given == OUT_OF_DISTRIBUTION
        time = parse_times(rows["time"], self.time_format) if "time" in rows else None
        labels = self._labels(rows["label"], outside, counts)
        good = outside | np.array([bool(row) for row in labels], dtype=np.bool_)
        counts["records_without_label"] = int((~good).sum())
        if time is not None:
            warn_of_years(self.path, rows["time"], time)
            counts["records_bad_time"] = int((good & (time == NO_TIME)).sum())
            good &= time != NO_TIME
        rows = {role: cells.filter(pa.array(good)) for role, cells in rows.items()}
        labels = [row for row, stays in zip(labels, good, strict=True) if stays]
        keys, outside, time = keys[good], outside[good], None if time is None else time[good]
        if not len(keys):
            raise DataError(
                f"data file {self.path} must have usable records, found none: {show_counts(counts)}"
            )
        cuts = self.hold_out.cuts(time)
        if given is not None:
            part = given[good]
        else:
            part = by_time(time, cuts) if time is not None and cuts else at_random(keys, self.hold_out, seed)
        label_ids, label_names = coded(labels, part == TRAIN, 1)
        label_ids, label_names = self._restricted(label_ids, label_names, part == TRAIN)
        known = outside | (label_ids != NOTHING).any(axis=1)
        counts["records_of_other_labels"] = int((~known).sum())
        owners, clients = self._owners(rows, label_ids, label_names, outside, partition, seed)
        stays, owners, clients = self._staying(owners, clients, part, known, keys, counts, seed)
        components, columns, vocabularies = self._parts(
            rows, keys, owners, clients, stays, part == TRAIN, counts, seed
        )
        columns |= {"label": label_ids, "key": keys}
        if time is not None:
            columns["time"] = time
        if "group" in rows:
            cells = rows["group"].cast(pa.string())
            columns["group"] = Vocabulary(pc.unique(cells.drop_null()).sort()).index(cells)
        seen = label_ids[stays & (part == TRAIN)]
        vocabularies["label"] = Vocabulary.of(
            label_names, np.bincount(seen[seen != NOTHING], minlength=len(label_names))
        )
        num_clients = int(owners.max(initial=-1)) + 1 if clients is None else len(clients)
        numbers = {"train": TRAIN, **SPLITS} if given is None else PUBLISHED
        splits: dict[str, Shards] = {}
        for name, number in numbers.items():
            mine = stays & (part == number)
            counts[f"{'training' if name == 'train' else name}_records"] = int(mine.sum())
            shards = group_by_client({n: c[mine] for n, c in columns.items()}, owners[mine], num_clients)
            if name == "train" or shards.num_examples:
                splits[name] = shards
        train = splits.pop("train")
        if not train.num_examples:
            remedy = (
                "lower data.test_share and data.min_client_count, or move data.test_from"
                if given is None
                else "some must be of the split train, and lower data.min_client_count"
            )
            raise DataError(
                "data must hold training records, but nothing is left to train on "
                f"({show_counts(counts)}); {remedy}"
            )
        check_no_future(train, splits, cuts)
        counts["clients"] = num_clients
        return Dataset(
            train=train,
            vocabularies=vocabularies,
            clients=clients,
            held_out=splits,
            counts=counts,
            span=span_of(train),
            components=components,
            label=Component("label", self.label, "label", len(label_names), label_ids.shape[1]),
        )

    def _labels(self, cells: pa.Array, outside: Mask, counts: MutableMapping[str, int]) -> list[list[str]]:
        """Labels of every record, each once; none of those ``outside``; those that the tree does not know are left out
        and counted.
        """
        if self.label == "multi":
            rows = as_lists(cells, self.label_separator)
        else:
            rows = [[] if text is None else [text] for text in as_texts(cells)]
        rows = [[] if ignored else row for row, ignored in zip(rows, outside, strict=True)]
        if not self.label_tree.get("path"):
            return rows
        above = read_label_tree(str(self.label_tree["path"]), int(self.label_tree.get("depth", 1)))
        unknown = [value for row in rows for value in row if value not in above]
        counts["labels_not_below_depth"] = len(unknown)
        return [list(dict.fromkeys(above[value] for value in row if value in above)) for row in rows]

    def _restricted(
        self, ids: npt.NDArray[np.int32], names: list[str], training: Mask
    ) -> tuple[npt.NDArray[np.int32], list[str]]:
        """The labels that ``labels`` leaves."""
        if self.labels is None:
            return ids, names
        if isinstance(self.labels, int):
            seen = ids[training]
            counts = np.bincount(seen[seen != NOTHING], minlength=len(names))
            wanted = sorted(np.argsort(-counts, kind="stable")[: self.labels].tolist())
        else:
            for name in self.labels:
                if str(name) not in names:
                    raise SettingError(f"data.labels must name labels of training records, got {name!r}")
            wanted = [names.index(str(name)) for name in self.labels]
        new = np.full(len(names) + 1, NOTHING, dtype=np.int32)
        new[wanted] = np.arange(len(wanted))
        return new[ids], [names[index] for index in wanted]

    def _owners(
        self,
        rows: Rows,
        label_ids: npt.NDArray[np.int32],
        label_names: Sequence[str],
        outside: Mask,
        partition: Partition,
        seed: int,
    ) -> tuple[Int64, Vocabulary | None]:
        """Client of each record, numbered by their names; -1 for those that are to be dealt out."""
        if "client" in rows:
            if not isinstance(partition, Natural):
                logger.warning("data.columns.client decides the clients; the partition is not used")
            cells = rows["client"].cast(pa.string())
            names = Vocabulary(pc.unique(cells.drop_null()).sort())
            return names.index(cells), names
        columns: dict[str, Column] = {"label": label_ids[~outside, 0]}
        known = {"label": Vocabulary.of(label_names)}
        if PARTITION in rows:
            cells = rows[PARTITION].cast(pa.string()).filter(pa.array(~outside))
            column = str(getattr(partition, "column", ""))
            known[column] = Vocabulary(pc.unique(cells).sort())
            columns[column] = known[column].index(cells)
        owners = np.full(len(outside), NOTHING, dtype=np.int64)
        owners[~outside], names_made = assigned(partition, columns, seed, vocabularies=known)
        return owners, names_made

    def _staying(
        self,
        owners: Int64,
        clients: Vocabulary | None,
        part: Label,
        known: Mask,
        keys: Int64,
        counts: MutableMapping[str, int],
        seed: int,
    ) -> tuple[Mask, Int64, Vocabulary | None]:
        """Which records stay, their clients in new numbers, and the names of those."""
        num_clients = int(owners.max(initial=-1)) + 1 if clients is None else len(clients)
        loose = known & (owners == NOTHING)
        known = known & ~loose
        training = np.bincount(owners[known & (part == TRAIN)], minlength=num_clients)
        held = np.bincount(owners[known], minlength=num_clients)
        cold = (training == 0) & (held > 0)
        stays = training >= self.min_client_count
        training_clients = np.flatnonzero(stays)
        counts["clients_read"] = num_clients
        counts["clients_without_training"] = int(cold.sum())
        counts["clients_below_min_count"] = int(((training > 0) & ~stays).sum())
        if self.keep_cold_clients:
            stays |= cold
        counts["records_of_other_clients"] = int((known & ~stays[owners]).sum())
        known &= stays[owners]
        if len(training_clients):
            owners = owners.copy()
            owners[loose] = dealt(keys[loose], training_clients, seed)
            known |= loose
        new = np.cumsum(stays) - 1
        names = None if clients is None else Vocabulary(clients.names.filter(pa.array(stays)))
        return known, new[owners], names

    def _parts(
        self,
        rows: Rows,
        keys: Int64,
        owners: Int64,
        clients: Vocabulary | None,
        stays: Mask,
        training: Mask,
        counts: MutableMapping[str, int],
        seed: int,
    ) -> tuple[tuple[Component, ...], dict[str, Column], dict[str, Vocabulary]]:
        """Components, their columns, and their values."""
        of_client = owners
        if clients is not None:  # by name, whoever else is there; records that are left out need none
            of_client = np.append(keys_of(clients.to_list()), 0)[np.where(stays, owners, -1)]
        components, columns, vocabularies = [], {}, {}
        for name, rule in part_rules(self.components).items():
            gone = self.lacking.lacks(name, keys, of_client, seed)
            counts[f"{name}_taken_away"] = int((gone & ~np.asarray(pc.is_null(rows[PART + name]))).sum())
            component, column, vocabulary = encode_part(
                name, rule, rows[PART + name], gone, stays & training, counts
            )
            if bad := counts.get(f"{name}_bad"):
                logger.warning("%s: %d cells of %r are no numbers, and missing", self.path, bad, name)
            components.append(component)
            columns[component.column] = column
            if vocabulary is not None:
                vocabularies[name] = vocabulary
        return tuple(components), columns, vocabularies


def _few_labels(labels: Any) -> bool:
    """Whether it says which labels there are: how many, names, or null for all."""
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        return 0 < len(labels) == len(set(map(str, labels)))
    return labels is None or (is_whole(labels) and labels >= 2)


def _distinct(rows: Rows, counts: MutableMapping[str, int]) -> tuple[Int64, Rows]:
    """Each record once, the first of an id, and its key."""
    if "id" not in rows:
        num_rows = len(rows["label"])
        counts["records_repeated"] = 0
        return keys_of([str(line) for line in range(num_rows)]), rows
    names = rows["id"].cast(pa.string()).to_pylist()
    first = {name: line for line, name in reversed(list(enumerate(names)))}
    keep = np.array(sorted(first.values()), dtype=np.int64)
    counts["records_repeated"] = len(names) - len(keep)
    if len(keep) < len(names):
        logger.warning("%d records have the id of an earlier one, and are left out", len(names) - len(keep))
    return keys_of([names[line] for line in keep]), {
        role: cells.take(pa.array(keep)) for role, cells in rows.items()
    }
