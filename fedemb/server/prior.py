"""Priors that the server applies after its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedemb.types import RowTotal, ServerOptimizer, Table, Total
from fedemb.walk import smooth_


@dataclass
class RandomWalk:
    """A server optimiser, and after its step the prior of every table that has one.

    Attributes:
        inner: Makes the step.
        tables: The shared tables.
    """

    inner: ServerOptimizer
    tables: tuple[Table, ...]
    _seen: dict[str, Tensor] = field(default_factory=dict)

    def _evidence(self, spec: Table, total: RowTotal) -> Tensor | None:
        """What each row stands on: the mean over all rounds of what steps stood on; None where steps are sums."""
        if total.weights is None:
            return None
        name = f"{spec.name}/evidence"
        if name not in self._seen:
            self._seen[name] = total.steps.new_zeros(spec.num_rows + 1)
        seen = self._seen[name]
        seen[total.rows] += total.weights.to(seen)
        seen[-1] += 1
        return seen[:-1] / seen[-1]

    def step(self, tables: Mapping[str, Tensor], dense: Mapping[str, Tensor], total: Total) -> None:
        """Moves every touched row, and then all slices of the entities touched."""
        self.inner.step(tables, dense, total)
        for spec in self.tables:
            if spec.num_slices > 1 and spec.name in total.tables:
                own = total.tables[spec.name]
                smooth_(spec, tables[spec.name], own.rows, self._evidence(spec, own))

    def state(self) -> dict[str, Tensor]:
        """All state by name: the inner optimiser's, and what rows stand on."""
        return {**self.inner.state(), **self._seen}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up from what ``state`` returned."""
        own = {name: value for name, value in state.items() if name.endswith("/evidence")}
        self._seen = own
        self.inner.restore({name: value for name, value in state.items() if name not in own})
