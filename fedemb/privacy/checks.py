"""What may not stand together with a claim of privacy: each one is an error that names both parts and the remedy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fedemb.errors import SettingError
from fedemb.privacy.settings import CENTRAL, DISTRIBUTED, EXAMPLE, NONE, SELECT, PrivacySettings
from fedemb.train.candidates import candidate_tables
from fedemb.train.rows import RECONSTRUCTED, LocalTraining
from fedemb.types import Participation, Task

_log = logging.getLogger("fedemb")


def check_privacy(
    settings: PrivacySettings,
    task: Task,
    task_settings: Mapping[str, Any],
    training: LocalTraining,
    aggregate: Mapping[str, Any],
    participation: Participation,
    deployed: bool,
    beside: Mapping[str, Any],
) -> None:
    """Refuses what would make the claim untrue.

    Args:
        settings: The mode.
        task: What is learnt.
        task_settings: Its settings.
        training: Local training.
        aggregate: Settings of the aggregation.
        participation: How clients come to take part.
        deployed: Whether clients are real.
        beside: What else is trained or measured on the same data, by setting: empty where nothing is.

    Raises:
        SettingError: At the first one.
    """
    if aggregate["name"] == "secure" and settings.name != DISTRIBUTED:
        raise SettingError(
            f"aggregate=secure needs privacy=client_distributed, got privacy={settings.name}; use aggregate=plain"
        )
    if settings.name == NONE:
        return
    mode = f"privacy={settings.name}"
    if deployed and settings.name == DISTRIBUTED:
        raise SettingError(
            f"{mode} needs masks where clients are real, and aggregate=secure has none yet: the server would see each "
            "client's integers; use privacy=local or example with runner=deployment"
        )
    _check_sum(mode, settings, aggregate)
    _check_draws(mode, task_settings)
    if settings.name == EXAMPLE:
        _check_examples(mode, settings, task, training)
    if settings.metrics == NONE:
        for name, value in beside.items():
            if value:
                raise SettingError(
                    f"{name} must be empty with privacy.metrics=none, for it is trained on the same data without "
                    f"protection, got {value}; set {name}=[] or privacy.metrics=raw"
                )
    elif deployed:
        raise SettingError(
            f"privacy.metrics must be none with {mode} and runner=deployment, where losses and evaluations would leave "
            "real clients without noise, got raw"
        )
    _check_cohort(mode, settings, participation)
    if settings.by_clients and settings.delta > 1 / max(1, participation.population):
        _log.warning(
            "privacy.delta=%g lets the data of one of %d clients be published outright; take less than %.1g",
            settings.delta, participation.population, 1 / participation.population,
        )  # fmt: skip


def _check_sum(mode: str, settings: PrivacySettings, aggregate: Mapping[str, Any]) -> None:
    if aggregate["rows"] not in ("sum", "fedavg"):
        raise SettingError(
            f"aggregate.rows={aggregate['rows']} divides by what clients hold, which {mode} may not look at; use "
            "aggregate.rows=fedavg or sum"
        )
    if aggregate["mean"] != "tangent":
        raise SettingError(
            f"aggregate.mean={aggregate['mean']} does not add bounded updates up, as {mode} needs; use "
            "aggregate.mean=tangent"
        )
    if aggregate.get("clip_norm") is not None:
        raise SettingError(
            f"aggregate.clip_norm must be null with {mode}, whose bound is privacy.clip_norm, got "
            f"{aggregate['clip_norm']}"
        )
    if settings.by_clients and aggregate["weights"] == "examples":
        raise SettingError(
            f"aggregate.weights=examples lets a client count as much as it likes, and {mode} needs weights of at most "
            "1; use aggregate.weights=uniform or capped"
        )
    if (settings.name == DISTRIBUTED) != (aggregate["name"] == "secure"):
        raise SettingError(
            f"{mode} needs aggregate=secure: alone, a client's share of the noise protects little; got "
            f"aggregate={aggregate['name']}"
        )


def _check_draws(mode: str, task: Mapping[str, Any]) -> None:
    for name in ("noise_power", "subsample"):
        if task.get(name):
            raise SettingError(
                f"task.{name} must be 0 with {mode}: it draws by how often each row stands in all clients' data, which "
                f"is not public, got {task[name]}"
            )


def _check_examples(mode: str, settings: PrivacySettings, task: Task, training: LocalTraining) -> None:
    if settings.uses_other_examples or task.exclusion is not None:
        raise SettingError(
            f"task.exclude_known must be false with {mode}, where an example's loss may depend on that example alone; "
            "negatives then come from the whole public distribution"
        )
    if any(drawn is None for _, drawn in candidate_tables(task)):
        raise SettingError(
            f"task.against=own compares an example with what the client's other examples name, and {mode} needs losses "
            "of one example alone; use task.against=all"
        )
    if training.personal == RECONSTRUCTED:
        raise SettingError(
            f"train.personal=reconstructed finds rows from examples without noise, before {mode} protects any; use "
            "train.personal=stateful"
        )
    if training.share < 1:
        raise SettingError(
            f"train.share must be 1 with {mode}, whose steps are Poisson samples already, got {training.share}; use a "
            "smaller train.batch_size"
        )


def _check_cohort(mode: str, settings: PrivacySettings, participation: Participation) -> None:
    if settings.name == DISTRIBUTED and participation.kind == "poisson":
        raise SettingError(
            f"cohort=poisson may leave too few clients for the noise that {mode} needs, and amplifies nothing where "
            "the server sees who takes part; use cohort=full, uniform or turns"
        )
    if settings.bands is not None and settings.quantile is not None:
        raise SettingError(
            "privacy.adaptive_clip.quantile must be null with privacy.bands: noise that is taken back later must be of "
            "one size"
        )
    if settings.name == CENTRAL and settings.bands not in (None, 1, "auto") and participation.separation == 1:
        raise SettingError(
            f"privacy.bands={settings.bands} needs rounds between a client's participations: use cohort=turns with "
            "cohort.size, or privacy.bands=null"
        )
    if settings.universe == SELECT and settings.name != CENTRAL:
        raise SettingError(
            f"privacy.universe=select needs a server that may count who holds which row, as that of "
            f"privacy=client_central, got {mode}; declare the universe: privacy.universe=vocabulary or a file of names"
        )
