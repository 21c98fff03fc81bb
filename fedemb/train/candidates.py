"""Rows that all examples of a client in a step are compared with: drawn for them, or all that the client holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedemb.data.shards import offsets_of
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Candidates, Drawn, Int64, ListwiseTask, Table, Task

Float64: TypeAlias = npt.NDArray[np.float64]


def candidate_tables(task: Task) -> list[tuple[Table, Drawn | None]]:
    """The tables that a task compares its examples with rows of, and how these are drawn (None: all that are held)."""
    wanted: Mapping[str, Drawn | None] = task.candidates if isinstance(task, ListwiseTask) else {}
    return [(table, wanted[table.name]) for table in task.tables if table.name in wanted]


@dataclass(frozen=True)
class Draw:
    """Rows of a table drawn for every client and step of an epoch.

    Attributes:
        ids: ``(draws, count)`` ascending in each.
        weight: ``(draws, count)`` as ``Candidates.weight``.
        owner: ``(draws,)`` whose copies of the rows they are.
        draw: ``(client steps,)`` the one of each client and step; those of a step are together, clients ascending.
        bounds: ``(steps + 1,)`` where each step begins among these.
    """

    ids: Tensor
    weight: Tensor
    owner: Tensor
    draw: Tensor
    bounds: list[int]

    def to(self, device: torch.device) -> Draw:
        """The same rows elsewhere."""
        moved = {name: getattr(self, name).to(device) for name in ("ids", "weight", "owner", "draw")}
        return replace(self, **moved)


def draw_rows(
    table: Table, drawn: Drawn, num_batches: Int64, seed: int, round: int, epoch: int, clients: Int64
) -> Draw:
    """Rows drawn from a public distribution, anew for every client and step.

    Stratified: one from each of ``count`` equally likely ranges of ids, so that few come twice, and as many as a
    table's height, drawn uniformly, are all rows: then a client has one draw for all its steps.

    Args:
        table: Whose rows.
        drawn: How; at most as many as the table's height.
        num_batches: ``(clients,)`` steps of each client.
        seed: The run's seed.
        round: The round.
        epoch: The epoch in this round.
        clients: ``(clients,)`` ids.
    """
    count = min(drawn.count, table.num_rows)
    client = np.repeat(np.arange(len(clients)), num_batches)
    step = np.arange(len(client)) - np.repeat(offsets_of(num_batches)[:-1], num_batches)
    order = np.lexsort((client, step))
    client, step = client[order], step[order]
    bounds = offsets_of(np.bincount(step, minlength=int(num_batches.max(initial=0)))).tolist()
    if drawn.cdf is None and count == table.num_rows:
        busy = np.flatnonzero(num_batches)
        ids, weight = np.tile(np.arange(count), (len(busy), 1)), np.ones((len(busy), count))
        draw, client = np.searchsorted(busy, client), busy
    else:
        keys = stream_keys(seed, f"candidates/{table.name}", round, epoch, clients)[client]
        quantile = (np.arange(count) + uniforms(keys, count, step * count)) / count
        ids, weight = _at(quantile, drawn.cdf, table.num_rows)
        draw = np.arange(len(client))
    owner = client if table.shared else clients[client]
    return Draw(
        torch.from_numpy(ids),
        torch.from_numpy(weight),
        torch.from_numpy(owner),
        torch.from_numpy(draw),
        bounds,
    )


def _at(quantile: Float64, cdf: Tensor | None, num_rows: int) -> tuple[Int64, Float64]:
    """Rows ``(draws, count)`` at ascending quantiles of a distribution, and how many rows each stands for."""
    count = quantile.shape[1]
    if cdf is None:
        ids = np.minimum((quantile * num_rows).astype(np.int64), num_rows - 1)
        weight = np.full(ids.shape, num_rows / count)
    else:
        ids = np.minimum(np.searchsorted(cdf.numpy(), quantile, side="right"), num_rows - 1)
        weight = 1 / (count * np.diff(cdf.numpy(), prepend=0.0))[ids]
    first = np.ones(ids.shape, dtype=np.bool_)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    pooled = np.zeros(ids.shape)
    if ids.size:  # a repeated row's weights are added to the first
        pooled[first] = np.add.reduceat(weight.reshape(-1), np.flatnonzero(first))
    return ids, pooled


def compared(
    points: Tensor,
    positions: Tensor,
    weight: Tensor,
    client: Tensor,
    at: Tensor,
    answers: tuple[Tensor, Tensor] | None,
) -> Candidates:
    """Candidates at ``positions`` of a cohort's copy of a table.

    Args:
        points: ``(rows, coordinates)`` the copy.
        positions: ``(clients, most)`` rows of each client, ascending, filled up with the last.
        weight: ``(clients, most)`` as ``Candidates.weight``.
        client: ``(examples,)`` row of ``positions`` that belongs to the example.
        at: ``(examples, k)`` positions of the example's lookups.
        answers: ``(known,)`` example and position of all that is known to be true, wherever it is; None: do not ask.
    """
    most, num_rows = positions.shape[1], len(points)
    first = torch.arange(len(positions), device=positions.device)[:, None] * num_rows
    flat = (positions + first).view(-1)  # ascending, for a copy's positions ascend and copies do not overlap

    def place(example_client: Tensor, position: Tensor) -> Tensor:
        wanted = example_client * num_rows + position
        found = torch.searchsorted(flat, wanted).clamp_(max=len(flat) - 1)
        return torch.where(flat[found] == wanted, found % most, -1)

    known = None
    if answers is not None:
        example, position = answers
        known = torch.zeros((len(client), most), dtype=torch.bool, device=points.device)
        found = place(client[example], position)
        hit = found >= 0
        known[example[hit], found[hit]] = True
    gathered = points.index_select(0, positions.reshape(-1)).view(*positions.shape, -1)
    return Candidates(gathered.requires_grad_(), weight, client, place(client[:, None], at), known)
