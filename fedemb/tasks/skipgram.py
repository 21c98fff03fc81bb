"""Skip-gram with negative sampling: words, items, or whatever stands in sequences or pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from fedemb.data.shards import Shards, group_by_client
from fedemb.errors import SettingError
from fedemb.manifolds import Euclidean
from fedemb.tasks.noise import ids_from_cdf, keep_probability, noise_cdf
from fedemb.types import Batch, Dataset, Dense, Exclusion, Int64, Table

WITHIN = ("session", "history")
SCORES = ("cosine", "softmax")
_BLOCK_ITEMS = 512


def windows(shards: Shards, window: int, within: str = "session") -> Shards:
    """Pairs of neighbours, in both directions.

    Args:
        shards: Column ``item``, in the order of time; ``session`` where sequences have parts.
        window: How many neighbours to either side.
        within: ``session``: all distances up to ``window``, never across sessions. ``history``: the distances
            1, 2, 4, ... 2 ** (window - 1), so that a few pairs reach from one session into others.

    Returns:
        Columns ``left``, ``right`` and ``label`` (all 1).
    """
    item = np.asarray(shards.columns["item"])
    client = shards.owners()
    session = shards.columns.get("session") if within == "session" else None
    owner = shards.columns.get("owner")
    lefts, rights = [], []
    for step in range(window):
        distance = step + 1 if within == "session" else 1 << step
        near = client[:-distance] == client[distance:]
        if session is not None:
            near &= session[:-distance] == session[distance:]
        if owner is not None:
            near &= owner[:-distance] == owner[distance:]
        first = np.flatnonzero(near)
        lefts += [first, first + distance]
        rights += [first + distance, first]
    left, right = np.concatenate(lefts), np.concatenate(rights)
    columns = {"left": item[left], "right": item[right], "label": np.ones(len(left), dtype=np.float32)}
    return group_by_client(columns, client[left], shards.num_clients)


@dataclass(frozen=True)
class Skipgram:
    """Scores what stands together above what is drawn from the noise distribution.

    Loss of an example (l, r, y): ``softplus(s) - y s`` with ``s = <l, r>``, plus ``softplus(<l, n>)`` for
    each negative n where y = 1. With ``tied=True`` and ``negatives=0`` this is logistic factorisation over one table.

    Attributes:
        num_items: Height of the table of left sides.
        cdf: ``(rows,)`` cumulative noise distribution of right sides.
        keep: Probability ``(num_items,)`` that a left and ``(rows,)`` that a right side is used; None for all.
        dim: Dimensions.
        negatives: Draws from the noise distribution per example and epoch.
        tied: One table for both sides.
        window: Neighbours to either side in a sequence.
        num_right: Height of the table of right sides, if it is another vocabulary than the left one.
        recent: How many of a client's latest items make up its profile when items are ranked for it; 0 for all.
        score: How items are ranked: ``cosine`` of an item with the mean of the profile's unit vectors (alike), or
            ``softmax``: how often an item is expected beside those of the profile, the sum over them of
            ``softmax(<i, context>)``. With uniform noise that counts popularity in, as the ranking of next items wants.
        within: ``session`` or ``history``, see ``windows``.

    Reference: Mikolov et al., NeurIPS 2013, eq. (4); for items: Barkan, Koenigstein, "Item2Vec", 2016.
    """

    num_items: int
    cdf: Tensor
    keep: tuple[Tensor, Tensor] | None
    dim: int
    negatives: int
    tied: bool
    window: int
    recent: int = 0
    num_right: int | None = None
    score: str = "cosine"
    within: str = "session"

    @staticmethod
    def build(
        dataset: Dataset,
        dim: int,
        negatives: int,
        tied: bool,
        window: int,
        noise_power: float,
        subsample: float,
        recent: int,
        score: str = "cosine",
        within: str = "session",
    ) -> Skipgram:
        """The task for these data.

        Raises:
            SettingError: If the data are neither sequences nor pairs, or a setting is out of range.
        """
        columns = set(dataset.train.columns)
        if not ({"left", "right"} <= columns or "item" in columns):
            raise SettingError("task=skipgram needs sequences or pairs: use data=interactions, text or pairs")
        for name, value, low in (
            ("dim", dim, 1), ("negatives", negatives, 0), ("window", window, 1), ("recent", recent, 0),
        ):  # fmt: skip
            if value < low:
                raise SettingError(f"task.{name} must be at least {low}, got {value}")
        for name, word, words in (("score", score, SCORES), ("within", within, WITHIN)):
            if word not in words:
                raise SettingError(f"task.{name} must be one of {', '.join(words)}, got {word!r}")
        if subsample < 0:
            raise SettingError(f"task.subsample must be at least 0 (0: use everything), got {subsample}")
        left, right = (
            dataset.vocabularies[dataset.entity_of.get(side, "item")] for side in ("left", "right")
        )
        if tied and left is not right:
            raise SettingError(
                "task.tied=true needs one vocabulary for both sides: set data.tied=true or task.tied=false"
            )
        keeps = keep_probability(left, subsample), keep_probability(right, subsample)
        return Skipgram(
            len(left),
            noise_cdf(right, noise_power) if negatives else torch.zeros(0, dtype=torch.float64),
            None if keeps[0] is None or keeps[1] is None else (keeps[0], keeps[1]),
            dim,
            negatives,
            tied,
            window,
            recent,
            None if left is right else len(right),
            score,
            within,
        )

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        item = Table("item", self.num_items, self.dim, Euclidean(), 0.5 / self.dim)
        if self.tied:
            return (Table("item", self.num_items, self.dim, Euclidean(), self.dim**-0.5),)
        if self.num_right is None:
            return item, Table("context", self.num_items, self.dim, Euclidean(), 0.0)
        left = Table("left", self.num_items, self.dim, Euclidean(), 0.5 / self.dim, entity="left")
        return left, Table("right", self.num_right, self.dim, Euclidean(), 0.0, entity="right")

    @property
    def dense(self) -> tuple[Dense, ...]:
        return ()

    @property
    def num_draws(self) -> int:
        return self.negatives + (0 if self.keep is None else 2)

    @property
    def exclusion(self) -> Exclusion | None:
        return None

    def examples(self, shards: Shards) -> Shards:
        return shards if "left" in shards.columns else windows(shards, self.window, self.within)

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        out = dict(batch)
        if self.negatives:
            out["negatives"] = ids_from_cdf(uniforms[:, : self.negatives].contiguous(), self.cdf)
        if self.keep is not None:
            left, right = self.keep[0][batch["left"]], self.keep[1][batch["right"]]
            out["keep"] = (uniforms[:, -2] < left) & (uniforms[:, -1] < right)
        return out

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        left, right = batch["left"][:, None], batch["right"][:, None]
        if self.negatives:
            right = torch.cat((right, batch["negatives"]), dim=1)
        if self.tied:
            return {"item": torch.cat((left, right), dim=1)}
        first, second = self.tables
        return {first.name: left, second.name: right}

    def loss(self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch) -> Tensor:
        first = vectors[self.tables[0].name]
        if self.tied:
            left, right = torch.split(first, [1, first.shape[1] - 1], dim=1)
        else:
            left, right = first, vectors[self.tables[1].name]
        scores = (left * right).sum(-1) if right.shape[1] == 1 else torch.einsum("nod,nkd->nk", left, right)
        label = batch["label"]
        losses = softplus(scores)
        total = losses[:, 0] - label * scores[:, 0]
        if not self.negatives:
            return total
        true = (batch["negatives"] == batch["right"][:, None]) | (label <= 0)[:, None]
        return total + losses[:, 1:].masked_fill(true, 0.0).sum(1)

    @property
    def catalogue(self) -> str:
        return "item"

    def scores(
        self,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        history: Shards,
        now: Int64 | None = None,
    ) -> Tensor:
        """Scores ``(clients, items)`` by what each client took last."""
        item = torch.from_numpy(np.asarray(history.columns["item"], dtype=np.int64))
        client = torch.from_numpy(history.owners())
        if self.recent:
            from_end = np.repeat(history.offsets[1:], history.sizes) - np.arange(history.num_examples)
            latest = torch.from_numpy(np.flatnonzero(from_end <= self.recent))
            item, client = item[latest], client[latest]
        vectors = tables["item"]
        unique, at = torch.unique(item, return_inverse=True)
        taken = vectors.new_zeros((history.num_clients, len(unique)))
        taken.index_put_(
            (client.to(vectors.device), at.to(vectors.device)), vectors.new_ones(()), accumulate=True
        )
        unique = unique.to(vectors.device)
        if self.score == "cosine":
            unit = normalize(vectors, dim=1)
            return normalize(taken @ unit[unique], dim=1) @ unit.T
        scores, context = (
            vectors.new_zeros((history.num_clients, self.num_items)),
            tables[self.tables[-1].name],
        )
        for start in range(0, len(unique), _BLOCK_ITEMS):
            block = slice(start, start + _BLOCK_ITEMS)
            scores.addmm_(taken[:, block], torch.softmax(vectors[unique[block]] @ context.T, dim=1))
        return scores
