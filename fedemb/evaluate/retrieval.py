"""Whether things of one owner lie together: each asks for the others of its owner among all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedemb.types import Int64

_BYTES = 1 << 27


def same_owner_retrieval(vectors: Tensor, owner: Int64, k: int = 10) -> dict[str, float]:
    """Mean average precision and recall@k of finding an owner's other things by cosine; mean over things that have any.

    Only where somebody may see all the vectors: a study, or public records. Ties come in the order of the things.

    Args:
        vectors: ``(things, coordinates)``.
        owner: ``(things,)``.
        k: Cut-off; ``recall@k`` is the share of the others among the first k, of as many as fit.

    >>> vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> same_owner_retrieval(vectors, np.array([0, 0, 1]), 1)
    {'retrieval_map': 1.0, 'retrieval_recall@1': 1.0}
    """
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    whose = torch.from_numpy(np.asarray(owner)).to(vectors.device)
    size = len(unit)
    precision, recall = [torch.zeros(0)], [torch.zeros(0)]
    block = max(1, _BYTES // (16 * max(1, size)))
    for start in range(0, size, block):
        scores = unit[start : start + block] @ unit.T
        here = torch.arange(len(scores), device=scores.device)
        scores[here, here + start] = -torch.inf  # itself comes last
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :-1]
        found = whose[order] == whose[start : start + block, None]
        others = found.sum(1)
        ranks = torch.arange(1, size, device=scores.device)
        gained = (found.cumsum(1) / ranks * found).sum(1)
        asks = others > 0
        precision.append((gained[asks] / others[asks]).cpu())
        recall.append((found[:, :k].sum(1)[asks] / others[asks].clamp(max=k)).cpu())
    means = {"retrieval_map": torch.cat(precision), f"retrieval_recall@{k}": torch.cat(recall)}
    return {name: float(values.mean()) if len(values) else float("nan") for name, values in means.items()}
