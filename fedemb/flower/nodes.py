"""Which node hosts which clients: learnt from the nodes themselves, before the first round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedemb.errors import RunError
from fedemb.flower.records import unpack
from fedemb.types import Int64

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Nodes:
    """Flower nodes in the order of their clients.

    Attributes:
        ids: Flower's node ids.
        bounds: ``(nodes + 1,)``: node ``ids[i]`` hosts the clients ``bounds[i] : bounds[i + 1]``.
        sizes: ``(clients,)`` training examples of every client.
        holders: Per table, ``(num_rows,)`` clients that hold each row; empty unless asked for.
        votes: ``(num_rows,)`` clients' votes for rows of the main entity; None unless asked for.
    """

    ids: tuple[int, ...]
    bounds: Int64
    sizes: Int64
    holders: Mapping[str, Tensor]
    votes: Tensor | None = None

    def split(self, clients: Int64) -> list[tuple[int, Int64]]:
        """Node id and clients for every node that hosts some of these (ascending) clients."""
        cuts = np.searchsorted(clients, self.bounds)
        parts = [(node, clients[cuts[i] : cuts[i + 1]]) for i, node in enumerate(self.ids)]
        return [(node, part) for node, part in parts if len(part)]


def wait_for_nodes(grid: Grid, wanted: int, timeout_seconds: float) -> list[int]:
    """Ids of the connected nodes, once there are as many as wanted.

    Raises:
        RunError: If they do not come in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        ids = sorted(grid.get_node_ids())
        if len(ids) >= max(1, wanted):
            return ids
        if time.monotonic() > deadline:
            raise RunError(f"{wanted} nodes must connect within {timeout_seconds:g} s, {len(ids)} did")
        time.sleep(_POLL_SECONDS)


def describe_nodes(
    grid: Grid,
    wanted: int,
    digest: str,
    tables: str,
    want_holders: bool,
    timeout_seconds: float,
    want_votes: bool = False,
) -> Nodes:
    """Asks every node what it hosts, and refuses nodes that were set up for another model.

    Raises:
        RunError: If a node does not answer, differs, or the nodes' clients do not line up.
    """
    ids = wait_for_nodes(grid, wanted, timeout_seconds)
    config = ConfigRecord({"holders": want_holders, "votes": want_votes})
    messages = [Message(RecordDict({"config": config}), node, "query.describe") for node in ids]
    found = []
    for reply in grid.send_and_receive(messages, timeout=timeout_seconds):
        node = reply.metadata.src_node_id
        if reply.has_error():
            raise RunError(
                f"node {node} cannot take part: {(reply.error.reason or '').strip().splitlines()[-1:]}"
            )
        facts, arrays = reply.content["facts"], reply.content["arrays"]
        assert isinstance(facts, ConfigRecord)
        assert isinstance(arrays, ArrayRecord)
        for name, ours in (("tables", tables), ("digest", digest)):
            if facts[name] != ours:
                raise RunError(
                    f"node {node} was set up for another run: its {name} {facts[name]!s}, ours {ours}"
                )
        found.append((int(str(facts["first"])), node, unpack(arrays)))
    if len(found) != len(ids):
        raise RunError(f"{len(ids)} nodes were asked what they host, {len(found)} answered")
    found.sort(key=lambda entry: entry[0])
    sizes = [entry[2]["sizes"].numpy() for entry in found]
    bounds = np.concatenate([[0], np.cumsum([len(size) for size in sizes])]).astype(np.int64)
    if [entry[0] for entry in found] != bounds[:-1].tolist():
        raise RunError(f"nodes must host consecutive clients, but theirs start at {[e[0] for e in found]}")
    told = [entry[2] for entry in found]
    votes = torch.stack([own["votes"] for own in told]).sum(0) if want_votes else None
    return Nodes(tuple(entry[1] for entry in found), bounds, np.concatenate(sizes), _sum_holders(told), votes)


def _sum_holders(arrays: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = [name for name in arrays[0] if name.startswith("holders/")]
    return {name.removeprefix("holders/"): torch.stack([a[name] for a in arrays]).sum(0) for name in names}
