"""Taking a run up: where its numbers come from, and which of its settings may have moved on since."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from fedemb.build import Parts
from fedemb.config import NOT_HASHED, digest
from fedemb.errors import DataError, SettingError
from fedemb.model import Run
from fedemb.serve.state import FOLDER, names_of, newest, read_facts, read_tensors, tables_of
from fedemb.server.checkpoint import Checkpoint, load_checkpoint
from fedemb.server.prior import EVIDENCE
from fedemb.train.host import hosted_range, memory_of, save_kept
from fedemb.train.optimizers import OptimizerMemory
from fedemb.train.personal import PersonalRows, personal_rows
from fedemb.types import Table, Temporal

# Which data a run is taken up with: newer ones, another split. What they consist of stays.
MOVES = tuple(
    f"data.{name}"
    for name in (
        "path", "since", "until", "validation_from", "test_from", "validation_share", "test_share", "leave_last",
        "min_count", "min_client_count",
    )
)  # fmt: skip
_log = logging.getLogger("fedemb")


@dataclass(frozen=True)
class Resumed:
    """What a run is taken up from.

    Attributes:
        checkpoint: Tables, dense parameters and state of the server optimiser after ``checkpoint.round`` rounds.
        moved: Settings of the data that are others now.
        served: Tensors of the state that ``fedemb serve`` wrote last; None if the run was not served.
        kept_round: Of the files that nodes kept beside the checkpoint; None if there are none that fit.
    """

    checkpoint: Checkpoint
    moved: tuple[str, ...]
    served: Mapping[str, Tensor] | None
    kept_round: int | None


def differences(before: DictConfig, now: DictConfig) -> dict[str, tuple[object, object]]:
    """Settings that decide a result and are not the same, with both values; absent and null are the same."""
    one, other = _leaves(before), _leaves(now)
    keys = sorted({*one, *other})
    return {k: (one.get(k), other.get(k)) for k in keys if one.get(k) != other.get(k)}


def _leaves(config: DictConfig) -> dict[str, object]:
    resolved = OmegaConf.create(OmegaConf.to_yaml(config, resolve=True))
    plain = {str(k): v for k, v in resolved.items() if k not in NOT_HASHED}
    out: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        else:
            out[prefix] = value

    for key, value in plain.items():
        walk(key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    return out


def find(folder: Path, config: DictConfig, parts: Parts) -> Resumed:
    """What stands in a run folder, the served rows in the place of the trained ones where there are any.

    Raises:
        SettingError: If there is nothing, if more than the data moved on, or no round is left to be trained.
        DataError: If the data have other names, or other slices of time, than the rows that stand there.
        RunError: If what there is cannot be read.
    """
    moved, began = _compared(folder, config, parts.digest)
    served = _served(folder)
    inner = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    found: Checkpoint | None = None
    if served is None or any(inner.glob("round-*.safetensors")):
        found = load_checkpoint(folder, began)
    same_clients = found is not None and _same_meaning(folder, found.meaning, meaning_of(parts))
    kept_round = found.round if found and same_clients and not moved else None
    last = found.round if found else 0
    if served is not None:
        tables, dense = tables_of(served)
        own = {f"table/{n}": v for n, v in tables.items()} | {f"dense/{n}": v for n, v in dense.items()}
        last = max(last, int(Run(folder).facts["rounds"]))
        found = found or Checkpoint(last, parts.digest, {}, {})
        found = replace(found, round=last, tensors={**found.tensors, **own})
    assert found is not None
    tensors = with_evidence(found.tensors, parts.shared, None if served is None else Run(folder).tensors()[0])
    grown = with_more_slices(tensors, parts.shared)
    if grown is not tensors:  # what nodes keep is of other rows
        kept_round = None
    found = replace(found, tensors=grown)
    if (moved or served is not None) and config.rounds <= last:
        raise SettingError(
            f"rounds counts from the beginning of the run that is taken up, so it must be more than {last}, "
            f"got {config.rounds}"
        )
    return Resumed(found, moved, served, kept_round)


def meaning_of(parts: Parts) -> dict[str, Any]:
    """What rows stand for: digests of their names by entity, and of the clients', and where slices of time begin."""
    dataset, task = parts.dataset, parts.task
    slices = task.slices.tolist() if isinstance(task, Temporal) and task.moves else []
    return {
        "names": {table.entity: dataset.vocabularies[table.entity].digest for table in parts.shared},
        "clients": str(dataset.train.num_clients) if dataset.clients is None else dataset.clients.digest,
        "slices": slices,
        "sliced": any(table.num_slices > 1 for table in parts.shared),
    }


