"""What happens to an update on its way: client half in order, server half in reverse."""

from __future__ import annotations

from collections.abc import Sequence

from fedemb.types import Stage, StageContext, Total, Updates


def on_clients(stages: Sequence[Stage], updates: Updates, context: StageContext) -> Updates:
    """Client halves, first to last."""
    for stage in stages:
        updates = stage.on_clients(updates, context)
    return updates


def on_server(stages: Sequence[Stage], total: Total, context: StageContext) -> Total:
    """Server halves, last to first."""
    for stage in reversed(stages):
        total = stage.on_server(total, context)
    return total
