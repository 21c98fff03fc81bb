"""How similar Gaussian rows are, and between which bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedemb.gaussian import split

_NUM_DRAWS = 1024
_BLOCK_NUMBERS = 1 << 24  # of draws that are held at a time


@dataclass(frozen=True)
class Similarity:
    """Cosines of pairs of rows: the expected one, and an interval that holds it with the chosen probability.

    Attributes:
        value, low, high: ``(pairs,)``.
    """

    value: Tensor
    low: Tensor
    high: Tensor


def similarity(first: Tensor, second: Tensor, level: float = 0.9, num_draws: int = _NUM_DRAWS) -> Similarity:
    """Cosines of Gaussian rows, from draws of both: the same ones in every call.

    A row that nobody has seen may point anywhere: its cosines are about 0, and their intervals wide.

    Args:
        first, second: ``(pairs, dim)`` means and precisions.
        level: Probability that an interval holds the cosine.
        num_draws: Of every pair; the bounds are off by about ``1 / sqrt(num_draws)`` of their distance.

    Raises:
        ValueError: If ``level`` is not between 0 and 1.

    >>> sure, unsure = torch.tensor([[1.0, 0.0, 1e6, 1e6]]), torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    >>> bool(similarity(sure, sure).low > 0.99), bool(similarity(sure, unsure).low < 0.2)
    (True, True)
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}; 0.9 is usual")
    if not len(first):
        return Similarity(*first.new_zeros((3, 0)))
    shape = (num_draws, 1, first.shape[1] // 2)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(shape, dtype=first.dtype, generator=generator).to(first.device) for _ in range(2)]
    size = max(1, _BLOCK_NUMBERS // max(1, noise[0].numel()))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=first.dtype, device=first.device)
    found = []
    for rows in zip(torch.split(first, size), torch.split(second, size), strict=True):
        own, other = (_drawn(row, n) for row, n in zip(rows, noise, strict=True))
        cosine = torch.cosine_similarity(own, other, dim=-1)
        found.append(torch.cat((cosine.mean(0, keepdim=True), torch.quantile(cosine, ends, dim=0))))
    value, low, high = torch.cat(found, 1)
    return Similarity(value, low, high)


def _drawn(rows: Tensor, noise: Tensor) -> Tensor:
    mean, precision = split(rows)
    return mean + noise * precision.rsqrt()
