"""Whether things of one group lie together: each asks for the others of its group among its client's own things."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedemb.types import Int64

_BYTES = 1 << 27


def group_precision(vectors: Tensor, group: Int64, offsets: Int64) -> npt.NDArray[np.float64]:
    """Average precision ``(things,)`` with which each thing finds the others of its group by cosine.

    NaN for things of no group, and those whose client has no other of their group. Ties come in the order of things.

    Args:
        vectors: ``(things, coordinates)`` sorted by client.
        group: ``(things,)``; -1 for none.
        offsets: ``(clients + 1,)``.

    >>> vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.0]])
    >>> group_precision(vectors, np.array([5, 5, 6, 5]), np.array([0, 3, 4])).tolist()
    [1.0, 1.0, nan, nan]
    """
    unit, whose = normalize(vectors.detach().double(), dim=1), torch.from_numpy(np.asarray(group))
    found = np.full(len(unit), np.nan)
    for start, stop in pairwise(offsets.tolist()):
        members = torch.unique(whose[start:stop][whose[start:stop] >= 0], return_counts=True)[1]
        if len(members) and int(members.max()) > 1:
            own = slice(start, stop)
            found[own] = _precision(unit[own], whose[own].to(unit.device))
    return found


def _precision(unit: Tensor, group: Tensor) -> npt.NDArray[np.float64]:
    size, out = len(unit), []
    ranks = torch.arange(1, size, device=unit.device)
    block = max(1, _BYTES // (24 * size))
    for start in range(0, size, block):
        scores = unit[start : start + block] @ unit.T
        here = torch.arange(len(scores), device=unit.device)
        scores[here, here + start] = -torch.inf  # itself comes last
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :-1]
        mine = group[start : start + block, None]
        hits = (group[order] == mine) & (mine >= 0)
        gained = (hits.cumsum(1) / ranks * hits).sum(1)
        out.append((gained / hits.sum(1)).cpu())  # NaN where there is nothing to find
    return torch.cat(out).numpy()
