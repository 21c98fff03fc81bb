"""The configured pipeline with canaries in the place of clients, and what it released of them."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fedemb.atomic import write_atomically
from fedemb.build import Parts, assemble, build
from fedemb.config import command_settings, config_of
from fedemb.errors import SettingError
from fedemb.flower.client_app import make_client_app
from fedemb.flower.strategy import FederatedEmbedding
from fedemb.privacy.audit import Claimed, Finding, Float64, Released, as_json, audited
from fedemb.privacy.canaries import PUSH, CanaryTask, canary_data, canary_task
from fedemb.privacy.claim import Segment
from fedemb.privacy.guard import Guard
from fedemb.privacy.ledger import Ledger
from fedemb.privacy.settings import CENTRAL, DISTRIBUTED, EXAMPLE
from fedemb.run.in_process import in_process_grid
from fedemb.run.training import plan_of
from fedemb.stages.central_noise import CentralNoise
from fedemb.stages.distributed_noise import DistributedNoise
from fedemb.train.poisson import Sampling
from fedemb.types import Aggregator, Int64, Total, Updates

_EXAMPLE_CLIENTS = 4


@dataclass(frozen=True)
class AuditSettings:
    """Settings of ``fedemb audit``; defaults and reasons stand in ``conf/audit.yaml``.

    Raises:
        SettingError: If one is out of range.
    """

    canaries: int
    rounds: int
    confidence: float
    seed: int
    clients: int

    def __post_init__(self) -> None:
        for name, low in (("canaries", 100), ("rounds", 1), ("seed", 0), ("clients", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise SettingError(f"{name} must be a whole number, at least {low}, got {value!r}")
        if not isinstance(self.confidence, float) or not 0.5 <= self.confidence < 1:
            raise SettingError(f"confidence must be in [0.5, 1), got {self.confidence!r}; 0.95 is usual")


def settings_of(overrides: Sequence[str]) -> AuditSettings:
    """Settings of an audit.

    Raises:
        SettingError: If one is wrong.
    """
    return AuditSettings(**command_settings("audit", overrides))


def canary_parts(config: DictConfig, canaries: int, rounds: int, seed: int) -> Parts:
    """The parts of a run with canaries: trainer, stages, sampler, aggregator and claim as the configuration has them.

    Local steps are plain ones of length 1, so that a canary's push arrives as it is; cohorts are as large a share of
    the population as in the run, and the noise is that of the run.

    Args:
        config: Of a run with a claim of privacy.
        canaries: How many, at least: four clients have as many as each other where it is examples that are protected.
        rounds: That are to be run.
        seed: Of directions and of who takes part.

    Raises:
        SettingError: If the run claims nothing.
    """
    if config.privacy.name == "none":
        raise SettingError("fedemb audit needs a run with a claim of privacy, got privacy=none")
    parts = build(config)
    assert parts.protection is not None
    example = config.privacy.name == EXAMPLE
    canaries += -canaries % _EXAMPLE_CLIENTS
    changed = config.copy()
    population = parts.protection.claim.facts.participation.population
    share = canaries / max(1, population)
    OmegaConf.update(changed, "privacy.noise_multiplier", parts.protection.claim.noise_multiplier)
    for name, value in {"privacy.target_epsilon": None, "privacy.budget": None, "rounds": rounds}.items():
        OmegaConf.update(changed, name, value)
    OmegaConf.update(changed, "privacy.universe", "vocabulary")
    own: dict[str, Any] = {
        "optimizer": "sgd", "learning_rate": 1.0, "dense_learning_rate": None, "reduction": "sum", "max_step": None,
        "burn_in_rounds": 0, "decay": 1.0, "keep_state": False, "personal": "stateful", "share": 1.0,
    }  # fmt: skip
    if not example:
        own |= {"epochs": 1, "batch_size": 0}
    for key, value in own.items():
        OmegaConf.update(changed, f"train.{key}", value)
    if example:
        changed.cohort = OmegaConf.create({"_target_": "fedemb.cohort.Full"})
        changed.aggregate.weights = "uniform"
    elif "size" in changed.cohort:
        changed.cohort.size = max(1, round(changed.cohort.size * share))
    if changed.privacy.get("min_clients") is not None:
        changed.privacy.min_clients = max(1, round(changed.privacy.min_clients * share))
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    length = PUSH * float(config.privacy.clip_norm)
    task = canary_task(parts.shared, parts.task.dense, canaries, length, seed)
    changed.aggregate.weights = (
        "uniform" if changed.aggregate.weights == "capped" else changed.aggregate.weights
    )
    return assemble(
        changed, canary_data(included, _EXAMPLE_CLIENTS if example else canaries), task, torch.device("cpu")
    )


@dataclass
class _Recorder:
    """Stands in the place of the server's optimiser: keeps totals, and leaves the model where it is."""

    totals: list[Total] = field(default_factory=list)

    def step(self, tables: Mapping[str, Tensor], dense: Mapping[str, Tensor], total: Total) -> None:
        self.totals.append(total)

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing is kept."""


@dataclass
class _Seen:
    """An aggregator that also keeps what arrives of each client."""

    inner: Aggregator
    updates: list[Updates] = field(default_factory=list)

    def add(self, updates: Updates, tables: Mapping[str, Tensor]) -> None:
        self.updates.append(updates)
        self.inner.add(updates, tables)

    def finish(self, tables: Mapping[str, Tensor]) -> Total:
        return self.inner.finish(tables)


def run_canaries(parts: Parts, config: DictConfig, rounds: int) -> Released:
    """What a pipeline releases of its canaries, by the strategy, the nodes and the messages of every run.

    Args:
        parts: From ``canary_parts``, or changed since.
        config: Of the run.
        rounds: How many.
    """
    protection, task = parts.protection, parts.task
    assert protection is not None
    assert isinstance(task, CanaryTask)
    app = make_client_app(lambda context: parts.host(0, 1), lambda context: parts.digest)
    grid, recorder = in_process_grid(app, 1), _Recorder()
    seen: list[_Seen] = []
    settings, own = config.copy(), {"num_nodes": 1, "clients_per_wave": 1 << 40}
    for name, number in own.items():
        OmegaConf.update(settings, f"runner.{name}", number)
    settings.evaluate_every = settings.checkpoint_every = 0
    plan = plan_of(parts, settings, recorder, grid, Guard(protection, Ledger(None)))

    def watched(*arguments: Any) -> Aggregator:
        seen.append(_Seen(plan.aggregator_of(*arguments)))
        return seen[-1]

    clip_norm = protection.settings.clip_norm
    owner, along, sent = parts.dataset.train.owners(), [], []
    with tempfile.TemporaryDirectory() as folder:
        strategy = FederatedEmbedding(
            replace(plan, aggregator_of=watched), *parts.initial(), lambda line: None, privacy_folder=folder
        )
        strategy.prepare(grid)
        for round in range(1, rounds + 1):
            bound = plan.clip_norm or clip_norm
            seen[0].updates.clear()
            strategy.train_round(grid, round)
            arrived = seen[
                0
            ].updates  # of one node in one wave: all of the cohort at once, or nothing of nobody
            sent.append(
                np.isin(owner, arrived[0].clients) if arrived else np.zeros(len(owner), dtype=np.bool_)
            )
            if protection.settings.name in (CENTRAL, DISTRIBUTED):
                found = _along(task, recorder.totals[-1]) * protection.divisor
            else:
                found = _of_clients(task, arrived[0], owner) if arrived else np.zeros(len(owner))
            along.append(found / bound)
    return Released(np.stack(along), parts.dataset.train.columns["included"], np.stack(sent))


def _along(task: CanaryTask, total: Total) -> Float64:
    """What a total has of each canary ``(canaries,)`` along its direction."""
    found = torch.zeros(len(next(iter(task.directions.values()))), dtype=torch.float64)
    for table in task.tables:
        whole = torch.zeros((table.num_rows, table.dim), dtype=torch.float64)
        whole[total.tables[table.name].rows] = total.tables[table.name].steps.double()
        found += (whole[:-1] * task.directions[table.name]).sum(1)
    for part in task.dense:
        found += total.dense[part.name].double() * task.directions[part.name]
    return np.asarray(found.numpy())


def _of_clients(task: CanaryTask, updates: Updates, owner: Int64) -> Float64:
    """What each canary's own client sent of it ``(canaries,)``; zero of those that sent nothing."""
    canaries = torch.arange(len(owner))
    place = torch.from_numpy(np.searchsorted(updates.clients, owner)).clamp(max=len(updates.clients) - 1)
    there = torch.from_numpy(np.isin(owner, updates.clients))
    found = torch.zeros(len(owner), dtype=torch.float64)
    for table in task.tables:
        rows = updates.tables[table.name]
        whole = torch.zeros((len(updates.clients), table.num_rows, table.dim), dtype=torch.float64)
        client = torch.repeat_interleave(rows.offsets.diff())
        whole[client, rows.rows] = rows.values.double()
        found += (whole[place, canaries] * task.directions[table.name]).sum(1)
    for part in task.dense:
        found += updates.dense[part.name].double()[place, canaries] * task.directions[part.name]
    return np.asarray((found * there).numpy())


