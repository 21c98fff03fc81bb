"""Triples: the facts of a knowledge graph, each a head, a relation and a tail."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fedemb.data.columns import check_roles, find_columns
from fedemb.data.events import show_counts
from fedemb.data.graph_files import (
    ENTITY_OF,
    PARTS,
    ROLES,
    TRIPLE,
    GraphReading,
    Lines,
    find_files,
    read_triples,
)
from fedemb.data.held_out import HoldOut
from fedemb.data.interactions import check_counts
from fedemb.data.partition import Natural, assigned
from fedemb.data.shards import Column, Shards, group_by_client
from fedemb.data.vocabulary import OUT_OF_VOCABULARY, Vocabulary
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset, Int64, Partition

logger = logging.getLogger("fedemb")

Mask = npt.NDArray[np.bool_]

ENTITIES = ("all", "train")
SHARE = 0.1  # of the triples at a client, where neither files nor settings say what is held out
TRAINING = [*PARTS].index("training")  # the first three parts are numbered as HoldOut numbers them


@dataclass(frozen=True)
class Triples:
    """Triples from text or Parquet files, a line for each, with the splits in which a graph is published.

    Training columns: ``head``, ``relation`` and ``tail`` int64. Held out are ``validation`` and ``test``
    and, where there are labelled negatives, ``validation_negatives`` and ``test_negatives``.

    A text file has a header line if ``columns`` names a column, or if cells of its first line have usual
    names of head, relation and tail (``subject``, ``predicate``, ``object``...; two suffice, and it is an
    error that the third is lacking). Else it is read as graphs are published: a line is head, relation,
    tail and, where there is a fourth cell, client (``columns.client=""`` leaves it out); cells that are
    separated by tabs are then taken as they stand, quotes and all.

    Clients are found for all parts together, so that a held-out triple is at the client that would
    have trained on it; clients without training triples are dropped with what was held out for them.

    Attributes:
        path: A folder that holds ``train`` and, optionally, ``valid`` (``validation``, ``dev``), ``test``,
            ``valid_negatives`` and ``test_negatives``, as ``.txt``, ``.tsv``, ``.csv`` or ``.parquet``;
            compressed text is fine (``.csv.gz``). Or a single file, of which a random part of each
            client's triples is held out.
        columns: Column name of ``head``, ``relation``, ``tail`` and ``client``. Null: the column with
            a usual name for it, if any, which is logged; an empty name: none. Without a client column
            ``partition`` makes the clients.
        names: Column names of text files without a header line, whatever their first line looks like.
        entities: Whose names make the vocabularies. ``all``: those in any file, as published
            evaluations have it. ``train``:
            those in training; held-out triples with others are out of vocabulary and dropped.
        min_client_count: Clients with fewer training triples are dropped.
        validation_share: Of each client's triples, drawn at random; null: a tenth. Must be null where
            ``path`` brings its own splits.
        test_share: As ``validation_share``.
        delimiter: Between cells; null: a tab in ``.txt`` and ``.tsv``, else a comma.
    """

    path: str
    columns: Mapping[str, str | None] = field(default_factory=dict)
    names: Sequence[str] | None = None
    entities: str = "all"
    min_client_count: int = 1
    validation_share: float | None = None
    test_share: float | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        check_roles(self.columns, ROLES)
        check_counts(1, self.min_client_count, 1, None)
        if self.entities not in ENTITIES:
            raise SettingError(f"data.entities must be all or train, got {self.entities!r}")
        for role in TRIPLE:
            if self.columns.get(role) == "":
                raise SettingError(f"data.columns.{role} must name a column, or be null, got ''")
        if self.names is not None:
            self._check_names(self.names)
        _ = self.hold_out

    def _check_names(self, names: Sequence[str]) -> None:
        if isinstance(names, str):
            raise SettingError(f"data.names must be a list of columns, got {names!r}; write [{names}]")
        found = find_columns(names, self.columns, ROLES)
        lacking = [role for role in ROLES if role in found and found[role] not in names]
        lacking += [role for role in TRIPLE if role not in found]
        if lacking:
            raise SettingError(
                f"data.names must have a column for {lacking[0]}, got {', '.join(map(str, names))}; "
                f"set data.columns.{lacking[0]} to one of them"
            )

    @property
    def hold_out(self) -> HoldOut:
        """What is held out of a single file."""
        return HoldOut(
            validation_share=SHARE if self.validation_share is None else self.validation_share,
            test_share=SHARE if self.test_share is None else self.test_share,
            at_random=True,
        )

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The graph in the files.

        Raises:
            DataError: If a file or a column is not as it must be, or nothing is left to train on.
            SettingError: If the partition does not suit the data, or shares stand beside published splits.
        """
        counts: dict[str, int] = {}
        files = find_files(self.path)
        has_splits = len(files) > 1
        for name in ("validation_share", "test_share"):
            share = getattr(self, name)
            if has_splits and share is not None:
                raise SettingError(
                    f"data.{name} must be null where {self.path} brings its own splits, got {share}"
                )
        lines = _distinct(
            read_triples(files, GraphReading(self.columns, self.names, self.delimiter), counts), counts
        )
        owners, clients = _owners(lines, partition, seed)
        num_clients = int(owners.max()) + 1 if clients is None else len(clients)
        columns: dict[str, Column] = {role: lines.columns[role] for role in TRIPLE}
        columns["part"] = lines.part
        shards = group_by_client(columns, owners, num_clients)
        if not has_splits:
            part = self.hold_out.label(shards, None, np.arange(num_clients, dtype=np.int64), seed)
            shards = Shards({**shards.columns, "part": part}, shards.offsets)
            if not (part != TRAINING).any():
                logger.warning("no triple is held out, for clients have so few: nothing will be measured")
        stays = self._stays(shards, counts)
        known = self._vocabularies(lines, shards, stays)
        parts = _split(shards, stays, lines, known, counts)
        train = parts.pop("training")
        if not train.num_examples:
            raise DataError(
                f"data must hold training triples, but nothing is left ({show_counts(counts)}); "
                "lower data.min_client_count or data.test_share"
            )
        if "test_negatives" in parts and "validation_negatives" not in parts:
            logger.warning(
                "test_negatives are not used: the thresholds of a classification need valid_negatives"
            )
        _count_overlap(train, parts, known, counts)
        return Dataset(
            train=train,
            vocabularies={entity: _counted(names, entity, train) for entity, names in known.items()},
            clients=None if clients is None else Vocabulary(clients.names.filter(pa.array(stays))),
            held_out=parts,
            entity_of=dict(ENTITY_OF),
            counts=counts,
        )

    def _stays(self, shards: Shards, counts: MutableMapping[str, int]) -> Mask:
        """Which clients have training triples enough ``(clients,)``."""
        owners = shards.owners()[shards.columns["part"] == TRAINING]
        sizes = np.bincount(owners, minlength=shards.num_clients)
        stays = sizes >= self.min_client_count
        counts["clients_read"] = shards.num_clients
        counts["clients_without_training"] = int((sizes == 0).sum())
        counts["clients_below_min_count"] = int(((sizes > 0) & ~stays).sum())
        counts["clients"] = int(stays.sum())
        return np.asarray(stays)

    def _vocabularies(self, lines: Lines, shards: Shards, stays: Mask) -> dict[str, Vocabulary]:
        """The names that get a row."""
        known = {entity: lines.names[entity] for entity in ("entity", "relation")}
        if self.entities == "all":
            return known
        trained = stays[shards.owners()] & (shards.columns["part"] == TRAINING)
        for entity, names in known.items():
            seen = np.zeros(len(names), dtype=np.bool_)
            for role in TRIPLE:
                if ENTITY_OF[role] == entity:
                    seen[shards.columns[role][trained]] = True
            known[entity] = Vocabulary(names.names.filter(pa.array(seen)))
        return known


