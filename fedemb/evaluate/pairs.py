"""Held-out labelled pairs: is a related pair scored above an unrelated one?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.evaluate.spread import mean_of_each, over_clients
from fedemb.types import Evaluated, Float, Int64, Task


def area_under_curve(scores: Float, labels: Float, owner: Int64, num_clients: int) -> Float:
    """For each client, the probability that a positive scores above a negative, ties half; NaN if either is missing.

    >>> area_under_curve(np.array([2.0, 1.0, 1.0]), np.array([1, 1, 0]), np.array([0, 0, 0]), 2).tolist()
    [0.75, nan]
    """
    order = np.lexsort((scores, owner))
    whose, value, positive = owner[order], scores[order], labels[order] > 0
    new = np.ones(len(order), dtype=bool)
    new[1:] = (whose[1:] != whose[:-1]) | (value[1:] != value[:-1])
    tie = np.cumsum(new) - 1
    size = np.bincount(tie)
    rank = (np.cumsum(size) - (size - 1) / 2)[tie]
    before = np.concatenate([[0], np.cumsum(np.bincount(whose, minlength=num_clients))])[whose]
    num_positive = np.bincount(whose[positive], minlength=num_clients)
    num_negative = np.bincount(whose[~positive], minlength=num_clients)
    ranks = np.bincount(whose[positive], (rank - before)[positive], minlength=num_clients)
    won = ranks - num_positive * (num_positive + 1) / 2
    pairs = num_positive * num_negative
    area: Float = np.divide(won, pairs, out=np.full(num_clients, np.nan), where=pairs > 0)
    return area


@dataclass(frozen=True)
class PairClassification:
    """Area under the ROC curve, log loss and accuracy of held-out pairs at each client; means over clients.

    The score of a pair is the inner product of its two rows.

    Attributes:
        task: Says which rows a pair looks up.
        pairs: Held-out shards with columns ``left``, ``right`` and ``label``, by client id.
        split: Names the metrics, unless it is ``test``.
    """

    task: Task
    pairs: Shards
    split: str = "test"

    @property
    def on_clients(self) -> bool:
        return True

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """Metrics of these clients."""
        held_out = self.pairs.take(clients)
        left, right = (
            torch.from_numpy(np.asarray(held_out.columns[n], dtype=np.int64)) for n in ("left", "right")
        )
        label = np.asarray(held_out.columns["label"], dtype=np.float64)
        names = [table.name for table in self.task.tables]
        first, second = tables[names[0]], tables[names[-1]]
        device = first.device
        scores = (first[left.to(device)].double() * second[right.to(device)].double()).sum(1).cpu().numpy()
        loss = np.logaddexp(0, scores) - label * scores
        right_side = ((scores > 0) == (label > 0)).astype(np.float64)
        owner = held_out.owners()
        prefix = "" if self.split == "test" else f"{self.split}_"
        per_client = {
            prefix + "log_loss": mean_of_each(loss, owner, len(clients)),
            prefix + "accuracy": mean_of_each(right_side, owner, len(clients)),
            prefix + "auc": area_under_curve(scores, label, owner, len(clients)),
        }
        return Evaluated(over_clients(per_client), per_client, clients)
