"""A real SuperLink and real SuperNodes on loopback, for the time of a test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def environment(home: Path) -> dict[str, str]:
    """Flower without network, telemetry, update checks or installation."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def process(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, its children with it."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=log.parent
        )
        try:
            yield started
        finally:
            for number in (15, 9):
                try:
                    os.killpg(started.pid, number)
                    started.wait(10)
                    break
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def wait_for_port(port: int, seconds: float = 60) -> None:
    """Returns once somebody listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nobody listens on port {port}")


@contextmanager
def federation(folder: Path, num_nodes: int) -> Iterator[dict[str, str]]:
    """A SuperLink and its SuperNodes, reachable as the federation ``test`` by the yielded environment."""
    env = environment(folder / "flwr")
    (folder / "flwr").mkdir(parents=True)
    link_port, *ports = free_ports(1 + num_nodes)
    address = f"127.0.0.1:{link_port}"
    config = f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "{address}"\ninsecure = true\n'
    (folder / "flwr" / "config.toml").write_text(config)
    with ExitStack() as stack:
        link = [str(BIN / "flower-superlink"), "--insecure", "--port", str(link_port)]
        link.append("--disable-runtime-dependency-installation")
        stack.enter_context(process(link, env, folder / "superlink.log"))
        wait_for_port(link_port)
        for number, port in enumerate(ports):
            node = [str(BIN / "flower-supernode"), "--insecure", "--superlink", address, "--port", str(port)]
            node += ["--node-config", f"partition-id={number} num-partitions={num_nodes}"]
            stack.enter_context(process(node, env, folder / f"supernode{number}.log"))
        yield env