def _distinct(lines: Lines, counts: MutableMapping[str, int]) -> Lines:
    """The lines, with each training triple (of each client, where triples have owners) only once."""
    training = np.flatnonzero(lines.part == TRAINING)
    keys = _keys([column[training] for column in lines.columns.values()])
    _, first = np.unique(keys, return_index=True)
    keep = lines.part != TRAINING
    keep[training[first]] = True
    counts["triples_repeated"] = len(training) - len(first)
    return lines.where(keep)


def _keys(columns: Sequence[Int64]) -> Int64:
    """A number for each different line ``(lines,)``; never above the square of their number, so it fits."""
    keys = columns[0]
    for column in columns[1:]:
        values, column = np.unique(column, return_inverse=True)
        _, keys = np.unique(keys.reshape(-1) * len(values) + column.reshape(-1), return_inverse=True)
    return keys.reshape(-1).astype(np.int64)


def _owners(lines: Lines, partition: Partition, seed: int) -> tuple[Int64, Vocabulary | None]:
    if "client" in lines.columns:
        if not isinstance(partition, Natural):
            logger.warning("data.columns.client decides the clients; the partition is not used")
        return lines.columns["client"], lines.names["client"]
    known = {role: lines.names[entity] for role, entity in ENTITY_OF.items()}
    return assigned(partition, lines.columns, seed, vocabularies=known)


