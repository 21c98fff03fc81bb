"""Made-up clients whose truth is known: who likes which cluster, or which part of a tree, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fedemb.data.held_out import DAY, SPLITS, TRAIN
from fedemb.data.shards import Column, ragged_indices, span_of
from fedemb.data.store import ShardBuilder
from fedemb.data.structure import Clusters, Tree, distinct
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import SettingError
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Dataset, Int64, Partition

EPOCH = 1_577_836_800  # 2020-01-01
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Synthetic:
    """Clients who draw items from a few clusters of their own, or from a few subtrees.

    A client's cluster is uniform among its own, the rank of the item in the cluster is Zipf, its time
    uniform. Each client's numbers are keyed by (seed, client): the same for any chunk, and for any
    number of clients. Held out are ends of the time span; the first draw is always a training event.

    Training columns: ``item``, ``time`` (seconds, by which lines are sorted), ``session`` (a client's
    day); with parts ``parts`` ``(examples, num_parts)``, -1 where one is missing; for a tree also ``child``
    (the item) and ``parent`` (one of its ancestors, uniform).

    ``truth`` holds ``client_clusters (clients, clusters_per_client)`` and ``item_cluster (items,)``; of
    clusters ``item_cluster_end`` and ``item_moves_at`` (share of the time span, infinite for never); of
    a tree ``item_parent``, and -1 as the cluster of what lies above all of them; with parts
    ``item_parts (items, num_parts)``.

    Attributes:
        structure: ``clusters``, or ``tree``: a complete tree, numbered level by level from the root.
        num_clients: How many clients.
        num_items: How many items; of a tree, nodes.
        examples_per_client: Mean of the clients' sizes, before rounding; each has one at least.
        spread: Standard deviation of the logarithm of the sizes; 0: all alike, 1: a few are large.
        num_clusters: How many clusters; of a tree, subtrees side by side.
        clusters_per_client: How many of them a client draws from.
        zipf: Exponent of the popularity in a cluster; 0: all items alike. In a subtree what lies higher
            is more popular.
        drift: From 0 (nothing changes) to 1: share of a cluster's ranks by which popularity moves on over
            the time span; and of the clusters' items, that move to the next cluster on some day.
        num_parts: Components that each item has.
        missing: Share of them that an example lacks.
        branching: Children of a node of a tree; its depth follows from ``num_items``.
        days: Length of the time span.
        held_out: Share of the time span that is test, and, before that, that is validation.
        folder: Where shards are written, and mapped into memory from; null: in memory.
        chunk_clients: Clients that are drawn at once; with a folder, memory is bounded by them.
    """

    structure: str = "clusters"
    num_clients: int = 1000
    num_items: int = 1000
    examples_per_client: float = 20.0
    spread: float = 1.0
    num_clusters: int = 20
    clusters_per_client: int = 3
    zipf: float = 1.0
    drift: float = 0.0
    num_parts: int = 0
    missing: float = 0.0
    branching: int = 4
    days: int = 365
    held_out: float = 0.1
    folder: str | None = None
    chunk_clients: int = 1 << 15

    def __post_init__(self) -> None:
        if self.structure not in ("clusters", "tree"):
            raise SettingError(f"data.structure must be clusters or tree, got {self.structure!r}")
        for name, low in (
            ("num_clients", 1), ("num_items", 2), ("examples_per_client", 1), ("spread", 0),
            ("num_clusters", 1), ("clusters_per_client", 1), ("zipf", 0), ("num_parts", 0), ("branching", 2),
            ("days", 1), ("chunk_clients", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value < float("inf"):
                raise SettingError(f"data.{name} must be at least {low}, got {value}")
        for name, high in (("drift", 1.0), ("missing", 1.0), ("held_out", 0.49)):
            if not 0 <= getattr(self, name) <= high:
                raise SettingError(f"data.{name} must be in [0, {high:g}], got {getattr(self, name)}")
        if self.chunk_clients > 1 << 20:
            raise SettingError(f"data.chunk_clients must be at most {1 << 20:,}, got {self.chunk_clients}")
        if self.clusters_per_client > self.num_clusters:
            raise SettingError(
                f"data.clusters_per_client must be at most data.num_clusters, {self.num_clusters}, "
                f"got {self.clusters_per_client}"
            )
        _ = self._structure(0)

    def _structure(self, seed: int) -> Clusters | Tree:
        if self.structure == "tree":
            return Tree.build(self.num_items, self.branching, self.num_clusters, self.zipf)
        return Clusters.build(seed, self.num_items, self.num_clusters, self.zipf, self.drift)

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The clients of this seed; the partition is not asked.

        Raises:
            RunError: If the disk refuses.
        """
        draw = _Draw(self, self._structure(seed), seed)
        names = ("train", *SPLITS) if self.held_out else ("train",)
        folders = [Path(self.folder) / name if self.folder else None for name in names]
        builders = [ShardBuilder(folder, memory_bytes=1 << 62) for folder in folders]
        counts = np.zeros(self.num_items, dtype=np.int64)
        own_clusters, num_sessions = [], 0
        for start in range(0, self.num_clients, self.chunk_clients):
            clients = np.arange(start, min(start + self.chunk_clients, self.num_clients), dtype=np.int64)
            mine, owner, label, columns = draw.chunk(clients)
            columns["session"] = _sessions(owner, columns["time"]) + num_sessions
            num_sessions = int(columns["session"][-1]) + 1
            for number, builder in enumerate(builders):
                part = label == number
                builder.append({name: column[part] for name, column in columns.items()}, owner[part] + start)
            counts += np.bincount(columns["item"][label == TRAIN], minlength=self.num_items)
            own_clusters.append(mine)
        shards = dict(zip(names, (builder.finish(self.num_clients) for builder in builders), strict=True))
        events = {f"{name}_events": part.num_examples for name, part in shards.items()}
        items = Vocabulary(_names("item", self.num_items), counts)
        return Dataset(
            train=shards["train"],
            vocabularies={"item": items, **self._more_vocabularies(items)},
            held_out={name: part for name, part in shards.items() if name != "train" and part.num_examples},
            taxonomy=draw.structure.taxonomy() if isinstance(draw.structure, Tree) else None,
            entity_of=self._entity_of,
            counts={"clients": self.num_clients, **events},
            truth={"client_clusters": np.concatenate(own_clusters), **draw.truth},
            span=span_of(shards["train"]),
        )

    @property
    def _entity_of(self) -> dict[str, str]:
        tree = {"child": "node", "parent": "node"} if self.structure == "tree" else {}
        return {"item": "item", **tree, **({"parts": "part"} if self.num_parts else {})}

    def _more_vocabularies(self, items: Vocabulary) -> dict[str, Vocabulary]:
        more = {"node": items} if self.structure == "tree" else {}
        if self.num_parts:
            more["part"] = Vocabulary(_names("part", self.num_parts * self.num_clusters))
        return more


