"""Ranking one held-out item against a few sampled ones: only to compare with papers that did so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.evaluate.ranking import rank_metrics
from fedemb.seeds import bits, stream_keys
from fedemb.types import Int64


def sampled_metrics(
    scores: Tensor,
    relevant: Shards,
    taken: Shards,
    clients: Int64,
    num_sampled: int,
    seed: int,
    ks: Sequence[int] = (10,),
    column: str = "item",
) -> dict[str, Tensor]:
    """``sampled99_hr@k`` and ``sampled99_ndcg@k`` ``(clients,)`` for 99 sampled items; NaN where nothing is relevant.

    Each relevant item by itself is ranked against the client's sample: different items, uniform among those that it
    never took, neither before nor after. The metrics are means over the client's relevant items; with
    ``data.leave_last=1`` there is one, and this is He et al.'s protocol. The sample follows from seed and client
    alone, so that all models are asked the same. Where fewer items are left, the sample is all of these.

    Such numbers are not estimates of those of the full ranking, and may order models otherwise: an item at rank
    r of n stands at about ``1 + 99 (r - 1) / (n - 1)`` here, so whatever happens among the first hundredth of the
    catalogue, where recommendations are made, is not seen. They stand beside the full ranking, never instead of it.

    Args:
        scores: ``(clients, items)``, finite.
        relevant: Per client, ids of the items that should come first.
        taken: Per client, ids of items that are not sampled; the relevant ones are not in any case.
        clients: ``(clients,)`` ids.
        num_sampled: How many are sampled.
        seed: Of the sample.
        ks: Cut-offs.
        column: Of ids in the shards.

    Reference: He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", WWW 2017, section 4.1; what is wrong
    with it: Krichene, Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020.
    """
    num_clients, num_items = scores.shape
    order = bits(stream_keys(seed, "sampled items", clients), num_items)
    for shards in (relevant, taken):
        order[shards.owners(), shards.columns[column]] = np.iinfo(np.uint64).max
    most = min(num_sampled, num_items - 1)
    drawn = np.argpartition(order, most - 1, axis=1)[:, :most]
    left = np.take_along_axis(order, drawn, axis=1) < np.iinfo(np.uint64).max
    lowest = torch.finfo(scores.dtype).min
    others = scores.gather(1, torch.from_numpy(drawn).to(scores.device))
    others = others.masked_fill(torch.from_numpy(~left).to(scores.device), lowest)
    pairs = np.unique(relevant.owners() * num_items + np.asarray(relevant.columns[column], dtype=np.int64))
    owner, item = (torch.from_numpy(part).to(scores.device) for part in np.divmod(pairs, num_items))
    against = torch.cat((scores[owner, item][:, None], others[owner]), dim=1)
    first = Shards({column: np.zeros(len(pairs), dtype=np.int64)}, np.arange(len(pairs) + 1))
    ranked = rank_metrics(against, first, None, ks, column)
    metrics = {}
    for name, theirs in (("hr", "recall"), ("ndcg", "ndcg")):
        for k in ks:
            total = torch.zeros(num_clients, dtype=torch.float64, device=scores.device)
            total.index_add_(0, owner, ranked[f"{theirs}@{k}"])
            metrics[f"sampled{num_sampled}_{name}@{k}"] = total / torch.bincount(owner, minlength=num_clients)
    return metrics
