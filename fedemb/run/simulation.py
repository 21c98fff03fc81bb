"""The same apps on Flower's simulation engine, whose nodes are Ray worker processes."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedemb.errors import SettingError
from fedemb.memory import keep_freed_memory
from fedemb.run.in_process import GridUser


@lru_cache(maxsize=1)
def _worker_parts(overrides: tuple[str, ...]) -> Any:
    """The parts of a run, built once in each worker process."""
    from fedemb.build import build
    from fedemb.config import compose_config

    keep_freed_memory()
    return build(compose_config(overrides))


def run_on_simulation(
    use: GridUser, overrides: Sequence[str], num_nodes: int, num_cpus: float, num_gpus: float, verbose: bool
) -> None:
    """Calls ``use`` with the grid of a simulation.

    Args:
        use: The server's side of the run.
        overrides: The configuration, composed again in every worker.
        num_nodes: Flower nodes.
        num_cpus: CPUs of a worker process: how many run at once follows from it.
        num_gpus: GPUs of a worker process.
        verbose: Let Flower and Ray say what they do.

    Raises:
        SettingError: If Ray is not installed, or cannot start workers from here.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingError(
            "runner=simulation needs Ray: pip install 'fedemb[simulation]', or use runner=in_process"
        )
    if " " in sys.executable:  # its workers never start, and the run would wait for ever
        raise SettingError(
            f"runner=simulation: Ray cannot start workers from a path with a space ({sys.executable}); "
            "put the environment elsewhere, or use runner=in_process"
        )
    logging.getLogger("flwr").setLevel(logging.DEBUG if verbose else logging.CRITICAL)
    from flwr.simulation import run_simulation

    from fedemb.flower.client_app import make_client_app

    key = tuple(overrides)

    def host_of(context: Context) -> Any:
        return _worker_parts(key).host(
            context.node_config["partition-id"], context.node_config["num-partitions"]
        )

    def digest_of(context: Context) -> str:
        return str(_worker_parts(key).digest)

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        use(grid)

    backend: Any = {
        "client_resources": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "init_args": {
            "logging_level": "info" if verbose else "error",
            "log_to_driver": verbose,
            "include_dashboard": False,
        },
    }
    run_simulation(
        server,
        make_client_app(host_of, digest_of),
        num_nodes,
        backend_config=backend,
        verbose_logging=verbose,
    )
