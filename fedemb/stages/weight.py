"""How much each client counts where a rule weighs whole clients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedemb.types import StageContext, Total, Updates

WEIGHTS = ("examples", "uniform", "capped")


@dataclass(frozen=True)
class Weight:
    """Sets ``Updates.weights``: number of examples, 1, or ``min(examples, cap) / cap`` in [0, 1].

    Attributes:
        by: ``examples``, ``uniform`` or ``capped``.
        cap: Examples from which on a client counts fully, for ``capped``.
    """

    by: str = "examples"
    cap: int = 100
    name: str = "weight"
    bounded: bool = False

    def __post_init__(self) -> None:
        if self.by not in WEIGHTS:
            raise ValueError(f"aggregate.weights must be one of {', '.join(WEIGHTS)}, got {self.by!r}")
        if self.cap < 1:
            raise ValueError(f"aggregate.weight_cap must be at least 1, got {self.cap}")

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        examples = updates.metrics["examples"]
        weights = {
            "examples": lambda: examples,
            "uniform": lambda: torch.ones_like(examples),
            "capped": lambda: examples.clamp(max=self.cap) / self.cap,
        }[self.by]()
        return replace(updates, weights=weights)

    def on_server(self, total: Total, context: StageContext) -> Total:
        return total
