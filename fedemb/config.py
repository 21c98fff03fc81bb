"""From overrides to a composed configuration: where ``conf/`` is, the spine's types, and its checks."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedemb.errors import SettingError

NOT_HASHED = (
    "runner",
    "hydra",
    "resume",
    "checkpoint_every",
    "rounds",
    "evaluate_every",
    "baselines",
    "centralized",
    "experiment",
    "verbose",
)


@dataclass
class Experiment:
    """The spine of a configuration; groups are open, their parts check themselves."""

    seed: int = 0
    rounds: int = 10
    device: str = "cpu"
    evaluate_every: int = 0
    checkpoint_every: int = 0
    resume: str | None = None
    baselines: list[str] = field(default_factory=lambda: ["centralized", "local_only"])
    centralized: Any = None
    verbose: bool = False
    data: Any = None
    task: Any = None
    partition: Any = None
    cohort: Any = None
    train: Any = None
    privacy: Any = None
    compression: Any = None
    aggregate: Any = None
    server: Any = None
    schedule: Any = None
    runner: Any = None
    experiment: Any = None


ConfigStore.instance().store(name="spine", node=Experiment)


def conf_dir() -> Path:
    """The folder of Hydra's YAML: inside an installed package, beside it in a source tree or Flower bundle."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise SettingError(f"conf/config.yaml must stand in or beside {package}; reinstall fedemb")


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The configuration that these overrides make.

    Raises:
        SettingError: If a key, an option or a value is wrong.
    """
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(explain(error)) from error
    check(config)
    return config


def check(config: DictConfig) -> None:
    """Checks the spine before anything is built.

    Raises:
        SettingError: If a value is out of range.
    """
    for name in map(str, config):
        if name not in Experiment.__dataclass_fields__ and name != "hydra":
            raise SettingError(f"{name} is not a setting here{_nearest(name, _known_keys())}")
    for name, low in (("rounds", 1), ("evaluate_every", 0), ("checkpoint_every", 0), ("seed", 0)):
        if config[name] < low:
            raise SettingError(f"{name} must be at least {low}, got {config[name]}")
    for name, low in (("num_nodes", 1), ("clients_per_wave", 1), ("num_threads", 0), ("timeout_seconds", 0)):
        value = config.runner[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
            raise SettingError(f"runner.{name} must be a number, at least {low}, got {value!r}")


def digest(config: DictConfig) -> str:
    """Digest of what decides the result of a run: equal digests mean that a run can be taken up."""
    plain = {str(k): v for k, v in config.items() if k not in NOT_HASHED}
    text = OmegaConf.to_yaml(OmegaConf.create(plain), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _known_keys() -> list[str]:
    keys = [f.name for f in Experiment.__dataclass_fields__.values()]
    for group in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        for path in group.glob("*.yaml"):
            loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            if isinstance(loaded, dict):
                inner = loaded.get(group.name, loaded)
                keys += _paths(inner if isinstance(inner, dict) else {}, group.name)
    return sorted(set(keys))


def _paths(tree: dict[Any, Any], prefix: str) -> list[str]:
    out = []
    for key, value in tree.items():
        if str(key) not in ("defaults", "_target_", "_self_"):
            out.append(f"{prefix}.{key}")
            out += _paths(value, f"{prefix}.{key}") if isinstance(value, dict) else []
    return out


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""


def explain(error: Exception) -> str:
    """One line for a person from what Hydra or OmegaConf raised."""
    chain, cause = [], error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    text = " ".join(str(e) for e in chain)
    if found := re.search(r"Error merging override (\S+?)=(.*?) (?:Value|Cannot|Invalid)", text):
        kind = re.search(r"could not be converted to (\w+)", text)
        return f"{found[1]} must be {f'of type {kind[1]}' if kind else 'another kind of value'}, got {found[2]!r}"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1]
        if "not in" in text:
            return f"{key} is not a setting here{_nearest(key, _known_keys())}"
        wrong = re.search(r"Value '(.*?)'.*?could not be converted to (\w+)", text)
        return (
            f"{key} must be of type {wrong[2]}, got {wrong[1]!r}"
            if wrong
            else f"{key}: {str(chain[-1]).splitlines()[0]}"
        )
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, option = found[1].rpartition("/")
        options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")) if group else []
        if options:
            return f"{group} must be one of {', '.join(options)}, got {option!r}{_nearest(option, options)}"
    if found := re.search(
        r"Could not override '?([\w/@]+)'?\.?.*?[Nn]o match in the defaults list", text, re.S
    ):
        return f"{found[1]} is not a setting here{_nearest(found[1], _known_keys())}"
    if found := re.search(r"Key '([^']+)' is not in struct|Key '([^']+)' not in", text):
        key = found[1] or found[2]
        return f"{key} is not a setting here{_nearest(key, _known_keys())}"
    return " ".join(str(error).split())
