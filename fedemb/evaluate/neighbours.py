"""Nearest neighbours among a client's own records: nothing of them leaves it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedemb.types import Int64

_BLOCK = 256  # records that are compared together with all of their clients' records
_DIGITS = 6  # beyond, similarities are alike: the first of them is the nearest


def own_neighbours(vectors: Tensor, offsets: Int64) -> Int64:
    """The record ``(records,)`` of the same client with the highest cosine, not itself; -1 where there is none.

    Args:
        vectors: ``(records, coordinates)`` sorted by client.
        offsets: ``(clients + 1,)``.

    >>> own_neighbours(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [1.0, 0.0]]), np.array([0, 3, 4])).tolist()
    [2, 2, 0, -1]
    """
    unit = normalize(vectors.detach().double(), dim=1)
    starts, ends = np.repeat(offsets[:-1], np.diff(offsets)), np.repeat(offsets[1:], np.diff(offsets))
    found = [np.zeros(0, dtype=np.int64)]
    for begin in range(0, len(unit), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        low, high = int(starts[block][0]), int(ends[block][-1])
        near = torch.round(unit[block] @ unit[low:high].T, decimals=_DIGITS)
        columns = torch.arange(low, high, device=near.device)[None]
        first, last = (torch.from_numpy(c[block]).to(near.device)[:, None] for c in (starts, ends))
        own = torch.arange(begin, begin + len(near), device=near.device)[:, None]
        near.masked_fill_((columns < first) | (columns >= last) | (columns == own), -torch.inf)
        nearest = near.argmax(1) + low  # the first of equal ones
        alone = torch.from_numpy((ends - starts)[block] < 2).to(near.device)
        found.append(nearest.masked_fill(alone, -1).cpu().numpy())
    return np.concatenate(found)
