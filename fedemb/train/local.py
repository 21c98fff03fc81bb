"""A cohort's private copies of the rows that it looks up: what a step of local training gathers, moves and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedemb.train.candidates import candidate_tables, compared
from fedemb.train.epochs import Epoch, Examples, owner_of
from fedemb.train.exclusion import known_answers
from fedemb.train.optimizers import OptimizerMemory, Parameter
from fedemb.train.personal import PersonalRows
from fedemb.train.ragged import localise
from fedemb.types import Candidates, Int64, Table, Task


def _keys(table: Table, epoch: Epoch) -> Tensor:
    """(owner, id) of every lookup, and then of every draw, as one number."""
    lookups = epoch.ids[table.name] + (owner_of(table, epoch) * table.num_rows)[:, None]
    draw = epoch.draws.get(table.name)
    if draw is None:
        return lookups.view(-1)
    return torch.cat((lookups.view(-1), (draw.ids + (draw.owner * table.num_rows)[:, None]).view(-1)))


@dataclass(frozen=True)
class Local:
    """A cohort's copy of a table's rows: what was received, what is trained, which row is whose.

    ``keys`` are ``owner * num_rows + id``, ascending; ``lookups`` and ``draws`` are positions among them, by epoch.
    """

    table: Table
    keys: Tensor
    received: Tensor
    parameter: Parameter
    lookups: list[Tensor]
    draws: list[Tensor]


def lasting(table: Table, keys: Tensor, clients: Int64) -> Tensor:
    """The keys by client id, not by place in a chunk; still ascending."""
    if not table.shared:
        return keys
    client = torch.from_numpy(clients).to(keys.device)[keys // table.num_rows]
    return client * table.num_rows + keys % table.num_rows


def gather(
    table: Table,
    epochs: list[Epoch],
    clients: Int64,
    received: Mapping[str, Tensor],
    personal: Mapping[str, PersonalRows],
    seed: int,
    device: torch.device,
    memory: OptimizerMemory | None,
    whole: bool = False,
) -> Local:
    """The copies that these epochs look up, or of all rows of the table where ``whole`` is set."""
    keys, num_clients = [_keys(table, epoch) for epoch in epochs], len(clients)
    if whole:
        owners = torch.arange(num_clients) if table.shared else torch.from_numpy(clients)
        every = (owners[:, None] * table.num_rows + torch.arange(table.num_rows)).view(-1)
    if table.shared:
        asked = torch.cat(keys)
        unique, position = (every, asked) if whole else localise(asked, num_clients * table.num_rows)
        rows = unique % table.num_rows if num_clients > 1 else unique
        whole_table = received[table.name].repeat(num_clients, 1) if whole else None
        points = received[table.name].index_select(0, rows.to(device)) if whole_table is None else whole_table
    else:
        store = personal[table.name]
        asked, space = torch.cat(keys), (store.first + len(store.known)) * table.num_rows
        unique, position = (every, torch.searchsorted(every, asked)) if whole else localise(asked, space)
        points = store.gather(unique, seed).to(device)
    lookups, draws = [], []
    for epoch, own in zip(epochs, torch.split(position.to(device), [len(k) for k in keys]), strict=True):
        shape = epoch.ids[table.name].shape
        lookups.append(own[: shape.numel()].view(shape))
        draw = epoch.draws.get(table.name)
        draws.append(own[shape.numel() :].view(draw.ids.shape if draw is not None else (0, 0)))
    unique = unique.to(device)
    state = {} if memory is None else memory.take(table.name, lasting(table, unique, clients))
    parameter = Parameter(points.clone(), table.manifold, state)
    return Local(table, unique, points, parameter, lookups, draws)


def candidates_of(
    task: Task, local: Local, examples: Examples, epoch: Epoch, number: int, step: int
) -> tuple[Candidates, Tensor] | None:
    """What the examples of a step are compared with of a table, if anything, and the rows that these are."""
    draw, lines = epoch.draws.get(local.table.name), slice(epoch.steps[step], epoch.steps[step + 1])
    owner = owner_of(local.table, epoch)[lines]
    if draw is not None:
        drawn = draw.draw[draw.bounds[step] : draw.bounds[step + 1]]
        positions, weight = local.draws[number][drawn], draw.weight[drawn]
        client = torch.searchsorted(draw.owner[drawn], owner)
    elif any(table is local.table for table, _ in candidate_tables(task)):
        holders, client = torch.unique(owner, return_inverse=True)
        first, end = (torch.searchsorted(local.keys, (holders + n) * local.table.num_rows) for n in (0, 1))
        sizes = end - first
        place = torch.arange(int(sizes.max()), device=owner.device)
        positions = first[:, None] + torch.minimum(place, sizes[:, None] - 1)
        weight = (place < sizes[:, None]).double()
    else:
        return None
    answers = None
    if epoch.known is not None and examples.known is not None:
        example, answer = known_answers(examples.known, epoch.known[lines], examples.bounds[1])
        keys = owner[example] * local.table.num_rows + answer
        at = torch.searchsorted(local.keys, keys).clamp_(max=len(local.keys) - 1)
        answers = example, torch.where(local.keys[at] == keys, at, -1)
    points, at = local.parameter.points, local.lookups[number][lines]
    return compared(points, positions, weight, client, at, answers), positions.reshape(-1)
