"""Tables that readers hold while they change: copy on write, a new version for every window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedemb.gaussian import Gaussian, split
from fedemb.types import Table


@dataclass(frozen=True, eq=False)
class Rows:
    """A table that never changes: most rows as they stand in ``base``, a few newer ones beside it.

    A window's rows go to the few, so a new version costs what was touched since ``base`` was made. When the few
    are so many that copying them costs more than a new base does for its share, they are folded into one.

    Attributes:
        base: ``(num_rows, coordinates)``, shared by many versions.
        newer: ``(few,)`` ascending ids of rows that ``base`` no longer knows.
        values: ``(few, coordinates)``.
    """

    base: Tensor
    newer: Tensor
    values: Tensor

    @staticmethod
    def of(table: Tensor) -> Rows:
        """A table as it stands."""
        return Rows(table, torch.zeros(0, dtype=torch.int64), table[:0])

    def __len__(self) -> int:
        return len(self.base)

    def take(self, ids: Tensor) -> Tensor:
        """Rows ``(ids, coordinates)``."""
        found = self.base.index_select(0, ids)
        if len(self.newer):
            at = torch.searchsorted(self.newer, ids).clamp_(max=len(self.newer) - 1)
            fresh = self.newer[at] == ids
            found[fresh] = self.values[at[fresh]]
        return found

    def replaced(self, rows: Tensor, values: Tensor) -> Rows:
        """The table with these rows instead; this one stays as it is.

        Args:
            rows: ``(touched,)`` ascending, each once.
            values: ``(touched, coordinates)``.
        """
        if not len(rows):
            return self
        union = torch.unique(torch.cat((self.newer, rows)))
        merged = self.values.new_empty((len(union), self.base.shape[1]))
        merged[torch.searchsorted(union, self.newer)] = self.values
        merged[torch.searchsorted(union, rows)] = values
        # Each window copies half of what gathers, and its share of the fold: least at this many.
        if len(union) <= math.sqrt(2 * len(self.base) * len(rows)):
            return Rows(self.base, union, merged)
        base = self.base.clone()
        base[union] = merged
        return Rows.of(base)

    def whole(self) -> Tensor:
        """All rows ``(num_rows, coordinates)``, a copy where any are newer."""
        if not len(self.newer):
            return self.base
        whole = self.base.clone()
        whole[self.newer] = self.values
        return whole


@dataclass(frozen=True, eq=False)
class Version:
    """Everything that one answer is made from; made whole, never changed, swapped by one assignment.

    Attributes:
        number: Windows that were applied since the run ended: 0 is the trained model.
        sequence: The last interaction that it knows.
        tables: Shared tables by name.
        dense: Dense parameters by name.
    """

    number: int
    sequence: int
    tables: Mapping[str, Rows]
    dense: Mapping[str, Tensor]

    @cached_property
    def whole(self) -> dict[str, Tensor]:
        """All tables in full and dense parameters, for what reads more than rows; made once for a version."""
        return {**{name: rows.whole() for name, rows in self.tables.items()}, **self.dense}


@dataclass(frozen=True, eq=False)
class Change:
    """What a window did: rows as they are now, not by how much they moved, so that no rounding parts the copies.

    Attributes:
        number: Of the window.
        sequence: Its last interaction.
        rows: ``(touched,)`` ascending ids per table.
        values: ``(touched, coordinates)`` per table.
        dense: All dense parameters.
    """

    number: int
    sequence: int
    rows: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    dense: Mapping[str, Tensor]

    def applied(self, before: Version) -> Version:
        """The version that follows."""
        tables = dict(before.tables)
        for name, rows in self.rows.items():
            tables[name] = tables[name].replaced(rows, self.values[name])
        return Version(self.number, self.sequence, tables, {**before.dense, **self.dense})


def nearest(version: Version, table: Table, vectors: Tensor | None, point: Tensor, count: int) -> list[Any]:
    """The nearest rows of a point as ``(id, score)``, the nearest first.

    Args:
        version: Where to look.
        table: In which table: in flat space the score is the cosine (more is nearer), in curved space the distance
            (less is nearer). Gaussian rows are compared by their means.
        vectors: ``(num_rows, coordinates)`` instead of the table's own rows, as of another time.
        point: ``(coordinates,)``.
        count: How many.
    """
    rows = version.tables[table.name] if vectors is None else Rows.of(vectors)
    count = min(count, len(rows))
    scores = _scores(table, rows.base, point)
    if len(rows.newer):
        scores[rows.newer] = _scores(table, rows.values, point)
    curved = table.manifold.curvature != 0
    found = torch.topk(scores, count, largest=not curved)
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _scores(table: Table, matrix: Tensor, point: Tensor) -> Tensor:
    if table.manifold.curvature != 0:
        return table.manifold.distance(point, matrix)
    if isinstance(table.manifold, Gaussian):
        matrix, point = split(matrix)[0], split(point)[0]
    lengths = (matrix.norm(dim=1) * point.norm()).clamp_min(torch.finfo(matrix.dtype).tiny)
    cosine: Tensor = torch.mv(matrix, point) / lengths
    return cosine
