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
from fedemb.data.columns import check_roles, resolve_columns
from fedemb.data.events import show_counts
from fedemb.data.grams import NOTHING
from fedemb.data.held_out import SPLITS, TEST, TRAIN, VALIDATION, HoldOut, Label, check_no_future
from fedemb.data.label_tree import read_label_tree
from fedemb.data.lacking import Lacking, keys_of
from fedemb.data.partition import Natural, assigned
from fedemb.data.parts import Mask, as_lists, as_texts, coded, encode_part, part_rules
from fedemb.data.shards import Column, Shards, group_by_client, span_of
from fedemb.data.tabular import read_columns
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import DataError, SettingError
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Component, Dataset, Int64, Partition

logger = logging.getLogger("fedemb")

ROLES = ("id", "client", "label", "time")
LABEL_KINDS = ("category", "multi")
_PART = "part "  # before the names of roles that are components
_PARTITION = "partition"


@dataclass(frozen=True)
class Records:
    """Records from a CSV, TSV, JSON Lines or Parquet file, a line for each; all are read into memory.

    Training columns: ``part_<component>``, see ``types.Component``; ``label`` ``(examples, width)`` int32, ids of the
    vocabulary ``label`` filled up with -1; ``key`` int64, the record's own number; with times ``time``. What labels,
    values and bins there are, the training records of all clients say, as counts; hashed texts need no such count.

    Without times a record is held out by a draw of its own, whoever holds it. Records without any known label are left
    out.

    Attributes:
        path: The file; compressed text is fine (``.jsonl.gz``).
        components: Kind of each component (``category``, ``multi``, ``number``, ``text``), or its settings; see
            ``parts.PartRule``.
        columns: Column name of ``id``, ``client``, ``label`` and ``time``. Null: the column with a usual name for it,
            if any, which is logged; an empty name: none. Without a client column ``partition`` makes the clients;
            without an id, records are told apart by their line.
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
        validation_share: Of all records: the last before the test period, or drawn at random without time.
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
        if isinstance(self.labels, str) or (isinstance(self.labels, int) and self.labels < 2):
            raise SettingError(
                f"data.labels must be a number from 2 on, a list of names, or null, got {self.labels!r}"
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
        rows = self._rows(partition, counts)
        keys, rows = _distinct(rows, counts)
        time = parse_times(rows["time"], self.time_format) if "time" in rows else None
        labels = self._labels(rows["label"], counts)
        good = np.array([bool(row) for row in labels], dtype=np.bool_)
        counts["records_without_label"] = int((~good).sum())
        if time is not None:
            counts["records_bad_time"] = int((good & (time == NO_TIME)).sum())
            good &= time != NO_TIME
        rows = {role: cells.filter(pa.array(good)) for role, cells in rows.items()}
        labels = [row for row, stays in zip(labels, good, strict=True) if stays]
        keys, time = keys[good], None if time is None else time[good]
        if not len(keys):
            raise DataError(
                f"data file {self.path} must have usable records, found none: {show_counts(counts)}"
            )
        cuts = self.hold_out.cuts(time)
        part = _by_time(time, cuts) if time is not None and cuts else _at_random(keys, self.hold_out, seed)
        label_ids, label_names = coded(labels, part == TRAIN, 1)
        label_ids, label_names = self._restricted(label_ids, label_names, part == TRAIN)
        known = (label_ids != NOTHING).any(axis=1)
        counts["records_of_other_labels"] = int((~known).sum())
        owners, clients = self._owners(rows, label_ids, label_names, partition, seed)
        stays, owners, clients = self._staying(owners, clients, part, known, counts)
        components, columns, vocabularies = self._parts(
            rows, keys, owners, clients, stays, part == TRAIN, counts, seed
        )
        columns |= {"label": label_ids, "key": keys}
        if time is not None:
            columns["time"] = time
        seen = label_ids[stays & (part == TRAIN)]
        vocabularies["label"] = Vocabulary.of(
            label_names, np.bincount(seen[seen != NOTHING], minlength=len(label_names))
        )
        num_clients = int(owners.max(initial=-1)) + 1 if clients is None else len(clients)
        splits: dict[str, Shards] = {}
        for name, number in {"training": TRAIN, **SPLITS}.items():
            mine = stays & (part == number)
            counts[f"{name}_records"] = int(mine.sum())
            shards = group_by_client({n: c[mine] for n, c in columns.items()}, owners[mine], num_clients)
            if name == "training" or shards.num_examples:
                splits[name] = shards
        train = splits.pop("training")
        if not train.num_examples:
            raise DataError(
                f"data must hold training records, but nothing is left to train on ({show_counts(counts)}); "
                "lower data.test_share and data.min_client_count, or move data.test_from"
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

    def _rows(self, partition: Partition, counts: MutableMapping[str, int]) -> dict[str, pa.Array]:
        """All cells by role."""
        found = resolve_columns(self.path, self.columns, ROLES, ("label",), self.delimiter)
        rules = part_rules(self.components)
        roles: dict[str, str | None] = dict(found) or {"label": "label"}
        roles |= {_PART + name: rule.column or name for name, rule in rules.items()}
        column = getattr(partition, "column", None)
        if column is not None and "client" not in found and column != "label":
            roles[_PARTITION] = column
        required = frozenset({"client", "id", _PARTITION} & roles.keys())
        several = {name for name, rule in rules.items() if rule.kind in ("multi", "text")}
        lists = {_PART + name for name in several} | ({"label"} if self.label == "multi" else set())
        try:
            batches = list(
                read_columns(
                    self.path, roles, delimiter=self.delimiter, counts=counts, required=required,
                    lists=frozenset(lists),
                )
            )  # fmt: skip
        except DataError as error:
            message = str(error)
            for name in rules:
                message = message.replace(f"data.columns.{_PART}{name} ", f"data.components.{name}.column ")
            raise DataError(message.replace(f"data.columns.{_PARTITION} ", "partition.column ")) from None
        if not batches:
            raise DataError(
                f"data file {self.path} must have usable records, found none: {show_counts(counts)}"
            )
        table = pa.Table.from_batches(batches).combine_chunks()
        rows = {role: table.column(role).combine_chunks() for role in roles}
        for name, rule in rules.items():
            kind = rows[_PART + name].type
            if pa.types.is_nested(kind) and (rule.kind not in ("multi", "text") or not _is_list(kind)):
                raise DataError(
                    f"data.components.{name} must be of kind multi where column {roles[_PART + name]!r} of {self.path} "
                    f"holds lists, got {rule.kind} and {kind}"
                )
        if pa.types.is_nested(rows["label"].type) and self.label != "multi":
            raise DataError(
                f"data.label must be multi where column {roles['label']!r} of {self.path} holds lists, got {self.label}"
            )
        return rows

    def _labels(self, cells: pa.Array, counts: MutableMapping[str, int]) -> list[list[str]]:
        """Labels of every record, each once; those that the tree does not know are left out and counted."""
        if self.label == "multi":
            rows = as_lists(cells, self.label_separator)
        else:
            rows = [[] if text is None else [text] for text in as_texts(cells)]
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
        rows: Mapping[str, pa.Array],
        label_ids: npt.NDArray[np.int32],
        label_names: Sequence[str],
        partition: Partition,
        seed: int,
    ) -> tuple[Int64, Vocabulary | None]:
        """Client of each record, numbered by their names."""
        if "client" in rows:
            if not isinstance(partition, Natural):
                logger.warning("data.columns.client decides the clients; the partition is not used")
            cells = rows["client"].cast(pa.string())
            names = Vocabulary(pc.unique(cells).sort())
            return names.index(cells), names
        columns: dict[str, Column] = {"label": label_ids[:, 0]}
        known = {"label": Vocabulary.of(label_names)}
        if _PARTITION in rows:
            cells, column = rows[_PARTITION].cast(pa.string()), str(getattr(partition, "column", ""))
            known[column] = Vocabulary(pc.unique(cells).sort())
            columns[column] = known[column].index(cells)
        return assigned(partition, columns, seed, vocabularies=known)

    def _staying(
        self,
        owners: Int64,
        clients: Vocabulary | None,
        part: Label,
        known: Mask,
        counts: MutableMapping[str, int],
    ) -> tuple[Mask, Int64, Vocabulary | None]:
        """Which records stay, their clients in new numbers, and the names of those."""
        num_clients = int(owners.max(initial=-1)) + 1 if clients is None else len(clients)
        training = np.bincount(owners[known & (part == TRAIN)], minlength=num_clients)
        held = np.bincount(owners[known], minlength=num_clients)
        cold = (training == 0) & (held > 0)
        stays = training >= self.min_client_count
        counts["clients_read"] = num_clients
        counts["clients_without_training"] = int(cold.sum())
        counts["clients_below_min_count"] = int(((training > 0) & ~stays).sum())
        if self.keep_cold_clients:
            stays |= cold
        counts["records_of_other_clients"] = int((known & ~stays[owners]).sum())
        new = np.cumsum(stays) - 1
        names = None if clients is None else Vocabulary(clients.names.filter(pa.array(stays)))
        return known & stays[owners], new[owners], names

    def _parts(
        self,
        rows: Mapping[str, pa.Array],
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
            counts[f"{name}_taken_away"] = int((gone & ~np.asarray(pc.is_null(rows[_PART + name]))).sum())
            component, column, vocabulary = encode_part(
                name, rule, rows[_PART + name], gone, stays & training, counts
            )
            if bad := counts.get(f"{name}_bad"):
                logger.warning("%s: %d cells of %r are no numbers, and missing", self.path, bad, name)
            components.append(component)
            columns[component.column] = column
            if vocabulary is not None:
                vocabularies[name] = vocabulary
        return tuple(components), columns, vocabularies


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _distinct(
    rows: dict[str, pa.Array], counts: MutableMapping[str, int]
) -> tuple[Int64, dict[str, pa.Array]]:
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


def _by_time(time: Int64, cuts: tuple[int, int]) -> Label:
    return np.where(time >= cuts[1], TEST, np.where(time >= cuts[0], VALIDATION, TRAIN)).astype(np.int8)


def _at_random(keys: Int64, hold_out: HoldOut, seed: int) -> Label:
    """Parts drawn by the records' own keys: the same whoever holds them and whatever else is in the file."""
    draws = uniforms(stream_keys(seed, "held out", keys), 1)[:, 0]
    label = np.where(draws < hold_out.validation_share, VALIDATION, TRAIN)
    return np.where(draws >= 1 - hold_out.test_share, TEST, label).astype(np.int8)
