"""Ranking the whole catalogue for each client: Recall, NDCG and MRR, ties as their mean."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards, join
from fedemb.errors import SettingError
from fedemb.evaluate.spread import over_clients
from fedemb.types import Dataset, Evaluated, Float, Int64, Recommender

logger = logging.getLogger("fedemb")

BYTES_PER_SCORE = 32  # a score, its sorted copy and what the task needs to compute it


def rank_metrics(
    scores: Tensor,
    relevant: Shards,
    excluded: Shards | None = None,
    ks: Sequence[int] = (10,),
    column: str = "item",
) -> dict[str, Tensor]:
    """Metrics ``(clients,)`` float64 of one ranking per client; NaN where nothing is relevant.

    Each is the expected value over all orders of items with equal scores, so constant scores give
    what chance gives. An item that is relevant or excluded several times counts once.

    Args:
        scores: ``(clients, items)``; the lowest rank is for NaN.
        relevant: Per client, ids of the items that should come first.
        excluded: Per client, ids of items that are not ranked, nor relevant.
        ks: Cut-offs; ``recall@k`` is the share of all relevant items among the first k.
        column: Of ids in the shards.

    Returns:
        ``ndcg@k``, ``recall@k`` per k, and ``mrr``: one over the rank of the first relevant item.

    Raises:
        ValueError: If ids or shapes do not fit.

    Reference: Jarvelin, Kekalainen, "Cumulated Gain-Based Evaluation of IR Techniques", TOIS 2002, with
    discount ``1 / log2(rank + 1)`` and gain 0 or 1; McSherry, Najork, "Computing Information Retrieval
    Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008, for the expected values.

    >>> one = Shards({"item": np.array([2])}, np.array([0, 1]))
    >>> {k: round(float(v), 3) for k, v in rank_metrics(torch.tensor([[3., 1., 2.]]), one).items()}
    {'ndcg@10': 0.631, 'recall@10': 1.0, 'mrr': 0.5}
    """
    scores = _finite(scores)
    return _rank(scores, _ascending(scores), relevant, excluded, ks, column)


def _rank(
    scores: Tensor,
    ascending: Tensor,
    relevant: Shards,
    excluded: Shards | None,
    ks: Sequence[int],
    column: str,
) -> dict[str, Tensor]:
    num_clients, num_items = scores.shape
    if relevant.num_clients != num_clients:
        raise ValueError(
            f"relevant items must be given for {num_clients} clients, got {relevant.num_clients}"
        )
    pairs = _pairs(relevant, num_items, column)
    out_of = None if excluded is None else _pairs(excluded, num_items, column)
    if out_of is not None:
        pairs = np.setdiff1d(pairs, out_of, assume_unique=True)
    owner, own_scores = _of_pairs(scores, pairs)
    above, level = _places(ascending, owner, own_scores)
    if out_of is not None and len(out_of):
        rows, gone = _of_pairs(scores, out_of)
        without = _places(_ascending(_padded(gone, rows, num_clients, -torch.inf)), owner, own_scores)
        above, level = above - without[0], level - without[1]
    return _expected(owner, above, level, num_clients, ks)


def _finite(scores: Tensor) -> Tensor:
    """NaN and infinities as the lowest and highest numbers that there are."""
    lowest = torch.finfo(scores.dtype).min
    return torch.nan_to_num(scores, nan=lowest, neginf=lowest)


def _pairs(shards: Shards, num_items: int, column: str) -> Int64:
    """Different ``client * num_items + item``, ascending."""
    items = np.asarray(shards.columns[column], dtype=np.int64)
    if len(items) and not (items.min() >= 0 and items.max() < num_items):
        raise ValueError(f"items must be in [0, {num_items}), got {items.min()} to {items.max()}")
    return np.unique(shards.owners() * num_items + items)


def _of_pairs(scores: Tensor, pairs: Int64) -> tuple[Tensor, Tensor]:
    """Client and score of each pair."""
    index = torch.from_numpy(pairs).to(scores.device)
    return index // scores.shape[1], scores.reshape(-1)[index]


def _ascending(scores: Tensor) -> Tensor:
    """Sorted rows; NumPy sorts floats by vector instructions, torch on a CPU does not."""
    if scores.device.type == "cpu":
        return torch.from_numpy(np.sort(scores.numpy(), axis=1))
    return scores.sort(dim=1).values


def _padded(values: Tensor, owner: Tensor, num_clients: int, fill: float) -> Tensor:
    """``(clients, longest)`` from values sorted by owner."""
    sizes = torch.bincount(owner, minlength=num_clients)
    position = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner]
    out = values.new_full((num_clients, int(sizes.max()) if len(owner) else 0), fill)
    out[owner, position] = values
    return out


def _places(ascending: Tensor, owner: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """For each value: how many scores of its client are above it, and how many are equal."""
    num_clients, num_scores = ascending.shape
    asked = _padded(values, owner, num_clients, torch.inf)
    sizes = torch.bincount(owner, minlength=num_clients)
    position = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner]
    below = torch.searchsorted(ascending, asked)[owner, position]
    up_to = torch.searchsorted(ascending, asked, right=True)[owner, position]
    return num_scores - up_to, up_to - below


def _expected(
    owner: Tensor, above: Tensor, level: Tensor, num_clients: int, ks: Sequence[int]
) -> dict[str, Tensor]:
    """Expected metrics from the place of each relevant item.

    Args:
        owner: ``(relevant,)`` client, ascending.
        above: ``(relevant,)`` items with a higher score.
        level: ``(relevant,)`` items with the same score, itself included.
        num_clients: Of the result.
        ks: Cut-offs.
    """
    num_relevant = torch.bincount(owner, minlength=num_clients)
    nothing = num_relevant == 0

    def per_client(gains: Tensor) -> Tensor:
        total = torch.zeros(num_clients, dtype=torch.float64, device=owner.device)
        return total.index_add_(0, owner, gains).masked_fill_(nothing, torch.nan)

    metrics = {}
    for k in ks:
        ranks = torch.arange(k + 1, dtype=torch.float64, device=owner.device)
        gained = torch.cat((ranks[:1], (1 / torch.log2(ranks[1:] + 1)).cumsum(0)))
        gain = (gained[(above + level).clamp(max=k)] - gained[above.clamp(max=k)]) / level
        metrics[f"ndcg@{k}"] = per_client(gain) / gained[num_relevant.clamp(max=k)]
        share = (k - above).clamp(min=0).minimum(level) / level.double()
        metrics[f"recall@{k}"] = per_client(share) / num_relevant
    metrics["mrr"] = _reciprocal_rank(owner, above, level, num_clients).masked_fill_(nothing, torch.nan)
    return metrics


def _reciprocal_rank(owner: Tensor, above: Tensor, level: Tensor, num_clients: int) -> Tensor:
    """Expected value of one over the rank of the first relevant item ``(clients,)``.

    Of m items with the best relevant score, r relevant, the first relevant one is the j-th with
    probability ``C(m - j, r - 1) / C(m, r)``.
    """
    best = torch.full((num_clients,), torch.iinfo(torch.int64).max, device=owner.device)
    best.scatter_reduce_(0, owner, above, "amin")
    first = above == best[owner]
    r = torch.bincount(owner[first], minlength=num_clients)
    m = torch.ones_like(r).scatter_(0, owner[first], level[first])
    out = 1 / (best.double() + 1)
    tied = torch.nonzero(m > 1)[:, 0]
    for clients in torch.split(tied, max(1, (1 << 22) // int(m.max()))) if len(tied) else ():
        size, hits, rank = (x[clients, None].double() for x in (m, r, best))
        j = torch.arange(1, int(m[clients].max()) + 1, device=owner.device)
        rest = (size - j).clamp(min=0)
        log_share = _log_binomial(rest, hits - 1) - _log_binomial(size, hits)
        chance = torch.where(rest >= hits - 1, log_share.exp(), 0.0).masked_fill(j > size, 0.0)
        out[clients] = (chance / (rank + j)).sum(1)
    return out


def _log_binomial(n: Tensor, k: Tensor) -> Tensor:
    k = torch.minimum(k, n)
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def history_before(dataset: Dataset, split: str) -> tuple[Shards, ...]:
    """What is known of the clients when a split begins: training, and for ``test`` also validation.

    Raises:
        SettingError: If there is no such split.
    """
    if split not in dataset.held_out:
        there = ", ".join(dataset.held_out) or "none"
        raise SettingError(
            f"a split must be held out by the data to be ranked, got {split!r}; there are {there}"
        )
    between = [name for name in ("validation",) if name in dataset.held_out and split == "test"]
    past = dataset.train if dataset.past is None else dataset.past
    return (past, *(dataset.held_out[name] for name in between))


def asked_at(dataset: Dataset, split: str) -> Int64 | None:
    """When each client is asked ``(clients,)``, in epoch seconds: as its split begins; None without times.

    Where one point in time divides all clients' events that is this point, however late a client's first event
    comes; else (``data.leave_last``) the time of its own first event in the split.
    """
    split_times, history = dataset.held_out[split].columns.get("time"), history_before(dataset, split)
    if split_times is None or any("time" not in shards.columns for shards in history) or not len(split_times):
        return None
    first = int(split_times.min())
    num_clients = dataset.train.num_clients
    if all(int(shards.columns["time"].max(initial=first)) <= first for shards in history):
        return np.full(num_clients, first, dtype=np.int64)
    own = np.full(num_clients, np.iinfo(np.int64).max, dtype=np.int64)
    np.minimum.at(own, dataset.held_out[split].owners(), split_times)
    return own


@dataclass(frozen=True)
class Ranking:
    """How well a task ranks what clients took next; mean over clients.

    Counted are clients with a history and something in the split. A client's relevant items are those
    of the split, each once; ranked is the whole catalogue, known items included. For the metrics
    ``new_...`` the client's history is left out on both sides: relevant are items that it never took,
    ranked are all items that it never took.

    Attributes:
        task: What ranks.
        history: What is known of each client, by client id; several shards are read one after another.
        test: What each client took next, by client id.
        ks: Cut-offs.
        split: Names the metrics: those of another split than ``test`` begin with its name.
        now: ``(clients,)`` when each client is asked, by client id; see ``asked_at``.
        also: More metrics ``(clients,)`` of the same scores, given these, what comes next, the history, and the ids.
        memory_bytes: Budget for the scores of the clients that are ranked together.
    """

    task: Recommender
    history: Shards | tuple[Shards, ...]
    test: Shards
    ks: tuple[int, ...] = (10,)
    split: str = "test"
    now: Int64 | None = None
    also: Callable[[Tensor, Shards, Shards, Int64], Mapping[str, Tensor]] | None = None
    memory_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise SettingError(f"cut-offs of a ranking must be 1 or more, got {list(self.ks)}")
        for shards in self.histories:
            if shards.num_clients != self.test.num_clients:
                raise ValueError(
                    f"history must have {self.test.num_clients} clients like test, got {shards.num_clients}"
                )

    @property
    def on_clients(self) -> bool:
        return True

    @property
    def histories(self) -> tuple[Shards, ...]:
        """What is known of each client, in order of time."""
        return (self.history,) if isinstance(self.history, Shards) else self.history

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """Metrics of these clients.

        Args:
            tables: Shared tables.
            personal: ``(clients, num_rows, coordinates)`` per personal table, in the order of ``clients``.
            clients: ``(clients,)`` ids; those without history or without test events get NaN.
        """
        known = sum(shards.sizes[clients] for shards in self.histories)
        chosen = np.flatnonzero((np.asarray(known) > 0) & (self.test.sizes[clients] > 0))
        per_client: dict[str, Float] = {}
        start, block, broken = 0, 1, 0
        while start < len(chosen) or not per_client:  # the first client tells how large the catalogue is
            at = chosen[start : start + block]
            values, num_items, num_broken = self._block(tables, personal, clients, at)
            for name, value in values.items():
                column = per_client.setdefault(name, np.full(len(clients), np.nan))
                column[at] = value.numpy(force=True)
            broken += num_broken
            start, block = start + len(at), max(1, self.memory_bytes // (BYTES_PER_SCORE * num_items))
        if broken:
            logger.warning("ranking: the scores of %d clients are not numbers, and rank last", broken)
        return Evaluated(over_clients(per_client), per_client, clients)

    def _block(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64, at: Int64
    ) -> tuple[dict[str, Tensor], int, int]:
        history = join([shards.take(clients[at]) for shards in self.histories])
        mine = {name: rows[torch.from_numpy(at).to(rows.device)] for name, rows in personal.items()}
        now = None if self.now is None else self.now[clients[at]]
        raw = self.task.scores(tables, mine, history, now).detach()
        scores = _finite(raw)
        ascending, test = _ascending(scores), self.test.take(clients[at])
        values = _rank(scores, ascending, test, None, self.ks, self.task.catalogue)
        new = _rank(scores, ascending, test, history, self.ks, self.task.catalogue)
        prefix = "" if self.split == "test" else f"{self.split}_"
        named = {f"{prefix}{name}": value for name, value in values.items()}
        named |= {f"{prefix}new_{name}": value for name, value in new.items()}
        if self.also is not None:
            more = self.also(scores, test, history, clients[at])
            named |= {f"{prefix}{name}": value for name, value in more.items()}
        return named, scores.shape[1], int(raw.isnan().any(1).sum())
