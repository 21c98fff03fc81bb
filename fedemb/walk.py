"""A random-walk prior along the slices of time of an entity: what nobody saw lies between what somebody did.

The rows of an entity at slices 1, 2, ... S are ``x_1 .. x_S``. The prior says that each is the one before plus
noise, and the first is its base (zero) plus noise: ``p(x) ~ exp(-k/2 (|x_1|^2 + sum |x_s - x_(s-1)|^2))``, k
its precision. After the server's step has put the rows at ``m``, they become

    argmin_x  sum_s w_s |x_s - m_s|^2 + k (|x_1|^2 + sum_s |x_s - x_(s-1)|^2)

which is one tridiagonal system per entity and coordinate. ``w_s`` is how much a step at this slice stands on. Under
sums, in which every client pushes as far as it has examples, 1 for a row that was ever touched; under means the
examples (or holders) that a round has there on average. A row that nobody ever touched, not even as a drawn negative,
has ``w_s = 0``: it lies between its neighbours, or where the nearest one is.

With plain steps (``server.optimizer=sgd``) the rows come to rest where ``w_s step_s = k (L x)_s``: at the maximum of
likelihood plus prior. An adaptive optimiser's steps are of another size than gradients are, so that k is then a setting
to be tuned and not the precision of a model.

Reference: Rue, Held, "Gaussian Markov Random Fields", 2005, section 3.3.1 (first-order random walk); for
embeddings Bamler, Mandt, "Dynamic Word Embeddings", ICML 2017, eq. 3. The solver is the Thomas algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedemb.types import Table


def smoothed(points: Tensor, weights: Tensor, precision: float) -> Tensor:
    """The rows that data and prior agree on ``(entities, slices, coordinates)``.

    Args:
        points: Where the data want them, same shape.
        weights: ``(entities, slices)`` how much each of these counts, 0 or more.
        precision: Of the prior; 0 leaves what has a weight where it is, and puts the rest at zero.

    >>> one = torch.tensor([[[1.0], [0.0], [3.0]]])
    >>> smoothed(one, torch.tensor([[1e6, 0.0, 1e6]]), 1.0).flatten().round(decimals=3).tolist()
    [1.0, 2.0, 3.0]
    """
    if precision == 0:
        return points * (weights > 0)[..., None]
    num_slices = points.shape[1]
    neighbours = torch.full((num_slices,), 2.0, dtype=points.dtype, device=points.device)
    neighbours[-1] = 1.0  # the last has none after it; the first has its base before it
    diagonal = weights + precision * neighbours
    right = weights[..., None] * points
    upper, solved = torch.empty_like(weights), torch.empty_like(points)
    upper[:, 0] = precision / diagonal[:, 0]
    solved[:, 0] = right[:, 0] / diagonal[:, 0, None]
    for s in range(1, num_slices):
        pivot = diagonal[:, s] - precision * upper[:, s - 1]
        upper[:, s] = precision / pivot
        solved[:, s] = (right[:, s] + precision * solved[:, s - 1]) / pivot[:, None]
    for s in range(num_slices - 2, -1, -1):
        solved[:, s] += upper[:, s, None] * solved[:, s + 1]
    return solved


def smooth_(spec: Table, table: Tensor, rows: Tensor, weights: Tensor) -> None:
    """Smooths, in place, all slices of the entities that these rows belong to.

    Args:
        spec: A Euclidean table with ``num_slices`` rows for each entity.
        table: Its rows.
        rows: ``(touched,)`` rows that moved.
        weights: ``(num_rows,)`` how much each row stands on.
    """
    entities = torch.unique(rows // spec.num_slices)
    whole = table.view(-1, spec.num_slices, table.shape[1])
    counted = weights.view(-1, spec.num_slices)[entities].to(table)
    whole[entities] = smoothed(whole[entities], counted, spec.walk)


@dataclass
class Evidence:
    """What the rows of every table stand on.

    Attributes:
        seen: Per table ``(num_rows + 1,)``: the weights of all rounds added up, of sums 1 for every round in which a
            row was touched; last the number of rounds.
    """

    seen: dict[str, Tensor] = field(default_factory=dict)

    def of(self, spec: Table, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Weights ``(num_rows,)`` after a round in which these rows moved.

        Args:
            spec: Their table.
            rows: ``(touched,)``.
            weights: ``(touched,)`` of means; None: the round made sums.
        """
        if spec.name not in self.seen:
            self.seen[spec.name] = torch.zeros(spec.num_rows + 1, device=rows.device)
        seen = self.seen[spec.name]
        seen[rows] += 1.0 if weights is None else weights.to(seen)
        seen[-1] += 1
        return (seen[:-1] > 0).to(seen) if weights is None else seen[:-1] / seen[-1]
