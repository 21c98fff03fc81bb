"""A random-walk prior along the slices of time of an entity: what nobody saw lies between what somebody did.

The rows of an entity at slices 1, 2, ... S are ``x_1 .. x_S``. The prior says that each is the one before plus
noise, and the first is its base (zero) plus noise: ``p(x) ~ exp(-k/2 (|x_1|^2 + sum |x_s - x_(s-1)|^2))``, k
its precision. After the server's step has put the rows at ``m``, they become

    argmin_x  sum_s w_s |x_s - m_s|^2 + k (|x_1|^2 + sum_s |x_s - x_(s-1)|^2)

which is one tridiagonal system per entity and coordinate. ``w_s`` is how much a step at this slice stands on: 1
for sums, in which every client pushes as far as it has examples; for means the examples (or holders) that a
round has there on average. Then the rows rest where ``w_s step_s = k (L x)_s``: at the maximum of likelihood
plus prior, whatever the number of rounds. A slice that no client ever saw has ``w_s = 0`` under means, and no
step under sums: it interpolates under means; under
sums, whose weights are 1, only in the limit of many rounds.

Reference: Rue, Held, "Gaussian Markov Random Fields", 2005, section 3.3.1 (first-order random walk); for
embeddings Bamler, Mandt, "Dynamic Word Embeddings", ICML 2017, eq. 3. The solver is the Thomas algorithm.
"""

from __future__ import annotations

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


def smooth_(spec: Table, table: Tensor, rows: Tensor, weights: Tensor | None = None) -> None:
    """Smooths, in place, all slices of the entities that these rows belong to.

    Args:
        spec: A Euclidean table with ``num_slices`` rows for each entity.
        table: Its rows.
        rows: ``(touched,)`` rows that moved.
        weights: ``(num_rows,)`` how much each row stands on; None: 1 for all.
    """
    entities = torch.unique(rows // spec.num_slices)
    whole = table.view(-1, spec.num_slices, table.shape[1])
    counted = (
        table.new_ones((len(entities), spec.num_slices))
        if weights is None
        else weights.view(-1, spec.num_slices)[entities]
    )
    whole[entities] = smoothed(whole[entities], counted.to(table), spec.walk)
