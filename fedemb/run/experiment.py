"""A whole experiment: data, federated training, what it stands beside, and everything a run folder holds."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fedemb.atomic import write_atomically
from fedemb.build import Parts, build
from fedemb.config import compose_config
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import SettingError
from fedemb.evaluate.alarm import leak_alarm
from fedemb.evaluate.choose import REFERENCES, reference_ranking, unknowing_rankings
from fedemb.evaluate.confidence import curves
from fedemb.evaluate.direction import lower_is_better
from fedemb.evaluate.drift import Drift, drift_of
from fedemb.evaluate.leaks import walk_batches
from fedemb.memory import keep_freed_memory
from fedemb.model import Run, save_model
from fedemb.privacy.claim import why_not_private
from fedemb.report.folder import draw
from fedemb.report.metrics_log import MetricsLog
from fedemb.report.progress import progress
from fedemb.report.summary import make_summary
from fedemb.report.table import print_results
from fedemb.run.ablations import ablation, check_ablations
from fedemb.run.baselines import centralized, local_only
from fedemb.run.lock import locked
from fedemb.run.of_one import centralized_of_one, learns_at_server, local_only_of_one
from fedemb.run.training import FINE_TUNED, Trained, resolve_resume, set_threads, train_with_runner
from fedemb.train.optimizers import OPTIMIZERS
from fedemb.train.rows import LocalTraining
from fedemb.types import Dataset, Evaluated, MetricsSink, Temporal

TRAINED_BASELINES = (FINE_TUNED, "centralized", "local_only")
_log = logging.getLogger("fedemb")


def train(overrides: Sequence[str] = (), folder: str | Path | None = None, quiet: bool = True) -> Run:
    """Trains as ``fedemb train`` does.

    Args:
        overrides: What stands on the command line, such as ``["task=hierarchical", "rounds=20"]``.
        folder: The run folder; ``runs/<time>`` if None.
        quiet: Print nothing.

    Returns:
        The finished run.

    Raises:
        SettingError: If a setting is wrong.
        DataError: If the data are.
        RunError: If the run cannot go on.
    """
    config = compose_config(overrides)
    where = Path(folder) if folder else Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return run_experiment(config, list(overrides), where, quiet)


def check_baselines(config: DictConfig, parts: Parts) -> None:
    """Refuses baselines that do not exist or do not fit, before anything is trained."""
    central_training(config, parts.training)
    known = [*TRAINED_BASELINES, *REFERENCES]
    for name in config.baselines:
        if name not in known:
            raise SettingError(f"baselines must be among {', '.join(known)}, got {name!r}")
        if name in REFERENCES and reference_ranking(name, parts.evaluation, parts.dataset) is None:
            raise SettingError(f"baselines={name} ranks items: it needs data=interactions with a test split")
        if name == FINE_TUNED and not (parts.evaluation and parts.evaluation.on_clients):
            raise SettingError(
                f"baselines={name} needs data that clients measure a model on: a held-out split"
            )
        if name == FINE_TUNED and learns_at_server(parts.training):
            raise SettingError(
                f"baselines={name} needs local steps that lead somewhere: train.reduction=mean, got sum, with which it "
                "is the server that learns"
            )


def describe_data(parts: Parts) -> str:
    """A line about the clients, shown before training."""
    data = parts.dataset
    sizes = data.train.sizes
    held = sizes[sizes > 0]
    plurals = {name: f"{name[:-1]}ies" if name.endswith("y") else f"{name}s" for name in data.vocabularies}
    plurals |= {name: name for name in data.vocabularies if name.endswith("s")}
    entities = ", ".join(f"{len(v):,} {plurals[name]}" for name, v in data.vocabularies.items())
    quantiles = np.percentile(held, [0, 50, 100]).astype(int)
    idle = f", {len(sizes) - len(held):,} without any" if len(held) < len(sizes) else ""
    return (
        f"{data.train.num_examples:,} examples of {entities} at {len(held):,} clients: "
        f"{quantiles[0]:,} to {quantiles[2]:,} each, median {quantiles[1]:,}{idle}"
    )


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: with a usable folder."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_config(config: DictConfig, overrides: Sequence[str], folder: Path) -> None:
    """What Hydra's command line writes, for runs that did not come from it."""
    inner = folder / ".hydra"
    if not (inner / "config.yaml").is_file():
        inner.mkdir(parents=True, exist_ok=True)
        plain = OmegaConf.create({str(k): v for k, v in config.items() if k != "hydra"})
        OmegaConf.save(plain, inner / "config.yaml")
        OmegaConf.save(OmegaConf.create(list(overrides)), inner / "overrides.yaml")


