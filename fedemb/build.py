"""The only door from configuration to objects."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from fedemb.aggregate.plain import Plain
from fedemb.config import digest, explain
from fedemb.errors import DataError, SettingError
from fedemb.evaluate.choose import evaluation_for
from fedemb.server.optimizers import RowOptimizer, Settings
from fedemb.stages.clip import Clip
from fedemb.stages.weight import Weight
from fedemb.train.host import Host, hosted_range
from fedemb.train.initial import initial_dense, initial_table
from fedemb.train.optimizers import OPTIMIZERS
from fedemb.train.rows import LocalTraining
from fedemb.types import Aggregator, CohortSampler, Dataset, Evaluation, ServerOptimizer, Stage, Table, Task


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of, at server and nodes alike.

    Attributes:
        dataset: Prepared data.
        task: What is learnt.
        sampler: Who takes part.
        training: How clients train.
        stages: What happens to updates on the way.
        aggregator_of: The aggregator, given ``(num_rows,)`` holders per table and the number of clients.
        want_holders: Whether it needs the holders.
        optimizer_of: A fresh server optimiser.
        evaluation: How the model is measured; None where there is nothing to measure it on.
        seed: The run's seed.
        digest: Digest of the configuration.
        device: Where tables live.
    """

    dataset: Dataset
    task: Task
    sampler: CohortSampler
    training: LocalTraining
    stages: tuple[Stage, ...]
    aggregator_of: Callable[[dict[str, Tensor], int], Aggregator]
    want_holders: bool
    optimizer_of: Callable[[], ServerOptimizer]
    evaluation: Evaluation | None
    seed: int
    digest: str
    device: torch.device
    _hosts: dict[tuple[int, int], Host] = field(default_factory=dict, repr=False)

    @property
    def shared(self) -> tuple[Table, ...]:
        return tuple(table for table in self.task.tables if table.shared)

    @property
    def shapes(self) -> str:
        """All tables in words, for the handshake."""
        return ",".join(f"{t.name}={t.num_rows}x{t.dim}" for t in self.task.tables)

    def initial(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Shared tables and dense parameters before the first round."""
        tables = {t.name: initial_table(t, self.seed).to(self.device) for t in self.shared}
        return tables, {d.name: initial_dense(d, self.seed).to(self.device) for d in self.task.dense}

    def host(self, node: int, num_nodes: int) -> Host:
        """The clients of one node."""
        if (node, num_nodes) not in self._hosts:
            train = self.dataset.train
            first, stop = hosted_range(train.num_clients, node, num_nodes)
            shards = train if num_nodes == 1 else train.take(np.arange(first, stop, dtype=np.int64))
            local = self.evaluation if self.evaluation is not None and self.evaluation.on_clients else None
            host = Host(self.task, shards, first, self.training, self.stages, local, self.seed)
            self._hosts[node, num_nodes] = host
        return self._hosts[node, num_nodes]


def _instantiate(node: Any, **extra: Any) -> Any:
    """The object that a config node names, with the error that its constructor raised.

    ``extra`` goes to the constructor as it is: Hydra would turn a dataclass into a config.
    """
    try:
        make = instantiate(node, _convert_="all", _partial_=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(explain(error)) from error
    try:
        return make(**extra)
    except (SettingError, DataError):
        raise
    except (ValueError, TypeError) as error:
        raise SettingError(_as_setting(str(error), node)) from error


def _as_setting(message: str, node: Any) -> str:
    """A constructor's complaint about an argument, in the words of settings."""
    found = re.search(r"unexpected keyword argument '(\w+)'", message)
    return f"{found[1]} is not a setting of {node._target_}" if found else message.splitlines()[0]


def _checked(make: Callable[..., Any], **settings: Any) -> Any:
    try:
        return make(**settings)
    except (ValueError, TypeError) as error:
        raise SettingError(str(error)) from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"device must be cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device={name} needs a GPU, and none is available here; use device=cpu")
    return device


def _training(settings: DictConfig) -> LocalTraining:
    plain: dict[str, Any] = {str(k): v for k, v in settings.items()}
    name = plain.pop("optimizer")
    if name not in OPTIMIZERS:
        raise SettingError(f"train.optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    made: LocalTraining = _checked(LocalTraining, optimizer=OPTIMIZERS[name](), **plain)
    return made


def load_data(config: DictConfig) -> Dataset:
    """The prepared data.

    Raises:
        DataError: If they cannot be used, or nobody has an example.
    """
    partition = _instantiate(config.partition)
    source = _instantiate(config.data)
    dataset: Dataset = source.load(partition, int(config.seed))
    if not dataset.train.num_examples:
        raise DataError("no training example is left: check data.path, data.min_count and the split")
    return dataset


@lru_cache(maxsize=1)
def _cached(text: str) -> Parts:
    return _build(OmegaConf.create(text))


def build(config: DictConfig) -> Parts:
    """All parts of a run, built once for a configuration.

    Raises:
        SettingError: If a setting is wrong.
        DataError: If the data are.
    """
    plain = OmegaConf.create({str(k): v for k, v in config.items() if k != "hydra"})
    return _cached(OmegaConf.to_yaml(plain, resolve=True))


def _build(config: Any) -> Parts:
    dataset = load_data(config)
    task: Task = _instantiate(config.task, dataset=dataset)
    sampler = _instantiate(config.cohort)
    sampler.check(int((dataset.train.sizes > 0).sum()))
    aggregate = config.aggregate
    stages: list[Stage] = []
    if aggregate.clip_norm is not None:
        stages.append(_checked(Clip, clip_norm=aggregate.clip_norm))
    stages.append(_checked(Weight, by=aggregate.weights, cap=aggregate.weight_cap))
    if aggregate.rows == "sum" and aggregate.weights == "examples":
        raise SettingError(
            "aggregate.rows=sum adds updates up, so aggregate.weights must be uniform or capped, got examples"
        )
    shared = tuple(table for table in task.tables if table.shared)
    _checked(Plain, tables=shared, rows=aggregate.rows, mean=aggregate.mean)

    def aggregator_of(holders: dict[str, Tensor], num_clients: int) -> Aggregator:
        return Plain(shared, aggregate.rows, aggregate.mean, holders, num_clients)

    server: dict[str, Any] = {str(k): v for k, v in config.server.items()}
    rule = server.pop("optimizer")
    settings = _checked(Settings, **server)
    _checked(RowOptimizer, tables=shared, rule=rule, settings=settings)
    return Parts(
        dataset=dataset,
        task=task,
        sampler=sampler,
        training=_training(config.train),
        stages=tuple(stages),
        aggregator_of=aggregator_of,
        want_holders=aggregate.rows == "heat",
        optimizer_of=lambda: RowOptimizer(shared, rule, settings),
        evaluation=evaluation_for(task, dataset),
        seed=int(config.seed),
        digest=digest(config),
        device=_device(config.device),
    )
