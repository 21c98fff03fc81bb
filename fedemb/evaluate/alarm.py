"""The leak alarm: who never talked to anybody cannot know which new items come next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedemb.data.shards import Shards
from fedemb.evaluate.popularity import Score
from fedemb.types import Evaluated, Int64

METRIC = "new_ndcg@10"
STANDARD_ERRORS = 3.0


def chance(num_items: int) -> Score:
    """The same for all items."""

    def score(history: Shards, now: Int64 | None = None) -> torch.Tensor:
        return torch.zeros((history.num_clients, num_items))

    return score


def leak_alarm(local: Evaluated, references: Sequence[Evaluated]) -> str | None:
    """What to say where clients alone rank new items better than every reference; None where all is well.

    A client that trains alone has never seen its new items as anything but negatives, so that it must stand at chance
    or at popularity. If it stands above both, by more than ``STANDARD_ERRORS`` of the difference over clients, the
    protocol tells it what comes: usually held-out items that are spared as negatives in training.

    Args:
        local: Local-only, measured.
        references: Chance and popularity, on the same clients.
    """
    name = next((name for name in local.per_client if name.endswith(METRIC)), None)
    if name is None or not references:
        return None
    for reference in references:
        gained = local.per_client[name] - reference.per_client[name]
        gained = gained[~np.isnan(gained)]
        if len(gained) < 2 or gained.mean() <= STANDARD_ERRORS * gained.std(ddof=1) / np.sqrt(len(gained)):
            return None
    best = max(reference.metrics[name] for reference in references)
    return (
        f"leak alarm: local-only has {name} {local.metrics[name]:.4f}, chance and popularity at most {best:.4f}; "
        "clients that never talk cannot rank new items, so held-out items have leaked into training"
    )
