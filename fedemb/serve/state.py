"""Everything that a service has learnt, and its files: written whole, two kept, nothing pickled."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedemb.atomic import write_atomically
from fedemb.errors import RunError
from fedemb.serve.history import Clients, Tails
from fedemb.train.personal import PersonalRows, personal_rows
from fedemb.types import Table

FOLDER = "serve"  # within a run folder
_KEPT = 2
_log = logging.getLogger("fedemb")


@dataclass
class State:
    """What windows change.

    Attributes:
        number: Windows that were applied.
        sequence: The last interaction that was.
        rejected: Interactions whose window was left out because it led to numbers that are none.
        tables: Shared tables.
        dense: Dense parameters.
        clients: Slots of the clients that are remembered.
        personal: Personal tables by slot.
        tails: Latest interactions by slot; None where the task does not join interactions.
    """

    number: int
    sequence: int
    rejected: int
    tables: dict[str, Tensor]
    dense: dict[str, Tensor]
    clients: Clients
    personal: dict[str, PersonalRows]
    tails: Tails | None


def fresh_state(
    tables: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    specs: tuple[Table, ...],
    max_clients: int,
    tails: Tails | None,
) -> State:
    """The trained model before the first interaction."""
    clients = Clients(max_clients, OrderedDict())
    personal = personal_rows(specs, 0, max_clients)
    return State(0, 0, 0, dict(tables), dict(dense), clients, personal, tails)


def snapshots(folder: Path) -> list[Path]:
    """States on disk, the newest first."""
    return sorted(folder.glob("state-*.safetensors"), reverse=True)


def save_state(folder: Path, state: State, model: str) -> tuple[int, int]:
    """Writes a state and removes all but the newest two; returns sequence and number of the older of these.

    Args:
        folder: ``RUN/serve``.
        state: What to write.
        model: Which trained model it began with.
    """
    used = len(state.clients.slots)
    tensors = {f"table/{name}": value.cpu().contiguous() for name, value in state.tables.items()}
    tensors |= {f"dense/{name}": value.cpu().contiguous() for name, value in state.dense.items()}
    for name, rows in state.personal.items():
        tensors[f"personal/{name}"] = rows.points[: used * rows.table.num_rows].contiguous()
        tensors[f"known/{name}"] = rows.known[:used].contiguous()
    if state.tails is not None:
        for name, column in state.tails.columns.items():
            tensors[f"tail/{name}"] = torch.from_numpy(column[:used].copy())
        tensors["tails"] = torch.from_numpy(state.tails.counts[:used].copy())
    names = json.dumps(list(state.clients.slots.items())).encode()
    tensors["clients"] = torch.frombuffer(bytearray(names), dtype=torch.uint8)
    facts = {"sequence": state.sequence, "number": state.number, "rejected": state.rejected, "model": model}
    path = folder / f"state-{state.number:012d}.safetensors"
    write_atomically(
        path, lambda partial: save_file(tensors, partial, metadata={"fedemb": json.dumps(facts)})
    )
    _flush(folder)
    kept = snapshots(folder)
    for old in kept[_KEPT:]:
        old.unlink()
    if len(kept) < _KEPT:
        return 0, 0
    oldest = read_facts(kept[_KEPT - 1])
    return oldest["sequence"], oldest["number"]


def _flush(folder: Path) -> None:
    """Forces a new name in a folder to the disk: only then may what the file replaces be forgotten."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_facts(path: Path) -> dict[str, Any]:
    """Sequence, number, rejected and model of a state on disk."""
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["fedemb"])
    return facts


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a state on disk."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def newest(folder: Path, model: str) -> Path | None:
    """The newest state that can be read; None if there is none. A corrupt one is announced and passed over.

    Raises:
        RunError: If it began with another trained model, or none can be read.
    """
    paths = snapshots(folder)
    for path in paths:
        try:
            found = read_facts(path)
            read_tensors(path)
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            _log.warning("state %s cannot be read (%s); trying the one before", path, error)
            continue
        if found["model"] != model:
            raise RunError(
                f"{folder} must hold what was learnt since this model ({model}), but began with {found['model']}; "
                "move it away to serve the new model"
            )
        return path
    if paths:
        raise RunError(f"no state in {folder} can be read; move it away to begin with the trained model")
    return None


def tables_of(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Shared tables and dense parameters of a state on disk."""
    found: dict[str, dict[str, Tensor]] = {"table": {}, "dense": {}}
    for name, value in tensors.items():
        kind, _, key = name.partition("/")
        if kind in found:
            found[kind][key] = value
    return found["table"], found["dense"]


def names_of(tensors: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Clients and their slots in a state on disk, the longest unseen first."""
    return [(str(name), int(slot)) for name, slot in json.loads(tensors["clients"].numpy().tobytes())]


def load_state(path: Path, state: State) -> None:
    """Takes a state up, in place.

    Raises:
        RunError: If it remembers more clients, or longer histories, than this service may.
    """
    facts, tensors = read_facts(path), read_tensors(path)
    state.number, state.sequence, state.rejected = facts["number"], facts["sequence"], facts["rejected"]
    tables, dense = tables_of(tensors)
    state.tables.update(tables)
    state.dense.update(dense)
    known = names_of(tensors)
    if len(known) > state.clients.limit:
        raise RunError(f"max_clients must be at least {len(known)}, for {path} remembers so many clients")
    state.clients.slots.clear()
    state.clients.slots.update(known)
    for name, rows in state.personal.items():
        rows.points[: len(tensors[f"personal/{name}"])] = tensors[f"personal/{name}"]
        rows.known[: len(known)] = tensors[f"known/{name}"]
    if state.tails is not None:
        if "tails" not in tensors:
            raise RunError(f"history must be 0, for {path} was written without; move it away to begin anew")
        for name, column in state.tails.columns.items():
            saved = tensors[f"tail/{name}"].numpy()
            if saved.shape[1] != column.shape[1]:
                raise RunError(
                    f"history must be {saved.shape[1]}, as in {path}, or windows applied again would differ, "
                    f"got {column.shape[1]}"
                )
            column[: len(known)] = saved
        state.tails.counts[: len(known)] = tensors["tails"].numpy()
