"""The two apps that ``flwr run`` starts: ``overrides`` in the run configuration compose the same run on both sides."""

from __future__ import annotations

import shlex
from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedemb.build import Parts, build
from fedemb.config import compose_config
from fedemb.flower.client_app import make_client_app
from fedemb.memory import keep_freed_memory
from fedemb.train.host import Host


def overrides_of(context: Context) -> tuple[str, ...]:
    """Overrides of a run as ``fedemb train`` would get them.

    >>> shlex.split("task=skipgram 'data.path=my file.csv'")
    ['task=skipgram', 'data.path=my file.csv']
    """
    return tuple(shlex.split(str(context.run_config.get("overrides", ""))))


@lru_cache(maxsize=1)
def _parts(overrides: tuple[str, ...]) -> Parts:
    keep_freed_memory()
    return build(compose_config(overrides))


def _host(context: Context) -> Host:
    """The clients of this node: its share of all, by ``partition-id`` and ``num-partitions`` of the node's config."""
    config = context.node_config
    if "partition-id" not in config or "num-partitions" not in config:
        raise ValueError(
            "a SuperNode must be started with --node-config 'partition-id=... num-partitions=...'"
        )
    return _parts(overrides_of(context)).host(int(config["partition-id"]), int(config["num-partitions"]))


client = make_client_app(_host, lambda context: _parts(overrides_of(context)).digest)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """A whole experiment on the grid of a deployment or of ``flwr run``'s simulation."""
    from fedemb.run.experiment import run_experiment

    overrides = overrides_of(context)
    folder = Path(str(context.run_config.get("folder", "runs/deployed")))
    run_experiment(compose_config(overrides), list(overrides), folder, grid=grid)