def run_experiment(
    config: DictConfig, overrides: list[str], folder: Path, quiet: bool = False, grid: Grid | None = None
) -> Run:
    """Trains, measures and reports; everything lands in ``folder``.

    Args:
        config: The composed configuration.
        overrides: What it was composed from; worker processes compose it again.
        folder: The run folder.
        quiet: Print nothing.
        grid: A grid that is there already (``flwr run``); None: the one of ``config.runner``.

    Ctrl-C and SIGTERM leave the model as it stands, with its summary, and raise ``KeyboardInterrupt``.

    Raises:
        SettingError: If a setting is wrong, or the folder holds another run.
    """
    if config.runner.name == "deployment" and grid is None:
        raise SettingError(
            "runner=deployment is started by `flwr run`, see README; use runner=in_process here"
        )
    if config.runner.name != "in_process" and not str(config.device).startswith("cpu"):
        raise SettingError(f"device={config.device} needs runner=in_process, got runner={config.runner.name}")
    config = resolve_resume(config, folder)
    with locked(folder):
        if (folder / "summary.json").exists() and Path(config.resume or "").resolve() != folder.resolve():
            raise SettingError(
                f"{folder} holds a finished run; choose another hydra.run.dir, or resume={folder}"
            )
        set_threads(config.runner.num_threads)
        keep_freed_memory()
        _write_config(config, overrides, folder)
        with _terminated_as_interrupt():
            parts = build(config)
            check_baselines(config, parts)
            check_ablations(config, overrides, ("federated", *TRAINED_BASELINES, *REFERENCES))
            if not quiet:
                print(describe_data(parts), flush=True)
            return _run(config, parts, overrides, folder, quiet, grid)


def _run(
    config: DictConfig, parts: Parts, overrides: list[str], folder: Path, quiet: bool, grid: Grid | None
) -> Run:
    begin = time.perf_counter()
    leak_check: dict[str, Any] = {}
    if isinstance(parts.task, Temporal):
        leak_check = dict(walk_batches(parts.task, parts.dataset, parts.training.batch_size, parts.seed))
    tables, dense = parts.initial()
    trained = Trained(tables, dense)
    baselines: dict[str, Evaluated] = {}
    log = MetricsLog(folder)
    with progress(config.rounds, False if quiet else None) as show:

        def on_round(line: Mapping[str, Any]) -> None:
            log(line)
            show(line)

        try:
            train_with_runner(parts, config, overrides, folder, on_round, trained, grid)
            ablations = [str(name) for name in config.ablations or {}]
            for name in [*config.baselines, *ablations]:
                if name in ablations:
                    result = ablation(name, config, overrides, folder, on_round)
                else:
                    result = _baseline(name, config, parts, trained, on_round)
                if result is not None:
                    baselines[name] = result
                    log({"phase": name, **result.metrics})
        except KeyboardInterrupt:
            trained.interrupted = True
    leak_check |= _of_shuffled(config, trained, baselines)
    summary = finish(config, parts, trained, baselines, folder, time.perf_counter() - begin, leak_check)
    if not quiet:
        print_results(summary, folder)
    if trained.interrupted:
        raise KeyboardInterrupt
    return Run(folder)


