"""The command line: ``fedemb train [key=value ...]``, and ``fedemb serve`` and ``audit`` of a run folder."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

USAGE = """usage: fedemb COMMAND ...

commands:
  train [key=value ...]       train, measure and report (Hydra: -m sweeps, --cfg job, --help)
  serve RUN [key=value ...]   look vectors up over HTTP, and learn on (settings: conf/serve.yaml)
  audit RUN [key=value ...]   put a claim of privacy to the test (settings: conf/audit.yaml); exit status 1 if it is
                              refuted. --leakage: what the server sees of one client, and what attacks make of it

fedemb train              federated hyperbolic embedding of WordNet's mammals
fedemb train --help       all settings"""

_COMMANDS = ("train", "serve", "audit")


def _train(arguments: list[str]) -> int:
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
    return 0


def _folder(command: str, arguments: list[str], flags: str = "") -> Path | None:
    """The run folder that a command is about; None where its usage was asked for, and shown.

    Raises:
        SettingError: If there is none before the settings.
    """
    from fedemb.config import conf_dir
    from fedemb.errors import SettingError

    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: fedemb {command} RUN {flags}[key=value ...]\n\nsettings and defaults:")
        print((conf_dir() / f"{command}.yaml").read_text().partition("\n")[2], end="")
        return None
    if "=" in arguments[0] and not Path(arguments[0]).is_dir():
        raise SettingError(f"fedemb {command} needs a run folder before its settings, got {arguments[0]!r}")
    return Path(arguments[0])


def _serve(arguments: list[str]) -> int:
    folder = _folder("serve", arguments)
    if folder is not None:
        from fedemb.serve.run import serve

        serve(folder, arguments[1:])
    return 0


def _audit(arguments: list[str]) -> int:
    leaks = "--leakage" in arguments
    arguments = [text for text in arguments if text != "--leakage"]
    folder = _folder("audit", arguments, "[--leakage] ")
    if folder is None:
        return 0
    from fedemb.run.audit import settings_of

    settings = settings_of(arguments[1:])
    if leaks:
        from fedemb.run.leakage import leakage, table_of

        print(table_of(leakage(folder, settings.clients, settings.seed)))
        return 0
    from fedemb.privacy.audit import table
    from fedemb.run.audit import audit

    findings, claimed = audit(folder, settings.canaries, settings.rounds, settings.confidence, settings.seed)
    print(table(findings, claimed))
    return int(any(finding.refutes for finding in findings))


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
        return {"train": _train, "serve": _serve, "audit": _audit}[arguments[0]](arguments[1:])
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


if __name__ == "__main__":
    sys.exit(main())