@dataclass(frozen=True)
class _Draw:
    """Draws clients, a chunk at a time."""

    source: Synthetic
    structure: Clusters | Tree
    seed: int

    @cached_property
    def truth(self) -> Mapping[str, npt.NDArray[np.generic]]:
        parts = {"item_parts": self._item_parts()} if self.source.num_parts else {}
        return {**self.structure.truth, **parts}

    def _item_parts(self) -> Int64:
        """Each part is the item's cluster four times in five, else any: ``part * clusters + value``."""
        source = self.source
        keys = stream_keys(self.seed, "synthetic parts", np.arange(source.num_items))
        draws = uniforms(keys, 2 * source.num_parts).reshape(-1, source.num_parts, 2)
        value = (draws[..., 0] * source.num_clusters).astype(np.int64)
        cluster = self.structure.truth["item_cluster"][:, None]
        value = np.where((draws[..., 1] < 0.8) & (cluster >= 0), cluster, value)
        return value + np.arange(source.num_parts) * source.num_clusters

    def chunk(self, clients: Int64) -> tuple[Int64, Int64, npt.NDArray[np.int8], dict[str, Column]]:
        """Clusters ``(clients, k)``, and of every event: position of the client, part, columns."""
        source = self.source
        keys = stream_keys(self.seed, "synthetic clients", clients)
        own = distinct(uniforms(keys, source.clusters_per_client), source.num_clusters)
        sizes = self._sizes(uniforms(keys, 2, start=source.clusters_per_client))
        owner = np.repeat(np.arange(len(clients), dtype=np.int64), sizes)
        number = ragged_indices(np.zeros_like(sizes), sizes)
        num_draws = 4 + source.num_parts
        streams = np.repeat(stream_keys(self.seed, "synthetic events", clients), sizes)
        draws = uniforms(streams, num_draws, start=number * num_draws)
        when = draws[:, 0]
        when[number == 0] *= 1 - 2 * source.held_out
        when = np.floor(when * 2**32) * 2**-32  # so that owner + when is exact, in chunks of any size
        order = np.argsort(owner + when, kind="stable")
        draws, when = draws[order], when[order]
        cluster = own[owner, (draws[:, 1] * source.clusters_per_client).astype(np.int64)]
        item = self.structure.items(cluster, draws[:, 2], when, source.drift)
        columns: dict[str, Column] = {
            "item": item,
            "time": EPOCH + (when * (source.days * DAY)).astype(np.int64),
        }
        if isinstance(self.structure, Tree):
            columns |= {"child": item, "parent": self.structure.ancestors(item, draws[:, 3])}
        if source.num_parts:
            gone = draws[:, 4:] < source.missing
            columns["parts"] = np.where(gone, -1, self.truth["item_parts"][item])
        return own, owner, self._label(columns["time"]), columns

    def _sizes(self, draws: Float64) -> Int64:
        normal = np.sqrt(-2 * np.log1p(-draws[:, 0])) * np.cos(2 * np.pi * draws[:, 1])
        spread = self.source.spread
        sizes = self.source.examples_per_client * np.exp(spread * normal - spread**2 / 2)
        rounded: Int64 = np.maximum(1, np.rint(sizes)).astype(np.int64)
        return rounded

    def _label(self, time: Int64) -> npt.NDArray[np.int8]:
        """The part of each event; cuts are whole seconds, so that times tell the parts apart."""
        span, share = self.source.days * DAY, self.source.held_out
        validation, test = (EPOCH + int(np.ceil(span * (1 - n * share))) for n in (2, 1))
        return (time >= validation).astype(np.int8) + (time >= test).astype(np.int8)


def _sessions(owner: Int64, time: Int64) -> Int64:
    new = (np.diff(owner, prepend=0) != 0) | (np.diff(time // DAY, prepend=time[:1] // DAY) != 0)
    return np.cumsum(new)


def _names(what: str, size: int) -> pa.Array:
    width = len(str(size - 1))
    return pa.array([f"{what}-{number:0{width}}" for number in range(size)], type=pa.string())