def _of_shuffled(
    config: DictConfig, trained: Trained, baselines: Mapping[str, Evaluated]
) -> dict[str, dict[str, float]]:
    """First metric of the model and of each ablation that trains with shuffled times; warns where that is no worse.

    Then times are of no use to the model, or they leak.
    """
    found: dict[str, dict[str, float]] = {}
    for name, changes in (config.ablations or {}).items():
        if "data.shuffle_times=true" not in changes or name not in baselines or trained.evaluated is None:
            continue
        metric, own = next(iter(trained.evaluated.metrics.items()))
        other = baselines[str(name)].metrics[metric]
        found[str(name)] = {metric: own, f"shuffled_{metric}": other}
        if not (other < own) ^ lower_is_better(metric):
            _log.warning(
                "%s: with shuffled times %s is %.4f, with true ones %.4f: times do not help, or leak",
                name, metric, other, own,
            )  # fmt: skip
    return found


def _drift(parts: Parts, trained: Trained) -> Drift | None:
    """How rows moved through time, where they can."""
    task = parts.task
    if not isinstance(task, Temporal) or not task.moves:
        return None
    names = parts.dataset.vocabularies[task.tables[0].entity]
    counts = names.counts if names.counts is not None else np.ones(len(names), dtype=np.int64)
    follow = names.index(list(task.follow)) if task.follow else None
    return drift_of(task, {**trained.tables, **trained.dense}, counts, follow)


def _baseline(
    name: str, config: DictConfig, parts: Parts, trained: Trained, on_round: MetricsSink
) -> Evaluated | None:
    training = central_training(config, parts.training)  # not protected: what it would be without
    own = replace(parts.training, privacy=None)
    if name == FINE_TUNED:
        return trained.fine_tuned
    if name == "centralized" and learns_at_server(training):
        return centralized_of_one(parts, training, config.rounds, config.evaluate_every, on_round)
    if name == "local_only" and learns_at_server(parts.training):
        return local_only_of_one(parts, own, config.rounds, on_round)
    if name == "centralized":
        return centralized(parts, training, config.rounds, config.evaluate_every, on_round)[0]
    if name == "local_only":
        return local_only(parts, own, config.rounds, on_round)
    reference = reference_ranking(name, parts.evaluation, parts.dataset)
    everybody = np.arange(parts.dataset.train.num_clients, dtype=np.int64)
    return reference({}, {}, everybody) if reference else None


def central_training(config: DictConfig, training: LocalTraining) -> LocalTraining:
    """Training of pooled data: ``centralized.*`` where it is set, else as clients train."""
    own = {str(k): v for k, v in config.centralized.items() if v is not None}
    if "optimizer" in own:
        if own["optimizer"] not in OPTIMIZERS:
            raise SettingError(
                f"centralized.optimizer must be one of {', '.join(OPTIMIZERS)}, or null, got {own['optimizer']!r}"
            )
        own["optimizer"] = OPTIMIZERS[own["optimizer"]]()
    try:
        return replace(training, privacy=None, **own)
    except (TypeError, ValueError) as error:
        raise SettingError(str(error).replace("train.", "centralized.")) from error


def _alarm(parts: Parts, local: Evaluated | None) -> str | None:
    """What the leak alarm says of local-only, if that was trained and anything is wrong."""
    if local is None:
        return None
    everybody = np.arange(parts.dataset.train.num_clients, dtype=np.int64)
    rankings = unknowing_rankings(parts.evaluation, parts.dataset)
    return leak_alarm(local, [ranking({}, {}, everybody) for ranking in rankings])


