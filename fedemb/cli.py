"""The command line: ``fedemb train [key=value ...]``."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

USAGE = """usage: fedemb COMMAND ...

commands:
  train [key=value ...]   train, measure and report (Hydra: -m sweeps, --cfg job, --help)

fedemb train              federated hyperbolic embedding of WordNet's mammals
fedemb train --help       all settings"""

_COMMANDS = ("train",)


def _train(arguments: list[str]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from fedemb.config import check, conf_dir
    from fedemb.run.experiment import run_experiment

    @hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
    def job(config: DictConfig) -> float | None:
        check(config)
        context = HydraConfig.get()
        run = run_experiment(config, list(context.overrides.task), Path(context.runtime.output_dir))
        metrics = run.summary.get("metrics", {})
        return next(iter(metrics.values()), None)

    sys.argv = ["fedemb train", *arguments]
    job()


def _explained(error: BaseException) -> tuple[str, int]:
    """One line and an exit status for what went wrong."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fedemb.config import explain
    from fedemb.errors import DataError, RunError, SettingError

    if isinstance(error, SettingError | DataError):
        return str(error), 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain(error), 2
    if isinstance(error, RunError):
        return str(error), 1
    if isinstance(error, MemoryError):
        return "out of memory: lower train.chunk_bytes or runner.clients_per_wave", 1
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename}", 1
    return "", 1


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status: 2 for a wrong setting or input, 1 for a failure while running."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        from fedemb.report.summary import versions

        print(versions()["fedemb"])
        return 0
    if arguments[0] not in _COMMANDS:
        print(f"fedemb: the command must be one of {', '.join(_COMMANDS)}, got {arguments[0]!r}", file=sys.stderr)
        return 2
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _train(arguments[1:])
    except KeyboardInterrupt:
        print("fedemb: interrupted; the run folder holds the model as it stood", file=sys.stderr)
        return 130
    except Exception as error:
        line, status = _explained(error)
        if not line or "verbose=true" in arguments:
            traceback.print_exc()
        if line:
            print(f"fedemb: {line}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
