"""Matrix factorisation of implicit feedback: items are shared, a client's own vector never leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.manifolds import Euclidean
from fedemb.tasks.noise import ids_from_cdf, noise_cdf
from fedemb.types import Batch, Dataset, Dense, Exclusion, Int64, Table

LOSSES = ("bpr", "logistic")


@dataclass(frozen=True)
class Factorization:
    """Ranks a client's items above items that it has not taken, score ``<client, item> + bias(item)``.

    Loss of an example with score s and negatives with scores n: ``bpr`` is the mean of
    ``softplus(n - s)``, ``logistic`` is ``softplus(-s)`` plus the sum of ``softplus(n)``.

    Attributes:
        num_items: Height of the item tables.
        cdf: ``(num_items,)`` cumulative distribution of negatives.
        dim: Dimensions.
        negatives: Draws per example and epoch.
        objective: ``bpr`` or ``logistic``.
        bias: Whether items have a bias (their popularity).
        exclude_known: Whether draws that are in the client's training set do not count; else all but the example's own.

    Reference: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, section 4;
    Ammad-ud-din et al., "Federated Collaborative Filtering", 2019 (client factors stay at home).
    """

    num_items: int
    cdf: Tensor
    dim: int
    negatives: int
    objective: str
    bias: bool
    init_scale: float
    exclude_known: bool = True

    @staticmethod
    def build(
        dataset: Dataset,
        dim: int,
        negatives: int,
        objective: str,
        bias: bool,
        noise_power: float,
        init_scale: float,
        exclude_known: bool = True,
    ) -> Factorization:
        """The task for these data.

        Raises:
            SettingError: If the data are no interactions, or a setting is out of range.
        """
        if "item" not in dataset.train.columns:
            raise SettingError("task=factorization needs who took which item: use data=interactions")
        if objective not in LOSSES:
            raise SettingError(f"task.objective must be one of {', '.join(LOSSES)}, got {objective!r}")
        for name, value in (("dim", dim), ("negatives", negatives)):
            if value < 1:
                raise SettingError(f"task.{name} must be at least 1, got {value}")
        if not init_scale > 0:
            raise SettingError(f"task.init_scale must be > 0, got {init_scale}; 0.1 is usual")
        vocabulary = dataset.vocabularies["item"]
        cdf = noise_cdf(vocabulary, noise_power)
        return Factorization(len(vocabulary), cdf, dim, negatives, objective, bias, init_scale, exclude_known)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        tables = (
            Table("item", self.num_items, self.dim, Euclidean(), self.init_scale),
            Table("client", 1, self.dim, Euclidean(), self.init_scale, shared=False, entity="client"),
        )
        return (*tables, Table("bias", self.num_items, 1, Euclidean(), 0.0)) if self.bias else tables

    @property
    def dense(self) -> tuple[Dense, ...]:
        return ()

    @property
    def num_draws(self) -> int:
        return self.negatives

    @property
    def exclusion(self) -> Exclusion | None:
        return Exclusion(None, "item", "negatives") if self.exclude_known else None

    def examples(self, shards: Shards) -> Shards:
        names = [name for name in ("item", "weight", "owner") if name in shards.columns]
        return Shards({name: shards.columns[name] for name in names}, shards.offsets)

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        return {**batch, "negatives": ids_from_cdf(uniforms, self.cdf)}

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        items = torch.cat((batch["item"][:, None], batch["negatives"]), dim=1)
        ids = {"item": items, "client": torch.zeros_like(items[:, :1])}
        return {**ids, "bias": items} if self.bias else ids

    def loss(self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch) -> Tensor:
        scores = torch.einsum("nod,nkd->nk", vectors["client"], vectors["item"])
        if self.bias:
            scores = scores + vectors["bias"][..., 0]
        positive, negative = scores[:, :1], scores[:, 1:]
        known = batch["negatives"] == batch["item"][:, None]
        if "known" in batch:
            known = known | batch["known"]
        if self.objective == "bpr":
            counted = (~known).sum(1).clamp_(min=1)
            return softplus(negative - positive).masked_fill(known, 0.0).sum(1) / counted
        return softplus(-positive[:, 0]) + softplus(negative).masked_fill(known, 0.0).sum(1)

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
        scores = personal["client"][:, 0] @ tables["item"].T
        return scores + tables["bias"][:, 0] if self.bias else scores