def finish(
    config: DictConfig,
    parts: Parts,
    trained: Trained,
    baselines: Mapping[str, Evaluated],
    folder: Path,
    seconds: float,
    leak_check: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes model, ``summary.json``, plots and the report, and returns the summary."""
    if (
        trained.interrupted
        and trained.finished_rounds
        and parts.evaluation
        and not parts.evaluation.on_clients
    ):
        everybody = np.arange(parts.dataset.train.num_clients, dtype=np.int64)
        trained.evaluated = parts.evaluation({**trained.tables, **trained.dense}, {}, everybody)
    tally = trained.tally
    communication = {n: getattr(tally, n) for n in ("upload_bytes", "download_bytes", "upload_bytes_dense")}
    work = {
        "rounds": trained.finished_rounds,
        "client_updates": tally.client_updates,
        "examples": int(tally.examples),
        "seconds": tally.train_seconds,
        "total_seconds": seconds,
    }
    hidden = parts.protection is not None and parts.protection.hides_metrics
    data = public_part(parts, trained.universe) if hidden else parts.dataset
    extra: dict[str, Any] = {} if hidden else {"data": dict(data.counts)}
    if leak_check and not hidden:
        extra["leak_check"] = dict(leak_check)
    if tally.rejected and not (trained.guard is not None and trained.guard.protection.hides_cohorts):
        extra["rejected"] = dict(tally.rejected)
    if trained.interrupted:
        extra["interrupted"] = True
    if trained.guard is not None:
        kept = any((folder / "checkpoint").glob("*.safetensors"))
        reasons = why_not_private(trained.guard.protection.settings, list(baselines), kept)
        extra["privacy"] = {**trained.guard.summary(), "private": not reasons}
        if reasons:
            extra["privacy"]["not_private_because"] = reasons
        if trained.guard.protection.hides_cohorts:
            communication = {}
            size = trained.guard.protection.claim.facts.participation.size
            work["client_updates"] = round(size * trained.finished_rounds)
    measured = {"federated": trained.evaluated, **baselines} if trained.evaluated else dict(baselines)
    found = {name: curves(result.sums, config.evaluation.bins) for name, result in measured.items()}
    if any(found.values()):
        extra["calibration"] = {name: of_model for name, of_model in found.items() if of_model}
    if alarm := _alarm(parts, baselines.get("local_only")):
        extra["leak_alarm"] = alarm
        _log.warning(alarm)
    summary = make_summary(trained.evaluated, baselines, communication, work, parts.digest, extra)
    save_model(
        folder / "model",
        trained.tables,
        trained.dense,
        parts.task.tables,
        {t.entity: data.vocabularies[t.entity] for t in parts.shared},
        {
            "config_digest": parts.digest,
            "rounds": trained.finished_rounds,
            "columns": {name: str(column.dtype) for name, column in data.train.columns.items()},
            "entity_of": dict(data.entity_of),
            "span": data.span,
            **({"slices": parts.task.slices.tolist()} if isinstance(parts.task, Temporal) else {}),
        },
        trained.fitted,
    )
    text = json.dumps(summary, indent=2)
    write_atomically(folder / "summary.json", lambda path: path.write_text(text))
    text, drift = OmegaConf.to_yaml(config), _drift(replace(parts, dataset=data), trained)
    draw(folder, summary, data, parts.shared, trained.tables, measured, text, drift)
    return summary


def public_part(parts: Parts, universe: Mapping[str, Tensor]) -> Dataset:
    """The data for a folder that is to be private as a whole: without what would tell of examples.

    Args:
        parts: Of the run.
        universe: Rows that were chosen under privacy, by table, if they were: others stay without a name.
    """
    dataset, main = parts.dataset, parts.shared[0] if parts.shared else None
    vocabularies = {name: replace(own, counts=None) for name, own in dataset.vocabularies.items()}
    if main is not None and main.name in universe:
        chosen = universe[main.name].view(-1, main.num_slices)[:, 0].tolist()
        names = vocabularies[main.entity].to_list()
        kept = [
            name if there else f"unreleased/{row}"
            for row, (name, there) in enumerate(zip(names, chosen, strict=True))
        ]
        vocabularies[main.entity] = Vocabulary.of(kept)
    return replace(dataset, vocabularies=vocabularies, taxonomy=None, span=None, counts={}, truth={})
