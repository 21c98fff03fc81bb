"""The federated part of a run, on whatever grid a runner brings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid
from omegaconf import DictConfig
from torch import Tensor

from fedemb.build import Parts
from fedemb.flower.client_app import make_client_app
from fedemb.flower.nodes import Nodes
from fedemb.flower.plan import Plan, Tally
from fedemb.flower.strategy import FederatedEmbedding
from fedemb.privacy.guard import Guard
from fedemb.privacy.ledger import Ledger, read_ledger
from fedemb.run.in_process import InProcessGrid, in_process_grid
from fedemb.run.resume import carry_kept, find, meaning_of
from fedemb.run.simulation import run_on_simulation
from fedemb.server.checkpoint import Checkpoint, save_checkpoint
from fedemb.train.rows import STATEFUL
from fedemb.types import Aggregator, Evaluated, MetricsSink, ServerOptimizer, Stateful

FINE_TUNED = "fine_tuned"  # the baseline that measures clients' own copies


@dataclass
class Trained:
    """A model and how it came about; also what is there when a run is interrupted.

    Attributes:
        tables: Shared tables.
        dense: Dense parameters.
        tally: Running counts.
        evaluated: The last measurement.
        fitted: What it fitted to the model as it stands.
        fine_tuned: Measurement of clients' own copies, where the run asks for it.
        finished_rounds: Rounds that are done.
        interrupted: Whether Ctrl-C or SIGTERM ended it.
        guard: Who kept the books of privacy; None: nobody was protected.
        universe: Per table the rows ``(num_rows,)`` bool that were chosen under privacy, if they were.
    """

    tables: dict[str, Tensor]
    dense: dict[str, Tensor]
    tally: Tally = field(default_factory=Tally)
    evaluated: Evaluated | None = None
    fitted: dict[str, Tensor] = field(default_factory=dict)
    fine_tuned: Evaluated | None = None
    finished_rounds: int = 0
    interrupted: bool = False
    guard: Guard | None = None
    universe: Mapping[str, Tensor] = field(default_factory=dict)


def plan_of(
    parts: Parts,
    config: DictConfig,
    optimizer: ServerOptimizer,
    grid: Grid,
    guard: Guard | None = None,
) -> Plan:
    """What the strategy needs to know."""

    def aggregator_of(nodes: Nodes) -> Aggregator:
        return parts.aggregator_of(dict(nodes.holders), len(nodes.sizes))

    return Plan(
        tables=parts.shared,
        sampler=parts.sampler,
        aggregator_of=aggregator_of,
        stages=parts.server_stages_of(),
        optimizer=optimizer,
        evaluation=parts.evaluation,
        seed=parts.seed,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        num_nodes=config.runner.num_nodes,
        clients_per_wave=config.runner.clients_per_wave,
        timeout_seconds=config.runner.timeout_seconds,
        digest=parts.digest,
        shapes=parts.shapes,
        want_holders=parts.want_holders,
        by_reference=isinstance(grid, InProcessGrid) and config.runner.name == "in_process",
        guard=guard,
    )


def _remembering(plan: Plan) -> list[Stateful]:
    """Stages with something to remember; one at the most of each name."""
    return [stage for stage in plan.stages if isinstance(stage, Stateful)]


def _tensors(strategy: FederatedEmbedding, optimizer: ServerOptimizer) -> dict[str, Tensor]:
    tensors = {f"table/{name}": value for name, value in strategy.tables.items()}
    tensors |= {f"dense/{name}": value for name, value in strategy.dense.items()}
    for stage in _remembering(strategy.plan):
        tensors |= {f"stage/{stage.name}/{name}": value for name, value in stage.state().items()}
    return tensors | {f"optimizer/{name}": value for name, value in optimizer.state().items()}


def _restore(config: DictConfig, own: Path, parts: Parts, trained: Trained, plan: Plan) -> tuple[int, Tally]:
    """Takes a run up; returns its last finished round and counts."""
    folder = Path(config.resume)
    resumed = find(folder, config, parts)
    found = resumed.checkpoint
    for name, value in found.tensors.items():
        kind, _, key = name.partition("/")
        if kind in ("table", "dense"):
            (trained.tables if kind == "table" else trained.dense)[key].copy_(value)
    state = {n.removeprefix("optimizer/"): v for n, v in found.tensors.items() if n.startswith("optimizer/")}
    plan.optimizer.restore({name: value.to(parts.device) for name, value in state.items()})
    for stage in _remembering(plan):
        prefix = f"stage/{stage.name}/"
        stage.restore({n.removeprefix(prefix): v for n, v in found.tensors.items() if n.startswith(prefix)})
    own.mkdir(parents=True, exist_ok=True)
    if resumed.kept_round is None or resumed.served is not None:
        carry_kept(folder, own, parts, config.runner.num_nodes, resumed)
        return found.round, Tally(**found.tally)
    source = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if source.resolve() != own.resolve():
        for personal in source.glob(f"personal-*-{found.round}.safetensors"):
            shutil.copy2(personal, own / personal.name)
    return found.round, Tally(**found.tally)


def train_on(
    grid: Grid, parts: Parts, config: DictConfig, folder: Path, on_round: MetricsSink, trained: Trained
) -> None:
    """Runs the strategy on a grid and keeps ``trained`` up to date, also when it is interrupted."""
    optimizer = parts.optimizer_of()
    own, books = folder / "checkpoint", folder / "privacy"
    first, tally = 1, Tally()
    if parts.protection is not None:
        trained.guard = Guard(parts.protection, Ledger(books))
    plan = plan_of(parts, config, optimizer, grid, trained.guard)
    if config.resume:
        last, tally = _restore(config, own, parts, trained, plan)
        carry_metrics(Path(config.resume), folder, last)
        first = last + 1
        if Path(config.resume).resolve() != folder.resolve():
            carry_books(Path(config.resume) / "privacy", books)
    if trained.guard is not None:
        noise_multiplier = trained.guard.protection.claim.noise_multiplier
        trained.guard.ledger = read_ledger(books, first - 1, noise_multiplier)
    stateful = parts.training.personal == STATEFUL and any(not table.shared for table in parts.task.tables)
    keeps = parts.training.keep_state or stateful

    def on_checkpoint(round: int) -> None:
        tensors, counts = _tensors(strategy, optimizer), asdict(strategy.tally)
        save_checkpoint(own, Checkpoint(round, parts.digest, tensors, counts, meaning_of(parts)))

    strategy = FederatedEmbedding(
        plan,
        trained.tables,
        trained.dense,
        on_round,
        on_checkpoint,
        first,
        str(own) if keeps else "",
        str(books),
    )
    strategy.tally = trained.tally = tally
    trained.finished_rounds = first - 1
    try:
        strategy.start(grid, num_rounds=config.rounds)
        if FINE_TUNED in config.baselines:
            trained.fine_tuned = strategy.evaluate_fine_tuned(grid)
    finally:
        trained.finished_rounds, trained.evaluated = strategy.finished_rounds, strategy.evaluated
        trained.fitted = strategy.fitted
        for stage in _remembering(plan):
            if stage.confined:
                trained.universe = stage.layout.rows


def train_with_runner(
    parts: Parts,
    config: DictConfig,
    overrides: list[str],
    folder: Path,
    on_round: MetricsSink,
    trained: Trained,
    grid: Grid | None = None,
) -> None:
    """Federated training on ``grid``, or with the runner that the configuration names."""

    def use(grid: Grid) -> None:
        train_on(grid, parts, config, folder, on_round, trained)

    runner = config.runner
    if grid is not None:
        use(grid)
    elif runner.name == "in_process":
        app = make_client_app(
            lambda context: parts.host(
                int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
            ),
            lambda context: parts.digest,
        )
        use(in_process_grid(app, runner.num_nodes))
    else:
        run_on_simulation(use, overrides, runner.num_nodes, runner.num_cpus, runner.num_gpus, config.verbose)


def resolve_resume(config: DictConfig, folder: Path) -> DictConfig:
    """``resume=auto`` names the run's own folder if that holds a checkpoint, and nothing otherwise."""
    if config.resume != "auto":
        return config
    config = config.copy()
    config.resume = str(folder) if any((folder / "checkpoint").glob("round-*.safetensors")) else None
    return config


def set_threads(num_threads: int) -> None:
    """Threads of torch in this process; 0 leaves its own choice."""
    if num_threads:
        torch.set_num_threads(num_threads)


def carry_books(source: Path, target: Path) -> None:
    """Copies what was spent of privacy budgets, by server and clients, to where a resumed run goes on."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            shutil.copy2(path, target / path.name)


def carry_metrics(source: Path, target: Path, last_round: int) -> None:
    """Copies the federated lines up to ``last_round`` into a resumed run's log."""
    log = source / "metrics.jsonl"
    if not log.is_file():
        return
    kept = []
    for text in log.read_text().splitlines():
        line: dict[str, Any] = json.loads(text)
        if line.get("phase") == "federated" and line["round"] <= last_round:
            kept.append(text)
    target.mkdir(parents=True, exist_ok=True)
    (target / "metrics.jsonl").write_text("".join(text + "\n" for text in kept))
