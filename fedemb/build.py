"""The only door from configuration to objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from fedemb.aggregate.plain import Plain
from fedemb.checked import checked
from fedemb.config import config_of, digest, explain
from fedemb.data.declared import read_vocabulary
from fedemb.data.known import with_names_of
from fedemb.errors import DataError, SettingError
from fedemb.evaluate.choose import evaluation_for, known_when_measured
from fedemb.evaluate.confidence import Calibration
from fedemb.gaussian import Gaussian
from fedemb.model import Run
from fedemb.privacy.checks import check_privacy
from fedemb.privacy.pipeline import Protection, universe_of
from fedemb.privacy.select import Selection
from fedemb.privacy.settings import NONE, AdaptiveSettings, PrivacySettings
from fedemb.server.optimizers import RowOptimizer, Settings
from fedemb.server.posterior import Posterior, check_evidence
from fedemb.server.prior import RandomWalk
from fedemb.stages.clip import Clip
from fedemb.stages.weight import Weight
from fedemb.train.host import Host, hosted_range
from fedemb.train.initial import initial_dense, initial_table
from fedemb.train.optimizers import OPTIMIZERS
from fedemb.train.reconstruct import Reconstructing
from fedemb.train.rows import RECONSTRUCTED, LocalTraining
from fedemb.types import Aggregator, CohortSampler, Dataset, Evaluation, ServerOptimizer, Stage, Table, Task

Stamps: TypeAlias = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of, at server and nodes alike.

    Attributes:
        dataset: Prepared data.
        task: What is learnt.
        sampler: Who takes part.
        training: How clients train.
        stages: What happens to updates on the way, their client halves.
        server_stages_of: Fresh stages whose server halves run on totals; they may remember rounds.
        aggregator_of: The aggregator, given ``(num_rows,)`` holders per table and the number of clients.
        want_holders: Whether it needs the holders.
        optimizer_of: A fresh server optimiser.
        evaluation: How the model is measured; None where there is nothing to measure it on.
        seed: The run's seed.
        digest: Digest of the configuration.
        device: Where tables live.
        protection: The mode of privacy; None where nobody is protected.
    """

    dataset: Dataset
    task: Task
    sampler: CohortSampler
    training: LocalTraining
    stages: tuple[Stage, ...]
    server_stages_of: Callable[[], tuple[Stage, ...]]
    aggregator_of: Callable[[dict[str, Tensor], int], Aggregator]
    want_holders: bool
    optimizer_of: Callable[[], ServerOptimizer]
    evaluation: Evaluation | None
    seed: int
    digest: str
    device: torch.device
    protection: Protection | None = None
    _hosts: dict[tuple[int, int], Host] = field(default_factory=dict, repr=False)

    @property
    def shared(self) -> tuple[Table, ...]:
        return tuple(table for table in self.task.tables if table.shared)

    @property
    def shapes(self) -> str:
        """All tables in words, and the noise, for the handshake."""
        tables = ",".join(f"{t.name}={t.num_rows}x{t.dim}" for t in self.task.tables)
        return (
            tables
            if self.protection is None
            else f"{tables},noise={self.protection.claim.noise_multiplier:.6g}"
        )

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
            if local is not None and self.training.personal == RECONSTRUCTED:
                known = self.task.examples(known_when_measured(local, self.dataset))
                local = Reconstructing(local, self.task, known, self.training, self.seed)
            host = Host(
                self.task,
                shards,
                first,
                self.training,
                self.stages,
                local,
                self.seed,
                self.shapes,
                self.protection,
            )
            self._hosts[node, num_nodes] = host
        return self._hosts[node, num_nodes]


