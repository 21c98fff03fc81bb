"""Priors that the server applies after its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedemb.types import ServerOptimizer, Table, Total
from fedemb.walk import Evidence, smooth_

EVIDENCE = "evidence"  # what the state of rows that are in slices is called


@dataclass
class RandomWalk:
    """A server optimiser, and after its step the prior of every table that has one.

    Attributes:
        inner: Makes the step.
        tables: The shared tables.
        evidence: What their rows stand on.
    """

    inner: ServerOptimizer
    tables: tuple[Table, ...]
    evidence: Evidence = field(default_factory=Evidence)

    def step(self, tables: Mapping[str, Tensor], dense: Mapping[str, Tensor], total: Total) -> None:
        """Moves every touched row, and then all slices of the entities touched."""
        self.inner.step(tables, dense, total)
        for spec in self.tables:
            if spec.num_slices > 1 and spec.name in total.tables:
                own = total.tables[spec.name]
                smooth_(spec, tables[spec.name], own.rows, self.evidence.of(spec, own.rows, own.weights))

    def state(self) -> dict[str, Tensor]:
        """All state by name: the inner optimiser's, and what rows stand on."""
        own = {f"{name}/{EVIDENCE}": seen for name, seen in self.evidence.seen.items()}
        return {**self.inner.state(), **own}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up from what ``state`` returned."""
        own = {name: value for name, value in state.items() if name.endswith(f"/{EVIDENCE}")}
        self.evidence = Evidence({name.removesuffix(f"/{EVIDENCE}"): value for name, value in own.items()})
        self.inner.restore({name: value for name, value in state.items() if name not in own})
