"""Which updates may enter the sum: a client that sends nonsense is left out, named and counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import offsets_of, ragged_indices
from fedemb.types import RowUpdates, Updates


def _shape_fault(
    updates: Updates, tables: Mapping[str, tuple[int, int]], dense: Mapping[str, Tensor]
) -> str | None:
    num_clients = len(updates.clients)
    if set(updates.tables) != set(tables) or set(updates.dense) != set(dense):
        return f"wrong tables: got {sorted([*updates.tables, *updates.dense])}"
    for name, rows in updates.tables.items():
        touched = len(rows.rows)
        if rows.values.shape != (touched, tables[name][1]) or rows.counts.shape != (touched,):
            return f"wrong shape of table {name}: got {tuple(rows.values.shape)}"
        offsets = rows.offsets
        if offsets.shape != (num_clients + 1,) or int(offsets[0]) or int(offsets[-1]) != touched:
            return f"wrong offsets of table {name}"
        if bool((offsets.diff() < 0).any()):
            return f"wrong offsets of table {name}"
    for name, value in updates.dense.items():
        if value.shape != (num_clients, *dense[name].shape):
            return f"wrong shape of {name}: got {tuple(value.shape)}"
    return None


def _per_client(rows: RowUpdates, faulty: Tensor) -> Tensor:
    client = torch.repeat_interleave(rows.offsets.diff())
    return torch.zeros(len(rows.offsets) - 1, dtype=torch.bool).index_put_(
        (client[faulty.cpu()],), torch.tensor(True)
    )


def _row_faults(rows: RowUpdates, num_rows: int) -> list[tuple[Tensor, str]]:
    """Faults by client; nothing is computed per client while everything is well."""
    faults = []
    if len(rows.rows):
        if int(rows.rows.min()) < 0 or int(rows.rows.max()) >= num_rows:
            faults.append((_per_client(rows, (rows.rows < 0) | (rows.rows >= num_rows)), "rows out of range"))
        rising = torch.ones(len(rows.rows), dtype=torch.bool, device=rows.rows.device)
        rising[1:] = rows.rows[1:] > rows.rows[:-1]
        starts = rows.offsets[:-1][rows.offsets.diff() > 0].to(rising.device)
        rising[starts] = True
        if not bool(rising.all()):
            faults.append((_per_client(rows, ~rising), "rows repeated or unsorted"))
        if not bool(torch.isfinite(rows.values.sum() + rows.counts.sum())):
            bad = ~(torch.isfinite(rows.values).all(1) & torch.isfinite(rows.counts))
            faults.append((_per_client(rows, bad), "NaN or infinity"))
        if bool((rows.counts < 0).any()):
            faults.append((_per_client(rows, rows.counts < 0), "negative counts"))
    return faults


def reject(
    updates: Updates, tables: Mapping[str, tuple[int, int]], dense: Mapping[str, Tensor]
) -> tuple[Updates | None, dict[int, str]]:
    """Leaves out clients whose updates cannot be added up.

    Args:
        updates: As decoded.
        tables: ``(num_rows, dim)`` of every shared table.
        dense: Dense parameters of the model.

    Returns:
        The sound updates (None if there are none) and the reason for each client that was left out.
    """
    fault = _shape_fault(updates, tables, dense)
    if fault:
        return None, {int(client): fault for client in updates.clients}
    reasons: dict[int, str] = {}
    sound = torch.ones(len(updates.clients), dtype=torch.bool)
    faults = [f for name, rows in updates.tables.items() for f in _row_faults(rows, tables[name][0])]
    weights = updates.weights
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        faults.append((~(torch.isfinite(weights) & (weights >= 0)), "weight not a number from 0 up"))
    for values in updates.dense.values():
        if not bool(torch.isfinite(values.sum())):
            faults.append((~torch.isfinite(values).unsqueeze(1).flatten(1).all(1).cpu(), "NaN or infinity"))
    for clients, reason in faults:
        for client in updates.clients[clients.numpy()]:
            reasons.setdefault(int(client), reason)
        sound &= ~clients
    if not reasons:
        return updates, reasons
    return (select(updates, np.flatnonzero(sound.numpy())) if bool(sound.any()) else None), reasons


def select(updates: Updates, positions: np.ndarray) -> Updates:
    """The updates of the clients at these positions, in this order."""
    at = torch.from_numpy(positions)
    tables = {}
    for name, rows in updates.tables.items():
        offsets = rows.offsets.numpy()
        sizes = np.diff(offsets)[positions]
        lines = torch.from_numpy(ragged_indices(offsets[positions], sizes)).to(rows.values.device)
        kept = (rows.rows[lines], rows.values[lines], rows.counts[lines])
        tables[name] = RowUpdates(*kept, torch.from_numpy(offsets_of(sizes)))
    return replace(
        updates,
        clients=updates.clients[positions],
        tables=tables,
        dense={name: value[at.to(value.device)] for name, value in updates.dense.items()},
        weights=updates.weights[at],
        metrics={name: value[at] for name, value in updates.metrics.items()},
    )
