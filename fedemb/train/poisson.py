"""Poisson batches: in each step every example of a client is there or not, by a coin of its own.

That is the sampling that amplifies privacy. An example may come in several steps of an epoch, or in none, and a step
may have no example at all: it is a step all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedemb.data.shards import offsets_of, ragged_indices
from fedemb.seeds import stream_keys, uniforms
from fedemb.train.candidates import candidate_tables, draw_rows
from fedemb.train.epochs import Epoch, Examples
from fedemb.types import Int64, Task

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How the examples of clients are sampled; all ``(clients,)``.

    Attributes:
        rate: Probability that an example is in a step.
        steps: Steps of an epoch.
        expected: Examples that a step has on average: what its sum is divided by.
    """

    rate: Float64
    steps: Int64
    expected: Float64

    @staticmethod
    def of(sizes: Int64, batch_size: int) -> Sampling:
        """An epoch has as many steps as batches of ``batch_size`` (0: all) would; no step without examples.

        >>> Sampling.of(np.array([0, 6, 20]), 8).steps.tolist()
        [0, 1, 3]
        """
        wanted = np.minimum(batch_size or np.iinfo(np.int64).max, sizes)
        some = np.maximum(wanted, 1)
        return Sampling(wanted / np.maximum(sizes, 1), -(-sizes // some), some.astype(np.float64))


def poisson_lines(
    sampling: Sampling, sizes: Int64, keys: npt.NDArray[np.uint64]
) -> tuple[Int64, Int64, Int64]:
    """Which example of which client is in which step of an epoch: ``(client, step, line)``, by step, client and line.

    Instead of a coin for each example and step, the gaps between those that are there are drawn: they are geometric.

    Args:
        sampling: Of these clients.
        sizes: ``(clients,)`` examples.
        keys: ``(clients,)`` uint64, of the stream of each client's coins.
    """
    cells = sizes * sampling.steps
    always = sampling.rate >= 1
    likely = np.where(always, 0.0, cells * sampling.rate)
    block = np.ceil(likely + 6 * np.sqrt(likely) + 8).astype(np.int64) * (cells > 0) * ~always
    found = [_every(np.flatnonzero(always), cells)]
    drawn, reached = np.zeros_like(cells), np.full_like(cells, -1)
    while len(open_ := np.flatnonzero(block > 0)):
        client = np.repeat(open_, block[open_])
        number = ragged_indices(np.zeros(len(open_), dtype=np.int64), block[open_])
        draws = uniforms(keys[client], 1, number + drawn[client])[:, 0]
        gaps = np.log1p(-draws) / np.log1p(-sampling.rate[client])
        gaps = 1 + np.minimum(gaps, cells[client]).astype(np.int64)
        total = np.cumsum(gaps)
        ends = np.cumsum(block[open_])
        before = np.concatenate(([0], total[ends[:-1] - 1]))
        cell = total - np.repeat(before - reached[open_], block[open_])
        drawn[open_] += block[open_]
        reached[open_] = cell[ends - 1]
        inside = cell < cells[client]
        found.append((client[inside], cell[inside]))
        block = np.where(reached < cells - 1, block, 0)  # once in 10^9 a block does not reach the end
    client = np.concatenate([one for one, _ in found])
    cell = np.concatenate([one for _, one in found])
    step, line = np.divmod(cell, np.maximum(sizes, 1)[client])
    order = np.lexsort((line, client, step))
    return client[order], step[order], line[order]


def _every(clients: Int64, cells: Int64) -> tuple[Int64, Int64]:
    counts = cells[clients]
    return np.repeat(clients, counts), ragged_indices(np.zeros_like(counts), counts)


def poisson_epoch(
    task: Task,
    examples: Examples,
    batch_size: int,
    seed: int,
    coins: int,
    round: int,
    epoch: int,
    clients: Int64,
) -> Epoch:
    """An epoch in Poisson batches; nothing in it depends on who else is in the chunk.

    ``scale`` holds the examples' weights alone: sums are divided by what was expected of a step, not by what came.

    Args:
        task: What is learnt; its loss must not depend on other examples, so nothing is excluded from what is drawn.
        examples: From ``examples_of``.
        batch_size: Lines of a client that a step has on average; 0 for all of them.
        seed: The run's seed, for what is drawn from public distributions.
        coins: The seed of the coins, which nobody else may know.
        round: The round.
        epoch: The epoch in this round.
        clients: ``(clients,)`` ids.
    """
    sizes = np.diff(examples.offsets)
    sampling = Sampling.of(sizes, batch_size)
    client, step, line = poisson_lines(sampling, sizes, stream_keys(coins, "poisson", round, epoch, clients))
    at = torch.from_numpy(examples.offsets[client] + line)
    draws = torch.empty((len(client), 0), dtype=torch.float64)
    if task.num_draws:
        keys = stream_keys(seed, "sample", round, epoch, clients)[client]
        first = (step * sizes[client] + line) * task.num_draws
        draws = torch.from_numpy(uniforms(keys, task.num_draws, first))
    batch = dict(task.sample({name: column[at] for name, column in examples.columns.items()}, draws))
    keep = batch.pop("keep", None)
    if keep is not None:
        batch = {name: column[keep] for name, column in batch.items()}
        client, step, at = client[keep.numpy()], step[keep.numpy()], at[keep]
    scale = torch.ones(len(client), dtype=torch.float64)
    if "weight" in batch:
        scale = scale * batch["weight"]
    most = int(sampling.steps.max(initial=0))
    return Epoch(
        batch,
        task.lookup(batch),
        torch.from_numpy(client),
        examples.whose.index_select(0, at),
        scale,
        offsets_of(np.bincount(step, minlength=most)).tolist(),
        {
            table.name: draw_rows(table, drawn, sampling.steps, seed, round, epoch, clients)
            for table, drawn in candidate_tables(task)
            if drawn is not None
        },
        None,
    )
