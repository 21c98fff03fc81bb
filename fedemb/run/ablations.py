"""What a setting is for: the same federated run with some settings changed, beside the run itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedemb.build import Parts, build
from fedemb.config import compose_config
from fedemb.errors import DataError, SettingError
from fedemb.run.training import Trained, train_with_runner
from fedemb.types import Evaluated, MetricsSink

_OF_THE_RUN = ("resume=null", "checkpoint_every=0", "baselines=[]")


def check_ablations(config: DictConfig, overrides: Sequence[str], taken: Sequence[str]) -> None:
    """Refuses ablations that cannot be built, or whose name is taken, before anything is trained.

    Raises:
        SettingError: If there is one.
    """
    for name, changes in (config.ablations or {}).items():
        if name in taken:
            raise SettingError(f"ablations must have names of their own, got {name!r}")
        if config.runner.name == "deployment":
            raise SettingError("ablations need runner=in_process or simulation: nodes are set up for one run")
        _built(str(name), changes, overrides)


def _built(name: str, changes: Any, overrides: Sequence[str]) -> tuple[Parts, DictConfig, list[str]]:
    given = [*overrides, *map(str, changes), *_OF_THE_RUN]
    try:
        config = compose_config(given)
        return build(config), config, given
    except (SettingError, DataError) as error:
        raise type(error)(f"ablations.{name}: {error}") from error


def ablation(
    name: str, config: DictConfig, overrides: Sequence[str], folder: Path, on_round: MetricsSink
) -> Evaluated | None:
    """The federated model of the changed run, measured.

    Args:
        name: One of ``config.ablations``.
        config: The configuration of the run itself.
        overrides: What that was composed from.
        folder: The run folder; the ablation keeps nothing there.
        on_round: Told about its rounds, as a phase of its own.

    Raises:
        SettingError: If the changed settings do not fit together.
    """
    parts, changed, given = _built(name, config.ablations[name], overrides)
    trained = Trained(*parts.initial())

    def tell(line: Mapping[str, Any]) -> None:
        on_round({**line, "phase": name})

    train_with_runner(parts, changed, given, folder, tell, trained)
    return trained.evaluated
