"""What a node does for the clients that it hosts: one organisation, or all of a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedemb.atomic import write_atomically
from fedemb.data.shards import Shards
from fedemb.errors import RunError
from fedemb.evaluate.measure import measured
from fedemb.evaluate.spread import added, overall
from fedemb.privacy.pipeline import Protection
from fedemb.privacy.select import votes_of
from fedemb.privacy.settings import DISTRIBUTED, LOCAL
from fedemb.stages import on_clients
from fedemb.train.apply import apply_
from fedemb.train.epochs import observed
from fedemb.train.optimizers import OptimizerMemory
from fedemb.train.personal import PersonalRows, rows_of
from fedemb.train.reconstruct import train_clients
from fedemb.train.rows import RECONSTRUCTED, LocalTraining, concatenate
from fedemb.types import Evaluated, Evaluation, Fitted, Int64, Stage, StageContext, Table, Task, Updates


@dataclass(frozen=True)
class Host:
    """The clients ``first .. first + num_clients - 1`` of a run.

    Attributes:
        task: What they learn.
        shards: Their data, in order.
        first: Id of the first one.
        training: How they train.
        stages: Client halves that run on their updates.
        evaluation: Measures the model on their own data; None if that is done at the server.
        seed: The run's seed.
        shapes: What the node believes the model to be, in words.
        protection: The mode of privacy; None: nobody is protected.
    """

    task: Task
    shards: Shards
    first: int
    training: LocalTraining
    stages: Sequence[Stage]
    evaluation: Evaluation | None
    seed: int
    shapes: str = ""
    protection: Protection | None = None

    @property
    def num_clients(self) -> int:
        return self.shards.num_clients

    @property
    def sizes(self) -> Int64:
        """Training examples ``(clients,)`` that the server may know of: one of each client that has any, where even
        their number is protected from it.
        """
        sizes = self.examples.sizes
        protected = self.protection is not None and self.protection.settings.name in (DISTRIBUTED, LOCAL)
        return np.minimum(sizes, 1) if protected else sizes

    @property
    def kept_tables(self) -> tuple[Table, ...]:
        """The tables whose rows stay with the clients between rounds."""
        forgotten = self.training.personal == RECONSTRUCTED
        return tuple(table for table in self.task.tables if not table.shared and not forgotten)

    @cached_property
    def examples(self) -> Shards:
        """Training examples of the hosted clients."""
        return self.task.examples(self.shards)

    def train(
        self,
        tables: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        personal: Mapping[str, PersonalRows],
        clients: Int64,
        round: int,
        memory: OptimizerMemory | None = None,
        clip_norm: float | None = None,
    ) -> Updates:
        """Updates of these clients after the client half of every stage; ``clip_norm``: the bound of this round."""
        context = StageContext(self.seed, round, clip_norm)
        cohort = self.examples.take(clients - self.first)
        parts = train_clients(
            self.task, tables, dense, personal, cohort, clients, self.training, self.seed, round, memory
        )
        return concatenate([on_clients(self.stages, part, context) for part in parts])

    def fit_sums(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, PersonalRows], clients: Int64
    ) -> Mapping[str, Int64]:
        """What these clients add up so that the evaluation can fit what it needs; nothing if that needs nothing."""
        if not isinstance(self.evaluation, Fitted):
            return {}
        return self.evaluation.fit_sums(tables, rows_of(personal, clients, self.seed, tables), clients)

    def evaluate(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, PersonalRows], clients: Int64
    ) -> Evaluated:
        """The model measured on these clients' own data; ``tables`` with dense parameters and what was fitted."""
        if self.evaluation is None:
            return Evaluated({}, {}, clients)
        return self.evaluation(tables, rows_of(personal, clients, self.seed, tables), clients)

    def evaluate_fine_tuned(
        self,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, PersonalRows],
        clients: Int64,
        round: int,
        memory: OptimizerMemory | None = None,
    ) -> Evaluated:
        """Every client's own copy measured on its data: the model after more passes over these data, then thrown away.

        One client after another, for each has a copy of all tables while it is measured.
        """
        if self.evaluation is None:
            return Evaluated({}, {}, clients)
        results = [self._fine_tuned(tables, personal, client, round, memory) for client in clients[:, None]]
        per_client = {n: np.concatenate([r.per_client[n] for r in results]) for n in results[0].per_client}
        weights = [result.weights for result in results if result.weights is not None]
        whole = np.concatenate(weights) if weights else None
        sums = added([result.sums for result in results])
        metrics = overall(self.evaluation, per_client, whole, [sums])
        return Evaluated(metrics, per_client, clients, whole, sums)

    def _fine_tuned(
        self,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, PersonalRows],
        client: Int64,
        round: int,
        memory: OptimizerMemory | None,
    ) -> Evaluated:
        assert self.evaluation is not None
        copies = {name: table.clone() for name, table in tables.items()}
        rows = {name: stored.alone(int(client[0])) for name, stored in personal.items()}
        shard = self.examples.take(client - self.first)
        training = replace(self.training, epochs=self.training.fine_tune_epochs)
        own = None if memory is None else memory.copy()
        parts = train_clients(self.task, copies, copies, rows, shard, client, training, self.seed, round, own)
        for updates in list(parts):
            apply_(self.task.tables, copies, copies, updates)
        return measured(self.evaluation, copies, rows_of(rows, client, self.seed, copies), client)

    def _lookups(self) -> tuple[dict[str, Tensor], Tensor]:
        """Per shared table rows ``(examples, k)`` that examples name, and the place ``(examples,)`` of their client."""
        shards = self.examples
        columns = {name: torch.from_numpy(column) for name, column in shards.columns.items()}
        draws = torch.zeros((shards.num_examples, self.task.num_draws), dtype=torch.float64)
        sampled = {**self.task.sample(columns, draws)}
        sampled.pop("keep", None)
        lookups = self.task.lookup(sampled)
        shared = [table.name for table in self.task.tables if table.shared]
        found = {name: observed(lookups[name], sampled) for name in shared}
        return found, torch.from_numpy(shards.owners())

    def holders(self) -> dict[str, Tensor]:
        """How many hosted clients hold each row of each shared table in their examples: ``(num_rows,)``."""
        lookups, client = self._lookups()
        counts = {}
        for table in self.task.tables:
            if table.shared:
                held = torch.unique(lookups[table.name] + (client * table.num_rows)[:, None])
                counts[table.name] = torch.bincount(held % table.num_rows, minlength=table.num_rows)
        return counts

    def votes(self) -> Tensor:
        """Votes of hosted clients for the rows that a universe is chosen from, those of the main entity."""
        assert self.protection is not None
        assert self.protection.selection is not None
        tables, (lookups, client) = self.protection.layout.tables, self._lookups()
        own = [table for table in tables if table.entity == tables[0].entity]
        num_rows = tables[0].num_rows // tables[0].num_slices
        ids = torch.cat([lookups[table.name] // table.num_slices for table in own], 1)
        held, selection = _held(ids, client, num_rows, self.first), self.protection.selection
        return votes_of(held, num_rows, selection.most_rows, self.protection.noise.coins(self.seed))


def _held(ids: Tensor, client: Tensor, num_rows: int, first: int) -> dict[int, Int64]:
    """Different rows by client id, from ids ``(examples, k)`` and the place of each example's client."""
    keys = torch.unique(ids + (client * num_rows)[:, None])
    owner, rows = (keys // num_rows).numpy(), (keys % num_rows).numpy()
    starts = np.searchsorted(owner, np.unique(owner))
    return {int(owner[s]) + first: part for s, part in zip(starts, np.split(rows, starts[1:]), strict=True)}


def save_kept(
    path: Path, personal: Mapping[str, PersonalRows], memory: OptimizerMemory | None, round: int
) -> None:
    """Writes what only the node knows to its own disk, whole or not at all: personal rows, optimisers' state."""
    tensors = {}
    for name, rows in personal.items():
        tensors[f"{name}/points"], tensors[f"{name}/known"] = rows.points, rows.known
    if memory is not None:
        tensors |= {name: value.cpu() for name, value in memory_tensors(memory).items()}
    if not tensors:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata={"round": str(round)}))


def load_kept(path: Path, personal: Mapping[str, PersonalRows], keep_state: bool) -> OptimizerMemory | None:
    """Takes up what ``save_kept`` wrote: personal rows in place, and the optimisers' state.

    Raises:
        RunError: If it is missing.
    """
    if not personal and not keep_state:
        return None
    if not path.is_file():
        raise RunError(f"cannot resume: what the node kept is missing ({path})")
    tensors = load_file(path)
    for name, rows in personal.items():
        rows.points.copy_(tensors[f"{name}/points"])
        rows.known.copy_(tensors[f"{name}/known"])
    return memory_of(tensors) if keep_state else None


_OPTIMIZER = "optimizer/"


def memory_tensors(memory: OptimizerMemory) -> dict[str, Tensor]:
    """All of a memory by name: ``optimizer/TABLE/`` and ``rows`` or the name of the state."""
    tensors = {f"{_OPTIMIZER}{table}/rows": rows for table, rows in memory.rows.items()}
    for table, state in memory.state.items():
        tensors |= {f"{_OPTIMIZER}{table}/{name}": value for name, value in state.items()}
    return tensors


def memory_of(tensors: Mapping[str, Tensor]) -> OptimizerMemory:
    """The memory that ``memory_tensors`` named."""
    memory = OptimizerMemory()
    for key, value in tensors.items():
        if key.startswith(_OPTIMIZER):
            table, _, name = key.removeprefix(_OPTIMIZER).rpartition("/")
            if name == "rows":
                memory.rows[table] = value
                memory.state.setdefault(table, {})
            else:
                memory.state.setdefault(table, {})[name] = value
    return memory


def hosted_range(num_clients: int, node: int, num_nodes: int) -> tuple[int, int]:
    """First and last-but-one client of a node: contiguous ranges, as even as they get.

    >>> [hosted_range(5, node, 2) for node in range(2)]
    [(0, 3), (3, 5)]
    """
    bounds = np.linspace(0, num_clients, num_nodes + 1)
    return int(np.ceil(bounds[node])), int(np.ceil(bounds[node + 1]))
