"""Rankings that nobody learnt: the least that an embedding must beat on the same clients and items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards, join
from fedemb.errors import SettingError
from fedemb.evaluate.ranking import Ranking, history_before
from fedemb.types import Dataset, Evaluated, Int64

DAY = 86_400
BLOCK_BYTES = 1 << 27
Score = Callable[[Shards], Tensor]
"""Scores ``(clients, items)`` of every item for each client of a history."""


@dataclass(frozen=True)
class Unlearnt:
    """A ``Recommender`` without tables."""

    score: Score
    catalogue: str = "item"

    def scores(
        self,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        history: Shards,
        now: Int64 | None = None,
    ) -> Tensor:
        return self.score(history)


def popularity(events: Shards, num_items: int, column: str = "item") -> Score:
    """The same for all clients: how often an item was taken."""
    counts = _counts(events.columns[column], num_items)
    return lambda history: counts.expand(history.num_clients, num_items)


def recent_popularity(
    events: Shards, num_items: int, days: float = 30, until: int | None = None, column: str = "item"
) -> Score:
    """The same for all clients: how often an item was taken in the last days.

    Args:
        events: With a column ``time``.
        num_items: Size of the catalogue.
        days: Length of the window.
        until: Its end in epoch seconds; None: just after the last event.
        column: Of item ids.
    """
    counts = _recent(events, num_items, days, until, column)
    return lambda history: counts.expand(history.num_clients, num_items)


def own_repeats(
    events: Shards, num_items: int, days: float = 30, until: int | None = None, column: str = "item"
) -> Score:
    """What a client took before: how often it did so; then, and for all else, the recent popularity.

    Args:
        events: Of all clients, for the popularity; with a column ``time``.
        num_items: Size of the catalogue.
        days: Of the recent popularity.
        until: End of that window in epoch seconds; None: just after the last event.
        column: Of item ids.
    """
    recent = _recent(events, num_items, days, until, column)
    below_one = recent / (recent.max() + 1)

    def score(history: Shards) -> Tensor:
        return _dense(history, num_items, column, distinct=False).add_(below_one)

    return score


def item_cosine(events: Shards, num_items: int, column: str = "item") -> Score:
    """Sum, over the items that a client took, of their cosine with an item; that with itself is 0.

    An item is the vector of clients who ever took it. Similarities of all pairs of items are never
    formed: n clients take the time of two products of n vectors with the sparse matrix of who took
    what, and 8 n (clients + items) bytes, so many of them at a time as ``BLOCK_BYTES`` hold.

    Reference: Sarwar, Karypis, Konstan, Riedl, "Item-Based Collaborative Filtering Recommendation
    Algorithms", WWW 2001, section 3.1.1, on binary data, with the plain sum of similarities as score.
    """
    pairs = np.unique(events.owners() * num_items + np.asarray(events.columns[column], dtype=np.int64))
    owner, item = (torch.from_numpy(part) for part in np.divmod(pairs, num_items))
    norm = torch.bincount(item, minlength=num_items).double().sqrt_().clamp_(min=1)
    shape = (events.num_clients, num_items)
    unit = torch.sparse_coo_tensor(torch.stack((owner, item)), 1 / norm[item], shape, check_invariants=False)
    unit = unit.coalesce()
    seen = torch.bincount(item, minlength=num_items) > 0

    def score(history: Shards) -> Tensor:
        taken = _dense(history, num_items, column, distinct=True)
        parts = []
        for block in torch.split(taken, max(1, BLOCK_BYTES // (8 * sum(shape)))):
            alike = torch.sparse.mm(unit, block.T.contiguous())  # (clients of events, of the block)
            parts.append(torch.sparse.mm(unit.T, alike).T)
        return torch.cat(parts) - taken * seen

    return score


def unlearnt_rankings(dataset: Dataset, split: str = "test", leaked: bool = False) -> dict[str, Score]:
    """The usual rankings by what was known when a split began, by name.

    Args:
        dataset: With a vocabulary ``item`` and the split.
        split: ``test`` or ``validation``.
        leaked: Also the popularity in the split itself, which no one can know: what leaks look like.

    Raises:
        SettingError: If there is no such split, or no item column.
    """
    if "item" not in dataset.train.columns:
        raise SettingError(
            f"rankings need a column item, got {', '.join(dataset.train.columns)}; use data=interactions"
        )
    events = join(history_before(dataset, split))
    num_items = len(dataset.vocabularies["item"])
    rankings = {"popularity": popularity(events, num_items)}
    if "time" in events.columns:
        until = int(dataset.held_out[split].columns["time"].min())
        rankings["recent_popularity"] = recent_popularity(events, num_items, until=until)
        rankings["own_repeats"] = own_repeats(events, num_items, until=until)
    rankings["item_cosine"] = item_cosine(events, num_items)
    if leaked:
        rankings["leaked_popularity"] = popularity(dataset.held_out[split], num_items)
    return rankings


def evaluate_unlearnt(
    dataset: Dataset,
    split: str = "test",
    ks: tuple[int, ...] = (10,),
    leaked: bool = False,
    memory_bytes: int = 1 << 28,
) -> dict[str, Evaluated]:
    """``Ranking`` of each of ``unlearnt_rankings`` for all clients.

    Raises:
        SettingError: If there is no such split, or no item column.
    """
    history = history_before(dataset, split)
    everyone = np.arange(dataset.train.num_clients, dtype=np.int64)
    out = {}
    for name, score in unlearnt_rankings(dataset, split, leaked).items():
        task = Unlearnt(score)
        ranking = Ranking(task, history, dataset.held_out[split], ks, split, memory_bytes=memory_bytes)
        out[name] = ranking({}, {}, everyone)
    return out


def _counts(items: Int64, num_items: int) -> Tensor:
    """Float64, so that large counts stay apart."""
    return torch.from_numpy(np.bincount(items, minlength=num_items).astype(np.float64))


def _recent(events: Shards, num_items: int, days: float, until: int | None, column: str) -> Tensor:
    if not days > 0:
        raise SettingError(f"days of the recent popularity must be above 0, got {days}")
    time = np.asarray(events.columns["time"])
    until = int(time.max(initial=0)) + 1 if until is None else until
    recent = (time >= until - days * DAY) & (time < until)
    return _counts(np.asarray(events.columns[column])[recent], num_items)


def _dense(history: Shards, num_items: int, column: str, distinct: bool) -> Tensor:
    """How often ``(clients, items)``, or whether, each client took each item."""
    keys = torch.from_numpy(history.owners() * num_items + np.asarray(history.columns[column]))
    out = torch.zeros(history.num_clients * num_items, dtype=torch.float64)
    if distinct:
        out[keys] = 1.0
    else:
        out.index_add_(0, keys, torch.ones(len(keys), dtype=torch.float64))
    return out.view(history.num_clients, num_items)