def _instantiate(group: str, node: Any, **extra: Any) -> Any:
    """The object that a config node names, with the error that its constructor raised.

    ``extra`` goes to the constructor as it is: Hydra would turn a dataclass into a config.
    """
    try:
        make = instantiate(node, _convert_="all", _partial_=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(explain(error)) from error
    return checked(group, make.func, **make.keywords, **extra)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"device must be cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device={name} needs a GPU, and none is available here; use device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SettingError(f"device must name one of {count} GPUs, from cuda:0 on, got {name}")
    return device


def _training(settings: DictConfig) -> LocalTraining:
    plain: dict[str, Any] = {str(k): v for k, v in settings.items()}
    name = plain.pop("optimizer")
    if name not in OPTIMIZERS:
        raise SettingError(f"train.optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    made: LocalTraining = checked("train", LocalTraining, optimizer=OPTIMIZERS[name](), **plain)
    return made


def load_data(config: DictConfig) -> Dataset:
    """The prepared data; the last two are kept, so that runs and ablations that share them read them once.

    Raises:
        DataError: If they cannot be used, or nobody has an example.
    """
    own = {n: OmegaConf.to_container(config[n], resolve=True) for n in ("data", "partition")}
    return _loaded(OmegaConf.to_yaml(OmegaConf.create({**own, "seed": config.seed})), _stamps(config))


@lru_cache(maxsize=2)
def _loaded(text: str, stamps: Stamps) -> Dataset:
    config = OmegaConf.create(text)
    partition = _instantiate("partition", config.partition)
    source = _instantiate("data", config.data)
    dataset: Dataset = source.load(partition, int(config.seed))
    if not dataset.train.num_examples:
        raise DataError("no training example is left: check data.path, data.min_count and the split")
    return dataset


def _stamps(config: DictConfig) -> Stamps:
    """Path, size and time of change of the files that the settings of the data name or whose folder they name, and of
    the model that is taken up.
    """
    paths = [Path(name) for name in _leaves(OmegaConf.to_container(config.data, resolve=True)) if name]
    if config.get("resume"):
        paths.append(Path(config.resume) / "model")
    return tuple(stamp for path in paths for stamp in _stamps_of(path))


def _stamps_of(path: Path) -> Stamps:
    """Those of a file, or of a folder's files; none of what is neither, for most settings are no path."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [(str(file), file.stat()) for file in files if file.is_file()]
    except OSError:  # too long for a name, or not to be looked at: whoever reads it says so
        return ()
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def _leaves(value: Any) -> Iterator[str]:
    """All strings among nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)


@lru_cache(maxsize=1)
def _cached(text: str, stamps: Stamps) -> Parts:
    return _build(OmegaConf.create(text))


def build(config: DictConfig) -> Parts:
    """All parts of a run, built once for a configuration.

    Raises:
        SettingError: If a setting is wrong.
        DataError: If the data are.
    """
    plain = OmegaConf.create({str(k): v for k, v in config.items() if k != "hydra"})
    return _cached(OmegaConf.to_yaml(plain, resolve=True), _stamps(config))


def rebuild(folder: Path, dataset: Dataset) -> tuple[Task, LocalTraining, int]:
    """Task, local training and seed of a finished run, from its own configuration.

    Args:
        folder: The run folder.
        dataset: What is known of its data without reading them again.

    Raises:
        SettingError: If the task needs to see its data.
        DataError: If the configuration is not there.
    """
    config = config_of(folder)
    task: Task = _instantiate("task", config.task, dataset=dataset)
    return task, _training(config.train), int(config.seed)


def _evaluation(config: Any, task: Task, dataset: Dataset) -> Evaluation | None:
    settings: dict[str, Any] = {str(k): v for k, v in config.evaluation.items()}
    calibrate = settings.pop("calibrate")
    wanted = {name: settings.pop(name) for name in ("alpha", "bins")}
    calibration = checked(
        "evaluation",
        Calibration.of,
        calibrate=OmegaConf.to_container(calibrate) if OmegaConf.is_config(calibrate) else calibrate,
        **wanted,
    )
    found: Evaluation | None = checked(
        "evaluation",
        evaluation_for,
        task=task,
        dataset=dataset,
        seed=int(config.seed),
        calibration=calibration,
        **settings,
    )
    return found


def _build(config: Any) -> Parts:
    device = _device(config.device)  # before data are read, which can take minutes
    dataset = load_data(config)
    if config.resume and (Path(config.resume) / "model" / "model.json").is_file():
        begun = Run(Path(config.resume))
        dataset = with_names_of(dataset, begun.vocabularies)
        if begun.facts.get("slices"):
            dataset = replace(dataset, slices=np.array(begun.facts["slices"], dtype=np.int64))
    task: Task = _instantiate("task", config.task, dataset=dataset)
    return assemble(config, dataset, task, device)


def assemble(config: Any, dataset: Dataset, task: Task, device: torch.device) -> Parts:
    """All parts of a run on these data, as the configuration has them: its data and its task are not asked.

    Raises:
        SettingError: If a setting is wrong.
    """
    sampler = _instantiate("cohort", config.cohort)
    num_eligible = int((dataset.train.sizes > 0).sum())
    sampler.check(num_eligible)
    aggregate = config.aggregate
    weight = checked("aggregate", Weight, by=aggregate.weights, cap=aggregate.weight_cap)
    if aggregate.rows in ("sum", "population") and aggregate.weights == "examples":
        raise SettingError(
            f"aggregate.rows={aggregate.rows} adds updates up, so aggregate.weights must be uniform or capped, "
            "got examples"
        )
    shared = tuple(table for table in task.tables if table.shared)
    checked("aggregate", Plain, tables=shared, rows=aggregate.rows, mean=aggregate.mean)

    training = _training(config.train)
    protection = _protection(config, dataset, task, sampler, training, device)
    stages: tuple[Stage, ...] = (weight,)
    if protection is not None:
        stages = protection.client_stages(weight)
        training = replace(training, privacy=protection.example_privacy())
    elif aggregate.get("clip_norm") is not None:
        stages = (checked("aggregate", Clip, clip_norm=aggregate.clip_norm), weight)

    def aggregator_of(holders: dict[str, Tensor], num_clients: int) -> Aggregator:
        if protection is not None and aggregate.name == "secure":
            return protection.aggregator()
        public = None if protection is None or training.privacy is not None else protection.divisor
        return Plain(shared, aggregate.rows, aggregate.mean, holders, num_clients, public)

    server: dict[str, Any] = {str(k): v for k, v in config.server.items()}
    rule = server.pop("optimizer")
    settings = checked("server", Settings, **server)
    checked("server", RowOptimizer, tables=shared, rule=rule, settings=settings)

    def optimizer_of() -> ServerOptimizer:
        plain = RowOptimizer(shared, rule, settings)
        if any(isinstance(table.manifold, Gaussian) for table in shared):
            return Posterior(plain, shared)
        return RandomWalk(plain, shared) if any(table.num_slices > 1 for table in shared) else plain

    if any(isinstance(table.manifold, Gaussian) for table in task.tables):
        check_evidence(
            training,
            aggregate.rows,
            aggregate.weights,
            sampler.participation(num_eligible).size < num_eligible,
        )
    if training.personal == RECONSTRUCTED and len(shared) == len(task.tables):
        raise SettingError(
            "train.personal=reconstructed needs a task with personal tables, such as task=factorization; "
            "use train.personal=stateful"
        )
    measured = protection is None or not protection.hides_metrics
    return Parts(
        dataset=dataset,
        task=task,
        sampler=sampler,
        training=training,
        stages=stages,
        server_stages_of=(lambda: ()) if protection is None else protection.server_stages,
        aggregator_of=aggregator_of,
        want_holders=aggregate.rows in ("heat", "population"),
        optimizer_of=optimizer_of,
        evaluation=_evaluation(config, task, dataset) if measured else None,
        seed=int(config.seed),
        digest=digest(config),
        device=device,
        protection=protection,
    )


def _protection(
    config: Any,
    dataset: Dataset,
    task: Task,
    sampler: CohortSampler,
    training: LocalTraining,
    device: torch.device,
) -> Protection | None:
    """The mode of privacy, once it is sure that all other settings go with it; None: nobody is protected."""
    wanted = _plain(config.privacy)
    for name, make in (("adaptive_clip", AdaptiveSettings), ("selection", Selection)):
        if isinstance(wanted.get(name), dict):
            wanted[name] = checked(f"privacy.{name}", make, **wanted[name])
        elif wanted.get(name) is not None:
            raise SettingError(
                f"privacy.{name} must be settings such as {{name: value}}, got {wanted[name]!r}"
            )
    settings = checked("privacy", PrivacySettings, **wanted)
    sizes = task.examples(dataset.train).sizes
    participation = sampler.participation(int((sizes > 0).sum()))
    beside = {"baselines": list(config.baselines), "ablations": list(config.ablations or {})}
    aggregate, deployed = _plain(config.aggregate), config.runner.name == "deployment"
    check_privacy(settings, task, _plain(config.task), training, aggregate, participation, deployed, beside)
    if settings.name == NONE:
        return None
    shared = tuple(table for table in task.tables if table.shared)
    names = dataset.vocabularies[shared[0].entity] if shared else None
    universe = checked(
        "privacy",
        universe_of,
        settings=settings,
        tables=shared,
        index=lambda path: names.index(read_vocabulary(path).names) if names is not None else None,
    )
    made: Protection = checked(
        "privacy",
        Protection.of,
        settings=settings,
        tables=shared,
        dense=task.dense,
        universe=universe,
        sampler=sampler,
        sizes=sizes,
        epochs=training.epochs,
        batch_size=training.batch_size,
        rounds=int(config.rounds),
        rows=aggregate["rows"],
        ring_bits=aggregate.get("ring", 32),
        seed=int(config.seed),
        device=device,
    )
    return made


def _plain(node: Any) -> dict[str, Any]:
    """A config node as a mapping of plain values."""
    return {str(k): v for k, v in OmegaConf.to_container(node, resolve=True).items()}  # type: ignore[union-attr]
