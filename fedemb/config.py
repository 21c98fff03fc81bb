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
from yaml import YAMLError

from fedemb.errors import DataError, SettingError

NOT_HASHED = (
    "runner",
    "hydra",
    "resume",
    "checkpoint_every",
    "rounds",
    "evaluate_every",
    "baselines",
    "ablations",
    "centralized",
    "evaluation",
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
    ablations: dict[str, list[str]] | None = field(default_factory=dict)
    centralized: Any = None
    evaluation: Any = None
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
        check(config)
    except SettingError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SettingError(explain(error, overrides)) from error
    return config


def check(config: DictConfig) -> None:
    """Checks the spine before anything is built.

    Raises:
        SettingError: If a value is missing or out of range.
    """
    for name in map(str, config):
        if name not in Experiment.__dataclass_fields__ and name != "hydra":
            raise SettingError(f"{name} is not a setting here{_nearest(name, _known_keys())}")
    for group in _groups():
        if group != "experiment" and not OmegaConf.is_dict(config.get(group)):
            raise SettingError(f"{group} must be one of {', '.join(_options(group))}, got none")
        option = config[group].get("name") if group != "experiment" else None
        if option is not None and option not in _options(group):
            raise SettingError(
                f"{group} must be one of {', '.join(_options(group))}, got {option!r}; set {group}=..."
            )
    if not OmegaConf.is_dict(config.centralized):
        raise SettingError(
            "centralized must be learning_rate, batch_size, optimizer, dense_learning_rate and reduction, "
            f"got {config.centralized!r}"
        )
    if not OmegaConf.is_dict(config.evaluation):
        raise SettingError(
            f"evaluation must be sampled, calibrate, alpha and bins, got {config.evaluation!r}"
        )
    if missing := sorted(key for key in OmegaConf.missing_keys(config) if not key.startswith("hydra.")):
        raise SettingError(f"{missing[0]} must be set, it has no default: {missing[0]}=...")
    for name, low in (("rounds", 1), ("evaluate_every", 0), ("checkpoint_every", 0), ("seed", 0)):
        if config[name] < low:
            raise SettingError(f"{name} must be at least {low}, got {config[name]}")
    for name, low in (("num_nodes", 1), ("clients_per_wave", 1), ("num_threads", 0), ("timeout_seconds", 0)):
        value, kinds = config.runner[name], (int, float) if name == "timeout_seconds" else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not value >= low:
            what = "a number" if name == "timeout_seconds" else "a whole number"
            raise SettingError(f"runner.{name} must be {what}, at least {low}, got {value!r}")


def command_settings(command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What ``conf/<command>.yaml`` says, with these ``key=value`` settings in the place of its own.

    Raises:
        SettingError: If a key is not there, or something is no setting at all.
    """
    config = OmegaConf.load(conf_dir() / f"{command}.yaml")
    known = [str(key) for key in config]
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals:
            raise SettingError(f"a setting must read key=value, got {text!r}")
        if key not in known:
            raise SettingError(f"{key} is not a setting of fedemb {command}{_nearest(key, known)}")
    try:
        plain = OmegaConf.to_container(OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides))))
    except (OmegaConfBaseException, ValueError, YAMLError) as error:
        what = " ".join(overrides)
        raise SettingError(
            f"settings must be plain values, got {what!r} ({' '.join(str(error).split())})"
        ) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def config_of(folder: Path) -> DictConfig:
    """The configuration of a run folder, resolved, and taking up nothing.

    Raises:
        DataError: If it is not there.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise DataError(
            f"{folder} must be a run folder, but its configuration, .hydra/config.yaml, is missing"
        )
    config = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.load(path), resolve=True))
    assert isinstance(config, DictConfig)
    config.resume = None
    return config


def digest(config: DictConfig) -> str:
    """Digest of what decides the result of a run: equal digests mean that a run can be taken up."""
    plain = {str(k): v for k, v in config.items() if k not in NOT_HASHED}
    text = OmegaConf.to_yaml(OmegaConf.create(plain), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _groups() -> list[str]:
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir())


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _option_keys(group: str, option: str) -> list[str]:
    loaded = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{option}.yaml"), resolve=False)
    inner = loaded.get(group, loaded) if isinstance(loaded, dict) else {}
    return _paths(inner if isinstance(inner, dict) else {}, f"{group}.")


def _known_keys() -> list[str]:
    """All keys of all options."""
    keys = list(Experiment.__dataclass_fields__)
    for group in _groups():
        if group != "experiment":
            keys += [key for option in _options(group) for key in _option_keys(group, option)]
    return sorted(set(keys))


