"""Where negatives are drawn from: a public distribution over a vocabulary, never the batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedemb.data.vocabulary import Vocabulary


def uniform_ids(uniforms: Tensor, num_rows: int) -> Tensor:
    """Ids in ``range(num_rows)`` from numbers in [0, 1)."""
    return (uniforms * num_rows).long().clamp_(max=num_rows - 1)


def noise_cdf(vocabulary: Vocabulary, power: float) -> Tensor:
    """Cumulative distribution ``(size,)`` of draws proportional to ``count ** power``.

    Reference: Mikolov et al., "Distributed Representations of Words and Phrases and their
    Compositionality", NeurIPS 2013, section 2.2 (power 0.75).
    """
    counts = np.ones(len(vocabulary)) if vocabulary.counts is None else vocabulary.counts
    weights = np.asarray(counts, dtype=np.float64) ** power
    total = weights.sum()
    if not total > 0:
        weights, total = np.ones(len(vocabulary)), float(len(vocabulary))
    return torch.from_numpy(np.cumsum(weights) / total)


def ids_from_cdf(uniforms: Tensor, cdf: Tensor) -> Tensor:
    """Ids distributed by ``cdf`` from numbers in [0, 1)."""
    return torch.searchsorted(cdf, uniforms, right=True).clamp_(max=len(cdf) - 1)


def keep_probability(vocabulary: Vocabulary, threshold: float) -> Tensor | None:
    """Probability ``(size,)`` that an occurrence of each entity survives subsampling; None for all of them.

    Reference: word2vec's code (the paper's eq. 5 in the form that the authors ran):
    ``sqrt(t / f) + t / f`` for relative frequency ``f``.
    """
    if threshold <= 0 or vocabulary.counts is None or not vocabulary.counts.sum():
        return None
    frequency = np.maximum(vocabulary.counts / vocabulary.counts.sum(), 1e-12)
    ratio = threshold / frequency
    return torch.from_numpy(np.minimum(1.0, np.sqrt(ratio) + ratio))
