"""One pass of a cohort over its examples: what is drawn, in which order, and who looks up what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.seeds import bits, stream_keys, uniforms
from fedemb.train.candidates import Draw, candidate_tables, draw_rows
from fedemb.train.exclusion import key_bounds, known_candidates, known_pairs, known_ranges
from fedemb.train.ragged import shuffled_batches
from fedemb.types import Batch, Int64, Table, Task


@dataclass(frozen=True)
class Examples:
    """What stays the same over a chunk's epochs.

    ``position`` is the client of each line within the chunk, ``within`` the line's number at its client, ``whose``
    the client that its personal rows and known answers belong to (another one only in pooled data). Of lines outside
    ``seen`` only the known answers count.
    """

    columns: Mapping[str, Tensor]
    offsets: Int64
    position: Int64
    within: Int64
    whose: Tensor
    bounds: tuple[int, int]
    known: Tensor | None
    seen: Tensor | None = None


def examples_of(
    task: Task, shards: Shards, clients: Int64, seen: npt.NDArray[np.bool_] | None = None
) -> Examples:
    """The examples of these clients, ready for any number of epochs; ``seen``: which of them, None: all."""
    columns = {name: torch.from_numpy(column) for name, column in shards.columns.items()}
    position = shards.owners()
    within = np.arange(shards.num_examples, dtype=np.int64) - np.repeat(shards.offsets[:-1], shards.sizes)
    whose = columns["owner"] if "owner" in columns else torch.from_numpy(clients[position])
    known, bounds = None, (1, 1)
    if task.exclusion and shards.num_examples:
        bounds = key_bounds(task.exclusion, columns, max(table.num_rows for table in task.tables))
        known = known_pairs(task.exclusion, columns, whose, bounds)
    chosen = None if seen is None else torch.from_numpy(seen)
    return Examples(columns, shards.offsets, position, within, whose, bounds, known, chosen)


@dataclass(frozen=True)
class Epoch:
    """One epoch of a cohort, its lines in the order of the steps.

    Attributes:
        columns: The batch.
        ids: Per table, what each line looks up.
        client: ``(lines,)`` client within the chunk; ascending within a step.
        whose: ``(lines,)`` see ``Examples``.
        scale: ``(lines,)`` what the loss of a line counts in the gradient of its step.
        steps: ``(steps + 1,)`` where each step begins.
        draws: Per table, the rows drawn for all examples of a client in a step.
        known: ``(lines, 2)`` range of the line's true answers in ``Examples.known``; None where nobody asks.
    """

    columns: Mapping[str, Tensor]
    ids: Mapping[str, Tensor]
    client: Tensor
    whose: Tensor
    scale: Tensor
    steps: list[int]
    draws: Mapping[str, Draw]
    known: Tensor | None


def epoch_of(
    task: Task,
    examples: Examples,
    batch_size: int,
    seed: int,
    round: int,
    epoch: int,
    clients: Int64,
    summed: bool = False,
) -> Epoch:
    """Draws and orders an epoch; nothing in it depends on who else is in the chunk.

    Args:
        task: What is learnt.
        examples: From ``examples_of``.
        batch_size: Lines of a client in a step; 0 for all of them.
        seed: The run's seed.
        round: The round.
        epoch: The epoch in this round.
        clients: ``(clients,)`` ids.
        summed: Whether a step follows the sum of its lines' losses, not their mean.
    """
    position, within, offsets = examples.position, examples.within, examples.offsets
    draws = torch.empty((len(position), 0), dtype=torch.float64)
    if task.num_draws:
        keys = stream_keys(seed, "sample", round, epoch, clients)[position]
        draws = torch.from_numpy(uniforms(keys, task.num_draws, within * task.num_draws))
    batch = dict(task.sample(examples.columns, draws))
    known = None
    if task.exclusion and examples.known is not None:
        if task.exclusion.candidates is not None:
            batch["known"] = known_candidates(
                task.exclusion, batch, examples.whose, examples.bounds, examples.known
            )
        else:
            known = known_ranges(task.exclusion, batch, examples.whose, examples.bounds, examples.known)
    random = bits(stream_keys(seed, "shuffle", round, epoch, clients)[position], 1, within)[:, 0]
    keep = batch.pop("keep", None)
    if examples.seen is not None:
        keep = examples.seen if keep is None else keep & examples.seen
    lines = None if keep is None else np.flatnonzero(keep.numpy())
    if lines is not None:
        offsets, random, position = np.searchsorted(lines, offsets), random[lines], position[lines]
    order, steps, batch_sizes = shuffled_batches(offsets, random, batch_size)
    at = torch.from_numpy(order if lines is None else lines[order])
    columns = {name: column.index_select(0, at) for name, column in batch.items()}
    scale = torch.from_numpy(np.ones(len(order)) if summed else 1.0 / batch_sizes)
    if "weight" in columns:
        scale = scale * columns["weight"]
    if "owner" in columns and any(
        not table.shared and drawn is not None for table, drawn in candidate_tables(task)
    ):
        raise ValueError(
            "candidates of a personal table must not be drawn for pooled data: whose would they be?"
        )
    sizes = np.diff(offsets)
    num_batches = -(-sizes // batch_size) if batch_size else np.minimum(sizes, 1)
    return Epoch(
        columns,
        task.lookup(columns),
        torch.from_numpy(position[order]),
        examples.whose.index_select(0, at),
        scale,
        steps.tolist(),
        {
            table.name: draw_rows(table, drawn, num_batches, seed, round, epoch, clients)
            for table, drawn in candidate_tables(task)
            if drawn is not None
        },
        None if known is None else known.index_select(0, at),
    )


def observed(ids: Tensor, batch: Batch) -> Tensor:
    """Lookups ``(examples, k)`` without those of drawn negatives, which come last and say nothing of the client."""
    negatives = batch.get("negatives")
    return ids if negatives is None else ids[:, : max(1, ids.shape[1] - negatives.shape[1])]


def owner_of(table: Table, epoch: Epoch) -> Tensor:
    """Whose copy of a row a line looks up: its client's place in the chunk; of a personal row, its owner."""
    return epoch.client if table.shared else epoch.whose


def to_device(epoch: Epoch, device: torch.device) -> Epoch:
    """The same epoch where the tables are."""
    if device.type == "cpu":
        return epoch
    columns = {name: column.to(device) for name, column in epoch.columns.items()}
    moved = {name: getattr(epoch, name).to(device) for name in ("client", "whose", "scale")}
    known = None if epoch.known is None else epoch.known.to(device)
    draws = {name: draw.to(device) for name, draw in epoch.draws.items()}
    return replace(epoch, columns=columns, known=known, draws=draws, **moved)
