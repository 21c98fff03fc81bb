"""Look-ups while interactions are ingested and applied, then a kill: latency, what was lost, what was seen half.

    python experiments/serving/run.py [--seconds 20] [--folder FOLDER]

Trains a model, serves it with `fedemb serve` in processes of its own, and asks over loopback. Look-ups are open-loop:
each has its time, and its latency counts from that time, so that a slow answer is not forgiven by asking later.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

LOOK_UPS, INTERACTIONS, IN_A_POST, ITEMS, CLIENTS = 200, 1000, 20, 10_000, 5_000
CONNECTIONS = 32
PLAIN = [
    "data=synthetic", f"data.num_items={ITEMS}", "data.num_clients=500", "data.examples_per_client=60",
    "task.dim=64", "rounds=2", "baselines=[]",
]  # fmt: skip


def train(folder: Path, task: str) -> None:
    command = [sys.executable, "-m", "fedemb", "train", *PLAIN, f"task={task}", f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def start(folder: Path) -> tuple[subprocess.Popen[str], str, float]:
    begin = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "fedemb",
        "serve",
        str(folder),
        "port=0",
        "window=100",
        "interval_seconds=1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    url = next(word for word in line.split() if word.startswith("http://"))
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return process, url, time.perf_counter() - begin
        except httpx.TransportError:
            pass
        time.sleep(0.05)


class Client:
    """Asks over connections that stay open, at a fraction of what a full HTTP client costs: two cores serve both."""

    def __init__(self, url: str) -> None:
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.free: asyncio.LifoQueue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.LifoQueue()

    async def __aenter__(self) -> Client:
        for _ in range(CONNECTIONS):
            self.free.put_nowait(await asyncio.open_connection(self.host, self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        while not self.free.empty():
            self.free.get_nowait()[1].close()

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        reader, writer = await self.free.get()
        try:
            if reader.at_eof() or writer.is_closing():  # the service closes what was idle for seconds
                writer.close()
                reader, writer = await asyncio.open_connection(self.host, self.port)
            head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            found = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in found.split(b"\r\n") if line.lower().startswith(b"content-length"))
            return int(found.split()[1]), await reader.readexactly(int(length.partition(b":")[2]))
        finally:
            self.free.put_nowait((reader, writer))


class Load:
    """What was asked, acknowledged and seen."""

    def __init__(self, client: Client, seed: int) -> None:
        self.client, self.random = client, random.Random(seed)
        self.latencies: list[float] = []
        self.acknowledged: list[int] = []
        self.seen: dict[tuple[int, str], str] = {}
        self.torn = self.errors = self.refused = 0
        self.backlog = 0

    def item(self) -> str:
        return f"item-{self.random.randrange(ITEMS):04d}"

    def check(self, answer: dict[str, Any]) -> None:
        """One version has one vector for a name, whoever asks and when."""
        for name, vector in zip(answer["ids"], answer["vectors"], strict=True):
            digest = hashlib.sha1(json.dumps(vector).encode()).hexdigest()
            self.torn += self.seen.setdefault((answer["version"], name), digest) != digest

    async def look_up(self, due: float, number: int) -> None:
        try:
            if number % 4 == 0:
                status, body = await self.client.ask("GET", f"/neighbours?k=10&id={self.item()}")
            else:  # a few names again and again, so that many answers can be compared
                ids = "&".join(f"id=item-{self.random.randrange(50):04d}" for _ in range(5))
                status, body = await self.client.ask("GET", f"/vectors?{ids}")
            self.latencies.append(time.perf_counter() - due)
        except (OSError, EOFError):
            self.errors += 1
            return
        if status != 200:
            self.errors += 1
        elif number % 4:
            self.check(json.loads(body))

    async def post(self, due: float, number: int) -> None:
        body = [
            {
                "client": f"c{self.random.randrange(CLIENTS)}",
                "item": self.item(),
                "time": 1_600_000_000 + number,
            }
            for _ in range(IN_A_POST)
        ]
        try:
            status, answer = await self.client.ask("POST", "/interactions", json.dumps(body).encode())
        except (OSError, EOFError):
            self.errors += 1
            return
        if status == 202:
            accepted = json.loads(answer)
            self.acknowledged += range(accepted["first"], accepted["last"] + 1)
        else:
            self.refused += 1


async def at_rate(rate: float, seconds: float, ask: Callable[[float, int], Any]) -> None:
    """Starts ``ask(due, number)`` at its time, whether or not earlier ones are answered."""
    begin, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(due, number)))
    await asyncio.gather(*tasks)


async def version_of(client: Client) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await client.ask("GET", "/tables"))[1])
    return answer


async def measure(
    url: str, seconds: float, with_interactions: bool, seed: int
) -> tuple[Load, dict[str, Any]]:
    async with Client(url) as client:
        warm = Load(client, seed)
        await at_rate(50, 2, warm.look_up)
        load = Load(client, seed + 1)
        begin = time.perf_counter()
        work = [at_rate(LOOK_UPS, seconds, load.look_up)]
        if with_interactions:
            await at_rate(INTERACTIONS / IN_A_POST, 1, warm.post)
            work.append(at_rate(INTERACTIONS / IN_A_POST, seconds, load.post))
        await asyncio.gather(*work)
        took = time.perf_counter() - begin
        end = await version_of(client)
        load.backlog = max(load.acknowledged, default=end["sequence"]) - end["sequence"]
        load.acknowledged = warm.acknowledged + load.acknowledged
        return load, {"seconds": took, "version": end["version"], "sequence": end["sequence"]}


async def killed(folder: Path, process: subprocess.Popen[str], url: str, load: Load) -> dict[str, Any]:
    """Kills the service in the middle of the load, starts it again, and compares."""
    async with Client(url) as client:
        under_way = Load(client, 99)
        asking = asyncio.create_task(at_rate(INTERACTIONS / IN_A_POST, 3, under_way.post))
        looking = asyncio.create_task(at_rate(LOOK_UPS, 3, under_way.look_up))
        await asyncio.sleep(2)
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.gather(asking, looking)
    process.wait()
    acknowledged = load.acknowledged + under_way.acknowledged
    again, url, seconds = await asyncio.to_thread(start, folder)
    async with Client(url) as client:
        while True:
            end = await version_of(client)
            if end["sequence"] >= max(acknowledged):
                break
            await asyncio.sleep(0.1)
        # What was seen of a version before the kill is what the version is after it, where it still is the newest.
        after = Load(client, 100)
        after.seen = {**load.seen, **under_way.seen}
        for _ in range(20):
            await after.look_up(time.perf_counter(), 1)
    again.send_signal(signal.SIGTERM)
    status = again.wait(60)
    return {
        "acknowledged": len(acknowledged),
        "twice_acknowledged": len(acknowledged) - len(set(acknowledged)),
        "lost": sum(number > end["sequence"] for number in acknowledged),
        "restart_seconds": round(seconds, 1),
        "torn_after_kill": under_way.torn + after.torn,
        "exit_status": status,
    }


def row(task: str, what: str, load: Load, facts: dict[str, Any]) -> dict[str, Any]:
    p50, p99 = (1000 * np.percentile(load.latencies, [50, 99])) if load.latencies else (np.nan, np.nan)
    return {
        "task": task,
        "what": what,
        "look_ups": len(load.latencies),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "max_ms": round(1000 * max(load.latencies), 1),
        "interactions_per_second": round(len(load.acknowledged) / facts["seconds"]),
        "waiting_at_the_end": load.backlog,
        "refused": load.refused,
        "errors": load.errors,
        "half_updates_seen": load.torn,
        "versions": facts["version"],
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=20)
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--tasks", nargs="+", default=["factorization", "skipgram"])
    chosen = arguments.parse_args()
    where = chosen.folder or Path(tempfile.mkdtemp())
    lines = []
    for task in chosen.tasks:
        folder = where / task
        train(folder, task)
        process, url, _ = start(folder)
        lines.append(row(task, "look-ups alone", *asyncio.run(measure(url, chosen.seconds / 3, False, 0))))
        load, facts = asyncio.run(measure(url, chosen.seconds, True, 10))
        lines.append(
            {**row(task, "with interactions", load, facts), **asyncio.run(killed(folder, process, url, load))}
        )
        for line in lines[-2:]:
            print(line, flush=True)
    with (Path(__file__).parent / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[1]))
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