def _same_meaning(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether rows that nodes keep are of the same clients, once it is sure that all others mean what they did.

    A finished run hands its names and slices to the data; one that was killed cannot, and its rows would be taken for
    those of other names.

    Raises:
        DataError: If they would.
    """
    if not before:
        return True
    names, slices = now["names"], now["slices"]
    others = [f"names of {name}" for name, digest in before["names"].items() if names.get(name) != digest]
    if before["slices"] != (slices[: len(before["slices"])] if now["sliced"] else slices):
        others.append("slices of time")
    if others:
        raise DataError(
            f"resume={folder} needs the data that this run was trained on, for only a finished one has the names "
            f"of its rows, got data with other {' and other '.join(others)}"
        )
    return bool(before["clients"] == now["clients"])


def with_evidence(
    tensors: Mapping[str, Tensor], tables: tuple[Table, ...], trained: Mapping[str, Tensor] | None
) -> Mapping[str, Tensor]:
    """A checkpoint's tensors in which every row of a slice that has learnt anything counts in the random walk.

    Where the checkpoint does not say which these are (a run without one, or of a single slice), all that are not zero;
    else those too that were moved while they were served: they differ from ``trained``.
    """
    out = dict(tensors)
    for spec in tables:
        if spec.num_slices == 1:
            continue
        table, key = tensors[f"table/{spec.name}"], f"optimizer/{spec.name}/{EVIDENCE}"
        seen = tensors.get(key)
        if seen is None:
            learnt = (table != 0).any(1)
            out[key] = torch.cat((learnt.float(), torch.ones(1)))
        elif trained is not None:
            moved = (table != trained[spec.name]).any(1) & (seen[:-1] == 0)
            out[key] = torch.cat((torch.where(moved, seen[-1], seen[:-1]), seen[-1:]))
    return out


def with_more_slices(tensors: Mapping[str, Tensor], tables: tuple[Table, ...]) -> Mapping[str, Tensor]:
    """A checkpoint's tensors with a row for every slice of time of these tables, which may be more than it had.

    An entity's new slices begin where its last one is, as in a random walk; no optimiser has moved them yet. The same
    object is returned where no table has grown.
    """
    out: dict[str, Tensor] = {}
    for spec in tables:
        before = tensors.get(f"table/{spec.name}")
        if before is None or spec.num_slices == 1 or len(before) >= spec.num_rows:
            continue
        entities = spec.num_rows // spec.num_slices
        more = spec.num_slices - len(before) // entities
        own = before.view(entities, -1, spec.dim)
        whole = torch.cat((own, own[:, -1:].expand(-1, more, -1)), dim=1)
        out[f"table/{spec.name}"] = whole.reshape(spec.num_rows, spec.dim)
        for name, state in tensors.items():
            if name.startswith(f"optimizer/{spec.name}/"):
                rows, rest = state[: len(before)], state[len(before) :]  # of evidence, the number of rounds
                still = rows.new_zeros((entities, more, *rows.shape[1:]))
                rows = torch.cat((rows.view(entities, -1, *rows.shape[1:]), still), dim=1)
                out[name] = torch.cat((rows.reshape(spec.num_rows, *rows.shape[2:]), rest))
        _log.info("%s: %d more slices of time, which begin where the last one was", spec.name, more)
    return {**tensors, **out} if out else tensors


def _compared(folder: Path, config: DictConfig, present: str) -> tuple[tuple[str, ...], str]:
    """Settings of the data that moved on, and the digest that the run's checkpoint must have."""
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        return (), present
    before = OmegaConf.load(path)
    assert isinstance(before, DictConfig)
    found = differences(before, config)
    began = digest(OmegaConf.create(OmegaConf.to_yaml(before, resolve=True)))  # type: ignore[arg-type]
    if not found:
        return (), began
    finished = (folder / "model" / "model.json").is_file()
    wrong = [key for key in found if key not in MOVES] if finished else list(found)
    if wrong:
        shown = ", ".join(f"{key} was {found[key][0]!r}, is {found[key][1]!r}" for key in wrong[:5])
        raise SettingError(
            f"resume needs the configuration that the run began with (digest {began}), got {present}: {shown}"
        )
    return tuple(found), began


def _served(folder: Path) -> dict[str, Tensor] | None:
    if not (folder / "model" / "model.json").is_file() or not (folder / FOLDER).is_dir():
        return None
    run = Run(folder)
    path = newest(folder / FOLDER, run.name)
    if path is None:
        return None
    facts = read_facts(path)
    _log.info(
        "%s takes up what was served: version %d, with %d interactions",
        folder,
        facts["number"],
        facts["sequence"],
    )
    return read_tensors(path)


def carry_kept(folder: Path, own: Path, parts: Parts, num_nodes: int, resumed: Resumed) -> None:
    """Writes what nodes keep, as they look for it: clients' own rows, and the state of their optimisers.

    A client's rows are those that the service learnt for its name; else those beside the checkpoint, where the data
    are the same; else it begins anew.
    """
    for node in range(num_nodes):
        first, stop = hosted_range(parts.dataset.train.num_clients, node, num_nodes)
        rows = personal_rows(parts.task.tables, first, stop - first)
        memory = OptimizerMemory() if parts.training.keep_state else None
        if not rows and memory is None:
            return
        source = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
        path = source / f"personal-{first}-{stop - first}-{resumed.kept_round}.safetensors"
        if resumed.kept_round is not None and path.is_file():
            memory = _take_kept(path, rows, memory)
        elif resumed.kept_round is not None:
            continue  # the node says what is missing
        if resumed.served is not None and parts.dataset.clients is not None:
            _take_served(resumed.served, rows, parts.dataset.clients.to_list()[first:stop], first)
        last = resumed.checkpoint.round
        save_kept(own / f"personal-{first}-{stop - first}-{last}.safetensors", rows, memory, last)


def _take_kept(
    path: Path, rows: Mapping[str, PersonalRows], memory: OptimizerMemory | None
) -> OptimizerMemory | None:
    tensors = load_file(path)
    for name, own in rows.items():
        own.points.copy_(tensors[f"{name}/points"])
        own.known.copy_(tensors[f"{name}/known"])
    return memory if memory is None else memory_of(tensors)


def _take_served(
    served: Mapping[str, Tensor], rows: Mapping[str, PersonalRows], clients: list[str], first: int
) -> None:
    slots = dict(names_of(served))
    here = np.array([at for at, name in enumerate(clients) if name in slots], dtype=np.int64)
    there = torch.tensor([slots[clients[at]] for at in here], dtype=torch.int64)
    for name, own in rows.items():
        known = served[f"known/{name}"][there].numpy()
        each = np.arange(own.table.num_rows, dtype=np.int64)
        keys = torch.from_numpy(((here[known] + first)[:, None] * own.table.num_rows + each).ravel())
        old = (there.numpy()[known][:, None] * own.table.num_rows + each).ravel()
        own.put(keys, served[f"personal/{name}"][torch.from_numpy(old)])
        own.known[torch.from_numpy(here[known])] = True