def claimed_of(parts: Parts, rounds: int) -> Claimed:
    """What these parts say of themselves, after so many rounds."""
    protection = parts.protection
    assert protection is not None
    settings, claim = protection.settings, protection.claim
    z, rate, steps = claim.noise_multiplier, 1.0, 1
    facts = claim.facts
    if settings.name == EXAMPLE:
        sampling = Sampling.of(facts.sizes, facts.batch_size)
        rate, steps = float(sampling.rate[0]), int(sampling.steps[0]) * facts.epochs
    elif settings.name == CENTRAL and facts.participation.kind in ("poisson", "fixed"):
        rate = facts.participation.size / facts.participation.population
    for stage in (*parts.stages, *parts.server_stages_of()):
        if isinstance(stage, CentralNoise):
            z = stage.noise_multiplier  # more than claimed where counts have a share of the budget
        if isinstance(stage, DistributedNoise):  # all of a cohort add their share, though fewer are enough
            whole = stage.variance * facts.participation.size
            z = math.sqrt(whole) * stage.grid / settings.clip_norm
    spent = claim.spent([Segment(1, rounds, claim.noise_multiplier)])
    return Claimed(spent, settings.delta, z, rate, steps, facts.bands, settings.accountant)


def audit(
    folder: Path, canaries: int, rounds: int, confidence: float, seed: int
) -> tuple[list[Finding], Claimed]:
    """An audit of a run's pipeline; ``audit.json`` in its folder holds the findings.

    What seems to refute the claim is looked at again with four times as many canaries, for three standard errors are
    passed by chance now and then, and counts only if that refutes it as well.

    Args:
        folder: Of a run with a claim of privacy.
        canaries: How many.
        rounds: Of the audit.
        confidence: Of lower bounds.
        seed: Of directions and of who takes part.

    Raises:
        SettingError: If the run claims nothing, or a number is out of range.
    """
    findings, claimed = audit_of(config_of(folder), canaries, rounds, confidence, seed)
    text = json.dumps(as_json(findings, claimed), indent=2)
    write_atomically(folder / "audit.json", lambda path: path.write_text(text))
    return findings, claimed


def audit_of(
    config: DictConfig, canaries: int, rounds: int, confidence: float, seed: int
) -> tuple[list[Finding], Claimed]:
    """An audit of a configuration; arguments as those of ``audit``."""
    findings, claimed = _audited(config, canaries, rounds, confidence, seed)
    if any(finding.refutes for finding in findings):
        findings, claimed = _audited(config, 4 * canaries, rounds, confidence, seed + 1)
    return findings, claimed


def _audited(
    config: DictConfig, canaries: int, rounds: int, confidence: float, seed: int
) -> tuple[list[Finding], Claimed]:
    parts = canary_parts(config, canaries, rounds, seed)
    claimed = claimed_of(parts, rounds)
    return audited(run_canaries(parts, config, rounds), claimed, confidence), claimed