def _valid_keys(overrides: Sequence[str]) -> list[str]:
    """Keys of the options that these overrides choose; of all options if they cannot be composed either."""
    chosen = [text for text in overrides if text.partition("=")[0] in _groups()]
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return _paths(OmegaConf.to_container(compose("config", chosen), resolve=False), "")
    except (HydraException, OmegaConfBaseException, ValueError):
        return _known_keys()


def _paths(tree: Any, prefix: str) -> list[str]:
    out = []
    for key, value in tree.items():
        if str(key) not in ("defaults", "_target_", "_self_"):
            out.append(f"{prefix}{key}")
            out += _paths(value, f"{prefix}{key}.") if isinstance(value, dict) else []
    return out


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""


_ABLATIONS = (
    "ablations are added one by one, quoted within, as in '+ablations.flat=[\"task.manifold=euclidean\"]'"
)


def _unknown(key: str, overrides: Sequence[str]) -> str:
    """What to say of a key that is not there: who has it, or what it may have been meant to be."""
    group, dot, _ = key.partition(".")
    if group == "ablations":
        return _ABLATIONS
    valid = _valid_keys(overrides)
    if dot and group in _groups() and group != "experiment":
        having = [option for option in _options(group) if key in _option_keys(group, option)]
        if having:
            return (
                f"{key} is not a setting of the chosen {group}; {group}={' or '.join(having)} would have it"
            )
    known = [name for name in valid if name.startswith(f"{group}.")] if dot and group in _groups() else valid
    return f"{key} is not a setting here{_nearest(key, known)}"


def _unknown_within(key: str, overrides: Sequence[str]) -> str:
    """What to say of a key among settings that were given as a whole: ``data.drop={InvoiceNo: C}``."""
    parent, valid = key.rpartition(".")[0], _valid_keys(overrides)
    if parent in valid and not any(name.startswith(f"{parent}.") for name in valid):
        return f"{parent} has names of your own, which are added with a plus, as in '+{key}=...'"
    return _unknown(key, overrides)


def _no_option(override: str) -> bool:
    return bool(re.fullmatch(r"null|true|false|[\d.]*", override.partition("=")[2]))


_WRONG_KINDS = (
    (r"could not be converted to Integer|is not an? int", "a whole number"),
    (r"could not be converted to Float", "a number"),
    (r"could not be converted to Boolean|not a valid bool", "true or false"),
    (r"could not be converted to String|Cannot convert .*? to string", "text"),
    (r"ListConfig", "a list, such as [a, b]"),
    (r"not Optional|non-optional", "a value"),
)


def explain(error: BaseException, overrides: Sequence[str] = ()) -> str:
    """One line for a person from what Hydra or OmegaConf raised.

    Args:
        error: What was raised.
        overrides: What was to be composed.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(e) for e in chain)
    if found := re.search(r"Error merging override \+*([\w.]+)=(\S*)", text):
        kind = next(
            (what for pattern, what in _WRONG_KINDS if re.search(pattern, text)), "another kind of value"
        )
        return f"{found[1]} must be {kind}, got {found[2]!r}"
    if any("ablations" in override for override in overrides) and "no viable alternative" in text:
        return _ABLATIONS
    if found := re.search(r"(?:Error parsing override '|LexerNoViableAltException: )([^'\n]*)", text):
        return f"a setting must read key=value, got {found[1]!r}; put quotes around special characters: 'key=\"a<b\"'"
    if "Config group override must be a string or a list" in text:
        wrong = next(
            (o for o in overrides if o.partition("=")[0] in ("", *_groups()) and _no_option(o)), "nothing"
        )
        return f"{wrong.partition('=')[0] or 'a group'} must name one of its options, got {wrong}"
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{found[1]} must be set, it has no default: {found[1]}=..."
    if found := re.search(r"Interpolation key '([^']+)' not found\s+full_key: (\S+)", text):
        return f"{found[2]} must refer to a setting that is there, got ${{{found[1]}}}"
    if found := re.search(r"Could not override '([^']+)'.* full_key: (\1\.\S+)", text, re.DOTALL):
        return _unknown_within(found[2], overrides)
    if found := re.search(r"Could not override '([^']+)'|Could not delete from config\. '([^']+)'", text):
        return _unknown(found[1] or found[2], overrides)
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, option = found[1].rpartition("/")
        options = _options(group) if group in _groups() else []
        if options:
            return f"{group} must be one of {', '.join(options)}, got {option!r}{_nearest(option, options)}"
    if found := re.search(r"Key '([^']+)' is not in struct|Key '([^']+)' not in", text):
        return _unknown(found[1] or found[2], overrides)
    return " ".join(str(error).split())
