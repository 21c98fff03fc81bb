"""Moving a model by the update of one client."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedemb.types import Table, Updates
from fedemb.walk import Evidence, smooth_


def apply_(
    specs: tuple[Table, ...],
    tables: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    updates: Updates,
    evidence: Evidence | None = None,
) -> None:
    """Moves shared tables and dense parameters, in place, to where a cohort of one trained them.

    Args:
        specs: The task's tables.
        tables: Shared tables as that client received them.
        dense: Dense parameters likewise.
        updates: Of one client.
        evidence: What rows stand on: then those of slices of time go where their prior wants them, as at the server;
            None: they stay where they were trained.
    """
    for spec in specs:
        if not spec.shared:
            continue
        rows, space = updates.tables[spec.name], spec.manifold
        start = tables[spec.name].index_select(0, rows.rows)
        tables[spec.name][rows.rows] = space.project(space.exp(start, space.from_frame(start, rows.values)))
        if spec.num_slices > 1 and evidence is not None:
            smooth_(spec, tables[spec.name], rows.rows, evidence.of(spec, rows.rows, None))
    for name, value in updates.dense.items():
        dense[name] += value[0]