def _split(
    shards: Shards,
    stays: Mask,
    lines: Lines,
    known: Mapping[str, Vocabulary],
    counts: MutableMapping[str, int],
) -> dict[str, Shards]:
    """The parts that hold a triple, and ``training``, over the clients that stay; ids are those of ``known``."""
    ids = {entity: names.index(lines.names[entity].names) for entity, names in known.items()}
    columns = {role: ids[entity][shards.columns[role]] for role, entity in ENTITY_OF.items()}
    owners, part = shards.owners(), shards.columns["part"]
    good = np.all([column != OUT_OF_VOCABULARY for column in columns.values()], axis=0)
    position, here = np.cumsum(stays) - 1, stays[owners]
    parts = {}
    for number, name in enumerate(PARTS):
        if not (part == number).any():
            continue
        mine = here & good & (part == number)
        counts[f"{name}_of_unseen_clients"] = int((~here & (part == number)).sum())
        counts[f"{name}_out_of_vocabulary"] = int((here & ~good & (part == number)).sum())
        counts[f"{name}_triples"] = int(mine.sum())
        if name == "training" or mine.any():
            chosen = {role: column[mine] for role, column in columns.items()}
            parts[name] = group_by_client(chosen, position[owners[mine]], int(stays.sum()))
    return parts


def _counted(names: Vocabulary, entity: str, train: Shards) -> Vocabulary:
    """The vocabulary with occurrences in training."""
    counts = np.zeros(len(names), dtype=np.int64)
    for role in TRIPLE:
        if ENTITY_OF[role] == entity:
            counts += np.bincount(train.columns[role], minlength=len(names))
    return Vocabulary(names.names, counts)


def _count_overlap(
    train: Shards,
    held_out: Mapping[str, Shards],
    known: Mapping[str, Vocabulary],
    counts: MutableMapping[str, int],
) -> None:
    """Counts held-out triples that training holds too; they stay, as published, and inflate what is measured."""
    parts = [train, *(held_out[name] for name in ("validation", "test") if name in held_out)]
    keys = _keys([np.concatenate([part.columns[role] for part in parts]) for role in TRIPLE])
    trained, *others = np.split(keys, np.cumsum([part.num_examples for part in parts])[:-1])
    names = [name for name in ("validation", "test") if name in held_out]
    for name, other in zip(names, others, strict=True):
        counts[f"{name}_in_training"] = int(np.isin(other, trained).sum())
    if any(counts[f"{name}_in_training"] for name in names):
        said = ", ".join(f"{counts[f'{name}_in_training']} of {name}" for name in names)
        logger.warning("triples held out stand in training as well and are kept: %s", said)
