"""A bound on the norm of a client's whole update."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedemb.types import RowUpdates, StageContext, Total, Updates


def update_norms(updates: Updates) -> Tensor:
    """Norm ``(clients,)`` of each client's update over all tables and dense parameters jointly.

    Values are in frame coordinates, so on a curved table this is the Riemannian norm.
    """
    squares = torch.zeros(len(updates.clients), dtype=torch.float64)
    for rows in updates.tables.values():
        squares.scatter_add_(0, _client_of(rows), rows.values.double().square().sum(1).cpu())
    for values in updates.dense.values():
        squares += (
            values.double().square().unsqueeze(1).flatten(1).sum(1).cpu()
        )  # a scalar has no axis to sum
    return squares.sqrt_()


def _client_of(rows: RowUpdates) -> Tensor:
    return torch.repeat_interleave(rows.offsets.diff())


@dataclass(frozen=True)
class Clip:
    """Scales an update down to ``clip_norm`` where it is longer; metric ``clipped`` counts these clients.

    Attributes:
        clip_norm: Largest norm over everything that a client sends, where the server asks for no other.
    """

    clip_norm: float
    name: str = "clip"
    bounded: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < float("inf"):
            raise ValueError(f"aggregate.clip_norm must be a positive number, got {self.clip_norm}")

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        norms = update_norms(updates)
        bound = self.clip_norm if context.clip_norm is None else context.clip_norm
        factor = (bound / norms.clamp(min=bound)).nan_to_num(nan=1.0)
        tables = {}
        for name, rows in updates.tables.items():
            own = factor[_client_of(rows)].to(rows.values)
            tables[name] = replace(rows, values=rows.values * own[:, None])
        dense = {
            name: values * factor.to(values).view(-1, *(1,) * (values.dim() - 1))
            for name, values in updates.dense.items()
        }
        metrics = {**updates.metrics, "clipped": (factor < 1).double()}
        return replace(updates, tables=tables, dense=dense, metrics=metrics)

    def on_server(self, total: Total, context: StageContext) -> Total:
        return total
