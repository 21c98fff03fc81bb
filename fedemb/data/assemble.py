"""From coded events to a data set: vocabularies, splits and clients, a block of clients at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.data.events import Events, show_counts
from fedemb.data.held_out import NEVER, SPLITS, TRAIN, HoldOut, Label, check_no_future, client_blocks
from fedemb.data.shards import Shards, offsets_of, span_of
from fedemb.data.shuffled import session_starts, shuffled_times, with_times
from fedemb.data.store import ShardBuilder
from fedemb.data.vocabulary import OUT_OF_VOCABULARY, Vocabulary
from fedemb.errors import DataError
from fedemb.types import Dataset, Int64

logger = logging.getLogger("fedemb")

PARTS = ("training", *SPLITS)


@dataclass(frozen=True)
class Assembly:
    """How events become a data set.

    Attributes:
        entity_of: Vocabulary of each id column.
        hold_out: What is kept from training.
        min_count: An entity seen less often in training is out of vocabulary.
        min_client_count: A client with fewer training events is left out.
        keep_cold_clients: Whether clients stay who have validation events but no training events.
        declared: Vocabularies that are given, per entity.
        memory_bytes: Budget of each split for lines in memory.
        min_clients: An entity of fewer clients' training is out of vocabulary; None: 2 where there are several clients.
        shuffle_times: Whether training events are dealt each other's times (8 bytes an event beyond that budget).
    """

    entity_of: Mapping[str, str]
    hold_out: HoldOut
    min_count: int = 1
    min_client_count: int = 1
    keep_cold_clients: bool = False
    declared: Mapping[str, Vocabulary] = field(default_factory=dict)
    memory_bytes: int = 1 << 30
    shuffle_times: bool = False
    min_clients: int | None = 1

    @property
    def block_lines(self) -> int:
        """Lines of a block: sorting and coding need some 200 bytes for each."""
        return max(1, self.memory_bytes // 200)


# A block's lines and parts once each line has become as many as stand in its column ``size``.
Expand = Callable[[Shards, Label], tuple[Shards, Label]]


def assemble(
    events: Events,
    arrange: Callable[[Shards], tuple[Shards, int]],
    assembly: Assembly,
    seed: int,
    counts: MutableMapping[str, int],
    expand: Expand | None = None,
) -> Dataset:
    """The data set that events make.

    Entities and clients are numbered in the alphabetical order of their names, so that the order of
    the rows in the file does not matter. Vocabularies hold what training holds, unless declared.

    Args:
        events: From ``read_events``.
        arrange: Puts a block's lines of each client in order; tells how many duplicates it dropped.
        assembly: The settings.
        seed: Of what is held out at random.
        counts: Is added ``<entity>s_read``, ``clients_read``, ``duplicates``, and per part
            ``<part>_events``, ``<part>_out_of_vocabulary`` and ``<part>_of_unseen_clients``;
            ``clients``, ``clients_without_training`` and ``clients_below_min_count``;
            ``<entity>s_below_min_count`` and ``<entity>s_below_min_clients``.
        expand: Makes the lines that are trained on of those that are held out, ordered and given times as a whole:
            documents become words. Vocabularies name its columns.

    Raises:
        DataError: If nothing is left to train on.
    """
    cuts = assembly.hold_out.cuts(events.shards.columns.get("time"))
    num_clients = events.shards.num_clients
    names = events.clients
    counts["clients_read"] = num_clients
    order = np.arange(num_clients) if names is None else np.asarray(pc.sort_indices(names), dtype=np.int64)
    sizes = events.shards.sizes if expand is None else expanded_sizes(events.shards)

    def in_true_order() -> Iterator[tuple[Shards, Label, int]]:
        for start, end in client_blocks(sizes[order], assembly.block_lines):
            lines, num_dropped = arrange(events.shards.take(order[start:end]))
            clients = np.arange(start, end, dtype=np.int64)
            yield lines, assembly.hold_out.label(lines, cuts, clients, seed), num_dropped

    times = None
    if assembly.shuffle_times:
        if cuts is None:
            raise DataError(
                "data.shuffle_times must be false where clients are cut one by one: it needs times, and a split by "
                "data.validation_from, data.test_from or shares of time"
            )
        times = shuffled_times([session_starts(lines, label) for lines, label, _ in in_true_order()], seed)

    def shuffled(times: Int64) -> Iterator[tuple[Shards, Label, int]]:
        latest = (
            lines.columns["time"][label == TRAIN].max(initial=-NEVER) for lines, label, _ in in_true_order()
        )
        done, last = 0, int(max(latest))
        for lines, label, num_dropped in in_true_order():
            count = len(session_starts(lines, label))
            yield *with_times(lines, label, times[done : done + count], last), num_dropped
            done += count

    def blocks(times: Int64 | None = times) -> Iterator[tuple[Shards, Label, int]]:
        for lines, label, num_dropped in in_true_order() if times is None else shuffled(times):
            yield *((lines, label) if expand is None else expand(lines, label)), num_dropped

    entities = dict.fromkeys(assembly.entity_of.values())
    seen = {entity: np.zeros(len(events.names[entity]), dtype=np.int64) for entity in entities}
    holders, num_training = {entity: np.zeros_like(seen[entity]) for entity in entities}, 0
    counts.update({f"{entity}s_read": len(events.names[entity]) for entity in entities})
    counts["duplicates"] = 0
    for lines, label, num_dropped in blocks():
        counts["duplicates"] += num_dropped
        owner = lines.owners()[label == TRAIN]
        num_training += len(np.unique(owner))
        for column, entity in assembly.entity_of.items():
            codes = lines.columns[column][label == TRAIN]
            seen[entity] += np.bincount(codes, minlength=len(seen[entity]))
            if assembly.min_clients != 1:
                holders[entity] += _holders(owner, codes, len(seen[entity]))
    min_clients = min(2, num_training) if assembly.min_clients is None else assembly.min_clients
    known = {
        entity: _vocabulary(
            events.names[entity], seen[entity], holders[entity], min_clients, assembly, entity, counts
        )
        for entity in seen
    }
    ids = {entity: known[entity].index(events.names[entity]) for entity in seen}
    writer = _Writer(assembly, ids, {entity: len(known[entity]) for entity in seen}, counts)
    kept = np.concatenate([writer.write(lines, label) for lines, label, _ in blocks()])
    train, held_out = writer.finish(int(kept.sum()))
    if not train.num_examples:
        lower = "data.min_count, data.min_clients" if min_clients > 1 else "data.min_count"
        raise DataError(
            f"data must hold training events, but nothing is left to train on ({show_counts(counts)}); "
            f"move data.test_from and data.validation_from, or lower {lower} and data.min_client_count"
        )
    check_no_future(train, held_out, cuts)
    past = None
    if times is not None:
        truthful = _Writer(assembly, ids, {entity: len(known[entity]) for entity in seen}, {})
        for lines, label, _ in blocks(None):
            truthful.write(lines, label)
        past = truthful.finish(train.num_clients)[0]
    counts["clients"] = train.num_clients
    return Dataset(
        train=train,
        vocabularies={e: Vocabulary(v.names, writer.seen[e]) for e, v in known.items()},
        clients=None if names is None else Vocabulary(names.take(pa.array(order[kept]))),
        held_out=held_out,
        entity_of=dict(assembly.entity_of),
        counts=counts,
        span=span_of(train),
        past=past,
    )


def expanded_sizes(shards: Shards) -> Int64:
    """Lines of each client ``(clients,)`` once its lines have become as many as their ``size`` says."""
    total = np.concatenate([[0], np.cumsum(shards.columns["size"], dtype=np.int64)])
    return np.diff(total[shards.offsets])


def _holders(owner: Int64, codes: Int64, num_names: int) -> Int64:
    """How many owners each name stands at ``(names,)``."""
    pairs = np.unique(owner * num_names + codes)
    return np.bincount(pairs % max(1, num_names), minlength=num_names)


def _vocabulary(
    names: pa.Array,
    seen: Int64,
    holders: Int64,
    min_clients: int,
    assembly: Assembly,
    entity: str,
    counts: MutableMapping[str, int],
) -> Vocabulary:
    if entity in assembly.declared:
        return assembly.declared[entity]
    counts[f"{entity}s_below_min_count"] = int(((seen > 0) & (seen < assembly.min_count)).sum())
    agreed = seen >= max(1, assembly.min_count)
    if min_clients > 1:
        counts[f"{entity}s_below_min_clients"] = int((agreed & (holders < min_clients)).sum())
        agreed &= holders >= min_clients
    names = names.filter(pa.array(agreed))
    return Vocabulary(names.take(pc.sort_indices(names)))


class _Writer:
    """Writes each part's lines of the clients that stay."""

    def __init__(
        self,
        assembly: Assembly,
        ids: Mapping[str, Int64],
        heights: Mapping[str, int],
        counts: MutableMapping[str, int],
    ) -> None:
        self._assembly, self._ids, self._counts = assembly, ids, counts
        self._builders = [ShardBuilder(memory_bytes=assembly.memory_bytes) for _ in PARTS]
        self._num_clients = self._num_sessions = 0
        self.seen = {entity: np.zeros(height, dtype=np.int64) for entity, height in heights.items()}
        for part in PARTS:
            for what in ("events", "out_of_vocabulary", "of_unseen_clients"):
                counts[f"{part}_{what}"] = 0
        counts["clients_without_training"] = counts["clients_below_min_count"] = 0

    def write(self, lines: Shards, label: Label) -> npt.NDArray[np.bool_]:
        """Whether each client of the block stays ``(clients,)``."""
        columns, owner = dict(lines.columns), lines.owners()
        good = np.ones(len(owner), dtype=np.bool_)
        for column, entity in self._assembly.entity_of.items():
            columns[column] = self._ids[entity][columns[column]]
            good &= columns[column] != OUT_OF_VOCABULARY
        stays = self._stays(owner[good], label[good], lines.num_clients)
        for number, part in enumerate(PARTS):
            self._counts[f"{part}_out_of_vocabulary"] += int((~good & (label == number)).sum())
            self._counts[f"{part}_of_unseen_clients"] += int((good & (label == number) & ~stays[owner]).sum())
        good &= stays[owner]
        columns = {name: column[good] for name, column in columns.items()}
        owner, label = (np.cumsum(stays) - 1)[owner[good]], label[good]
        if "session" in columns:
            columns["session"] = self._sessions(owner, columns["session"])
        for number, part in enumerate(PARTS):
            mine = label == number
            self._builders[number].append(
                {name: column[mine] for name, column in columns.items()}, owner[mine] + self._num_clients
            )
            self._counts[f"{part}_events"] += int(mine.sum())
        for column, entity in self._assembly.entity_of.items():
            codes = columns[column][label == TRAIN]
            self.seen[entity] += np.bincount(codes, minlength=len(self.seen[entity]))
        self._num_clients += int(stays.sum())
        return stays

    def _stays(self, owner: Int64, label: Label, num_clients: int) -> npt.NDArray[np.bool_]:
        per_part = np.bincount(owner * len(PARTS) + label, minlength=num_clients * len(PARTS))
        train, validation, _ = per_part.reshape(num_clients, len(PARTS)).T
        stays = train >= max(1, self._assembly.min_client_count)
        self._counts["clients_without_training"] += int((train == 0).sum())
        self._counts["clients_below_min_count"] += int(((train > 0) & ~stays).sum())
        if self._assembly.keep_cold_clients:
            stays |= (train == 0) & (validation > 0)
        return stays

    def _sessions(self, owner: Int64, session: Int64) -> Int64:
        """A number for each client's session, from 0 on over all clients."""
        order = np.lexsort((session, owner))
        change = np.diff(owner[order], prepend=-1) != 0
        change[1:] |= np.diff(session[order]) != 0
        numbers = np.empty(len(owner), dtype=np.int64)
        numbers[order] = np.cumsum(change) - 1 + self._num_sessions
        self._num_sessions += int(change.sum())
        return numbers

    def finish(self, num_clients: int) -> tuple[Shards, dict[str, Shards]]:
        parts = [builder.finish(num_clients) for builder in self._builders]
        return parts[0], {name: parts[i] for name, i in SPLITS.items() if parts[i].num_examples}


def keep_lines(shards: Shards, keep: npt.NDArray[np.bool_]) -> Shards:
    """The same clients with some of their lines."""
    sizes = np.bincount(shards.owners()[keep], minlength=shards.num_clients)
    return Shards({name: column[keep] for name, column in shards.columns.items()}, offsets_of(sizes))


def in_order(shards: Shards) -> Shards:
    """Each client's lines by time; lines of the same second stay in their order."""
    if "time" not in shards.columns:
        return shards
    order = np.lexsort((shards.columns["time"], shards.owners()))
    return Shards({name: column[order] for name, column in shards.columns.items()}, shards.offsets)
