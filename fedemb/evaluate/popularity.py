"""Rankings that nobody learnt: the least that an embedding must beat on the same clients and items.

Popularity is what can be known when a client is asked: where one point in time divides all events, everything before
it; where each client's last events are held out (``data.leave_last``), what anybody took before that client's own. The
widely used protocol counts all training events there, also what others took later: ``popularity_any_time``.

Reference: Ji, Sun, Zhang, Li, "A Re-visit of the Popularity Baseline in Recommender Systems", SIGIR 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards, join
from fedemb.errors import SettingError
from fedemb.evaluate.ranking import Ranking, asked_at, history_before
from fedemb.types import Dataset, Evaluated, Int64

DAY = 86_400
BLOCK_BYTES = 1 << 27


class Score(Protocol):
    """Scores ``(clients, items)`` of every item for each client of a history, that is asked ``now`` ``(clients,)``."""

    def __call__(self, history: Shards, now: Int64 | None = None) -> Tensor: ...


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
        return self.score(history, now)


def popularity(events: Shards, num_items: int, column: str = "item", any_time: bool = False) -> Score:
    """How often an item was taken before the client is asked; ``any_time``: or later."""
    counts = _counts(events.columns[column], num_items)

    def score(history: Shards, now: Int64 | None = None) -> Tensor:
        if now is None or any_time:
            return counts.expand(history.num_clients, num_items)
        return _before(events, num_items, now, column)

    return score


def recent_popularity(
    events: Shards, num_items: int, days: float = 30, until: int | None = None, column: str = "item"
) -> Score:
    """How often an item was taken in the last days before the client is asked.

    Args:
        events: With a column ``time``.
        num_items: Size of the catalogue.
        days: Length of the window.
        until: Its end in epoch seconds, for clients that are asked at no time; None: just after the last event.
        column: Of item ids.
    """
    if not days > 0:
        raise SettingError(f"days of the recent popularity must be above 0, got {days}")
    end = int(np.max(events.columns["time"], initial=0)) + 1 if until is None else until

    def score(history: Shards, now: Int64 | None = None) -> Tensor:
        asked = np.full(history.num_clients, end, dtype=np.int64) if now is None else now
        counts = _before(events, num_items, asked, column)
        return counts - _before(events, num_items, asked - int(days * DAY), column)

    return score


def own_repeats(
    events: Shards, num_items: int, days: float = 30, until: int | None = None, column: str = "item"
) -> Score:
    """What a client took before: how often it did so; then, and for all else, the recent popularity.

    Args as those of ``recent_popularity``.
    """
    recent = recent_popularity(events, num_items, days, until, column)

    def score(history: Shards, now: Int64 | None = None) -> Tensor:
        counts = recent(history, now)
        below_one = counts / (counts.amax(1, keepdim=True) + 1)
        return _dense(history, num_items, column, distinct=False).add_(below_one)

    return score


def item_cosine(events: Shards, num_items: int, column: str = "item") -> Score:
    """Sum, over the items that a client took, of their cosine with an item; that with itself is 0.

    An item is the vector of clients who ever took it, whenever that was, as a trained model knows it. Similarities of
    all pairs of items are never
    formed: n clients take the time of two products of n vectors with the sparse matrix of who took
    what, and 8 n (clients + items) bytes, so many of them at a time as ``BLOCK_BYTES`` hold.

    Reference: Sarwar, Karypis, Konstan, Riedl, "Item-Based Collaborative Filtering Recommendation
    Algorithms", WWW 2001, section 3.1.1, on binary data, with the plain sum of similarities as score.
    """
    pairs = np.unique(events.owners() * num_items + np.asarray(events.columns[column], dtype=np.int64))
    owner, item = (torch.from_numpy(part) for part in np.divmod(pairs, num_items))
    norm = torch.bincount(item, minlength=num_items).double().sqrt_().clamp_(min=1)
    shape = (events.num_clients, num_items)
    # As an argument of the constructor, torch 2.11 warns that it was not said.
    with torch.sparse.check_sparse_tensor_invariants(False):  # type: ignore[no-untyped-call]
        unit = torch.sparse_coo_tensor(torch.stack((owner, item)), 1 / norm[item], shape).coalesce()
    seen = torch.bincount(item, minlength=num_items) > 0

    def score(history: Shards, now: Int64 | None = None) -> Tensor:
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
        rankings["popularity_any_time"] = popularity(events, num_items, any_time=True)
        rankings["recent_popularity"] = recent_popularity(events, num_items)
        rankings["own_repeats"] = own_repeats(events, num_items)
    rankings["item_cosine"] = item_cosine(events, num_items)
    if leaked:
        rankings["leaked_popularity"] = popularity(dataset.held_out[split], num_items, any_time=True)
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
        now = asked_at(dataset, split)
        ranking = Ranking(task, history, dataset.held_out[split], ks, split, now, memory_bytes=memory_bytes)
        out[name] = ranking({}, {}, everyone)
    return out


def _counts(items: Int64, num_items: int) -> Tensor:
    """Float64, so that large counts stay apart."""
    return torch.from_numpy(np.bincount(items, minlength=num_items).astype(np.float64))


def _before(events: Shards, num_items: int, now: Int64, column: str) -> Tensor:
    """How often ``(clients, items)`` each item was taken by anybody before each client's ``now``."""
    moments, which = np.unique(now, return_inverse=True)
    first = np.searchsorted(moments, np.asarray(events.columns["time"]), side="right")
    counts = torch.zeros((len(moments) + 1) * num_items, dtype=torch.float64)
    keys = torch.from_numpy(first * num_items + np.asarray(events.columns[column], dtype=np.int64))
    counts.index_add_(0, keys, torch.ones(len(keys), dtype=torch.float64))
    until = counts.view(-1, num_items)[:-1].cumsum(0)
    return until.expand(len(now), -1) if len(moments) == 1 else until[torch.from_numpy(which)]


def _dense(history: Shards, num_items: int, column: str, distinct: bool) -> Tensor:
    """How often ``(clients, items)``, or whether, each client took each item."""
    keys = torch.from_numpy(history.owners() * num_items + np.asarray(history.columns[column]))
    out = torch.zeros(history.num_clients * num_items, dtype=torch.float64)
    if distinct:
        out[keys] = 1.0
    else:
        out.index_add_(0, keys, torch.ones(len(keys), dtype=torch.float64))
    return out.view(history.num_clients, num_items)
