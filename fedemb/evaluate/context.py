"""Which word stands in the middle: held-out words ranked among all, each in its own context and at its own time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.evaluate.spread import mean_of_each, over_clients
from fedemb.types import ContextPredictor, Evaluated, Int64

CUTS = (1, 10)
_BYTES_PER_SCORE = 16  # a score, and what is compared on its way


@dataclass(frozen=True)
class ContextPrediction:
    """How well a task names a held-out word by the words around it; mean over all words held out.

    ``mrr`` is the mean of one over the rank of the word among the whole vocabulary, ``hits@k`` the share of those
    among the first k; ties count as their mean rank. No client's past is asked: it measures the vectors alone.

    Attributes:
        task: What predicts.
        held_out: What each client wrote later, by client id.
        split: Names the metrics: those of another split than ``test`` begin with its name.
        memory_bytes: Budget for the scores of the words that are ranked together.
    """

    task: ContextPredictor
    held_out: Shards
    split: str = "test"
    memory_bytes: int = 1 << 28

    @property
    def on_clients(self) -> bool:
        return True

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """Metrics of these clients; NaN for those without a held-out word."""
        examples, rank = self.ranks(tables, clients)
        owner = examples.owners()
        gains = {"mrr": 1 / rank, **{f"hits@{cut}": (rank <= cut).astype(np.float64) for cut in CUTS}}
        prefix, per_client = "" if self.split == "test" else f"{self.split}_", {}
        for name, gain in gains.items():
            per_client[prefix + name] = mean_of_each(gain, owner, len(clients))
        weights = examples.sizes.astype(np.float64)
        return Evaluated(over_clients(per_client, weights), per_client, clients, weights)

    def ranks(self, tables: Mapping[str, Tensor], clients: Int64) -> tuple[Shards, npt.NDArray[np.float64]]:
        """The held-out words of these clients as examples of the task, and the rank ``(examples,)`` of each."""
        examples = self.task.examples(self.held_out.take(clients))
        device = tables[self.task.tables[0].name].device
        columns = {name: torch.from_numpy(np.asarray(c)).to(device) for name, c in examples.columns.items()}
        block = max(1, self.memory_bytes // (_BYTES_PER_SCORE * self.task.tables[0].num_rows))
        ranks = [torch.zeros(0, dtype=torch.float64)]
        for start in range(0, examples.num_examples, block):
            batch = {name: column[start : start + block] for name, column in columns.items()}
            scores = self.task.context_scores(tables, batch).detach()
            own = scores.gather(1, batch["item"][:, None])
            above, level = (scores > own).sum(1), (scores == own).sum(1)
            ranks.append((above + (level + 1) / 2).double().cpu())
        return examples, torch.cat(ranks).numpy()
