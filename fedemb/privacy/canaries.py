"""A task whose clients are canaries: what each one sends is known, so that what is released tells what was done to it.

Every canary has a row of its own in each table, and an entry of each dense parameter, that nobody else uses. One that
takes part pushes these into a random direction, far beyond the clip norm; one that does not names a row that is
nobody's and pushes nothing.

Reference: Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar, "One-shot Empirical Privacy Estimation for Federated
Learning", ICLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedemb.data.shards import Shards, offsets_of
from fedemb.data.vocabulary import Vocabulary
from fedemb.manifolds import Euclidean
from fedemb.types import Batch, Dataset, Dense, Exclusion, Table

PUSH = 100.0  # clip norms


@dataclass(frozen=True)
class CanaryTask:
    """Pushes each canary's own rows and dense entries into its direction.

    Attributes:
        tables: One for each shared table of the task that is audited, as wide as that one, a row for each canary and
            one that is nobody's.
        dense: One of an entry for each canary, if that task has any.
        directions: Per table ``(canaries, dim)``, per dense parameter ``(canaries,)``; of length 1 all together.
        length: Of a canary's gradient.
    """

    tables: tuple[Table, ...]
    dense: tuple[Dense, ...]
    directions: Mapping[str, Tensor]
    length: float
    num_draws: int = 0
    exclusion: Exclusion | None = None

    def examples(self, shards: Shards) -> Shards:
        return shards

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        return batch

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        nobody = torch.full_like(batch["canary"], self.tables[0].num_rows - 1)
        rows = torch.where(batch["included"], batch["canary"], nobody)[:, None]
        return {table.name: rows for table in self.tables}

    def loss(self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch) -> Tensor:
        along = torch.zeros(len(batch["canary"]), dtype=torch.float64)
        for table in self.tables:
            own = self.directions[table.name][batch["canary"]]
            along = along + (vectors[table.name][:, 0] * own.to(vectors[table.name])).sum(1)
        for part in self.dense:
            own = dense[part.name].gather(1, batch["canary"][:, None])[:, 0]
            along = along + own * self.directions[part.name][batch["canary"]]
        return -self.length * along * batch["included"]


def canary_task(
    tables: tuple[Table, ...], dense: tuple[Dense, ...], canaries: int, length: float, seed: int
) -> CanaryTask:
    """The task for canaries among the tables of another one, with random directions."""
    rng = np.random.default_rng(seed)
    specs = tuple(
        Table(table.name, canaries + 1, table.dim, Euclidean(torch.float64), 0.0, entity="canary")
        for table in tables
    )
    parts = (Dense("canary", (canaries,)),) if dense else ()
    raw = {table.name: rng.normal(size=(canaries, table.dim)) for table in specs}
    raw |= {part.name: rng.normal(size=(canaries, 1)) for part in parts}
    # Each part has the same share of the direction's length: a bound on each by itself lets a canary through at the
    # root of how many there are, whatever their sizes.
    share = 1 / math.sqrt(len(raw))
    unit = {
        name: torch.from_numpy(share * value / np.linalg.norm(value, axis=1, keepdims=True))
        for name, value in raw.items()
    }
    directions = {name: value[:, 0] if name == "canary" else value for name, value in unit.items()}
    return CanaryTask(specs, parts, directions, length)


def canary_data(included: npt.NDArray[np.bool_], num_clients: int) -> Dataset:
    """Canaries at clients, as evenly as they get; one each, or many where it is examples that are protected."""
    canaries = len(included)
    columns = {"canary": np.arange(canaries, dtype=np.int64), "included": included}
    sizes = np.full(num_clients, canaries // num_clients, dtype=np.int64)
    sizes[: canaries % num_clients] += 1
    names = Vocabulary.of([f"canary {number}" for number in range(canaries)] + ["nobody"])
    return Dataset(train=Shards(columns, offsets_of(sizes)), vocabularies={"canary": names})
