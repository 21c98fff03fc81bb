"""The command line: ``fedemb train [key=value ...]``, ``fedemb serve RUN [key=value ...]``."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

USAGE = """usage: fedemb COMMAND ...

commands:
  train [key=value ...]       train, measure and report (Hydra: -m sweeps, --cfg job, --help)
  serve RUN [key=value ...]   look vectors up over HTTP, and learn on (settings: conf/serve.yaml)

fedemb train              federated hyperbolic embedding of WordNet's mammals
fedemb train --help       all settings"""

_COMMANDS = ("train", "serve")


def _train(arguments: list[str]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from fedemb.config import check, conf_dir, explain
    from fedemb.errors import SettingError
    from fedemb.run.experiment import run_experiment

    failures: list[Exception] = []
    started = False

    # Hydra adds lines of its own to what a job raises, so nothing is raised within.
    @hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
    def job(config: DictConfig) -> float | None:
        nonlocal started
        started = True
        context = HydraConfig.get()
        try:
            check(config)
            run = run_experiment(config, list(context.overrides.task), Path(context.runtime.output_dir))
            metrics = run.summary.get("metrics", {})
        except Exception as error:
            failures.append(error)
            return None
        return next(iter(metrics.values()), None)

    flags = [
        text for text in arguments if text in ("-m", "--multirun")
    ]  # Hydra wants them before the settings
    sys.argv = ["fedemb train", *flags, *(text for text in arguments if text not in flags)]
    try:
        job()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if started:
            raise
        raise SettingError(explain(error, arguments)) from error
    except OSError as error:
        if started:
            raise
        what = f"{error.filename} ({error.strerror})"
        raise SettingError(f"hydra.run.dir must be a folder that can be written to, got {what}") from error
    if failures:
        raise failures[0]


def _serve(arguments: list[str]) -> None:
    from fedemb.config import conf_dir
    from fedemb.errors import SettingError

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: fedemb serve RUN [key=value ...]\n\nsettings and defaults:")
        print((conf_dir() / "serve.yaml").read_text().partition("\n")[2], end="")
        return
    if "=" in arguments[0] and not Path(arguments[0]).is_dir():
        raise SettingError(f"fedemb serve needs a run folder before its settings, got {arguments[0]!r}")
    from fedemb.serve.run import serve

    serve(Path(arguments[0]), arguments[1:])


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
        print(
            f"fedemb: the command must be one of {', '.join(_COMMANDS)}, got {arguments[0]!r}",
            file=sys.stderr,
        )
        return 2
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        {"train": _train, "serve": _serve}[arguments[0]](arguments[1:])
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
