"""How far vectors move through time, and who is near them when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedemb.types import Float, Int64, Temporal

NUM_NEIGHBOURS = 5
_FREQUENT = 2_000  # only so many of the commonest are neighbours
_IN_A_SLICE = 10  # a row that was seen less often on average moves by chance
_ENOUGH = (
    10  # where fewer rows than this were seen so often, all of the commonest are asked how far they moved
)


@dataclass(frozen=True)
class Drift:
    """Some rows through time.

    Attributes:
        rows: ``(rows,)`` ids.
        times: ``(slices,)`` epoch seconds: the middle of each slice.
        moved: ``(rows, slices)`` cosine distance from where the row was in the first slice.
        neighbours: ``(rows, slices, neighbours)`` ids of the nearest among the commonest rows, nearest first.
        cosines: ``(rows, slices, neighbours)``.
        ranked: ``(rows,)`` ids of rows, furthest moved from the first slice to the last first: of those that were seen
            ten times a slice on average, if there are ten such rows, else of the commonest.
        distances: ``(rows,)`` how far those moved.
    """

    rows: Int64
    times: Int64
    moved: Float
    neighbours: Int64
    cosines: Float
    ranked: Int64
    distances: Float


def drift_of(
    task: Temporal,
    tables: Mapping[str, Tensor],
    counts: Int64,
    follow: Int64 | None = None,
    num_rows: int = 6,
) -> Drift:
    """How rows move from slice to slice.

    Args:
        task: What was learnt.
        tables: Shared tables, and dense parameters by name.
        counts: ``(rows,)`` how often each row was seen.
        follow: Rows that are asked for; None: the ``num_rows`` that moved most.
        num_rows: See there.
    """
    times = (task.slices[:-1] + task.slices[1:]) // 2
    common = np.flatnonzero(counts > 0)
    common = common[np.argsort(-counts[common], kind="stable")][:_FREQUENT]
    often = common[counts[common] >= _IN_A_SLICE * len(times)]
    often = often if len(often) >= _ENOUGH else common
    at = torch.from_numpy(common)

    def unit(time: int) -> Tensor:
        return normalize(task.vectors_at(tables, int(time)).detach().cpu().double(), dim=1)

    first, last = unit(times[0]), unit(times[-1])
    asked_often = torch.from_numpy(often)
    far = (1 - (first[asked_often] * last[asked_often]).sum(1)).numpy()
    order = np.argsort(-far, kind="stable")
    rows = often[order[:num_rows]] if follow is None else np.asarray(follow, dtype=np.int64)
    asked = torch.from_numpy(rows)
    num_near = min(NUM_NEIGHBOURS, max(0, len(common) - 1))
    shape = (len(rows), len(times))
    moved, cosines = np.zeros(shape), np.zeros((*shape, num_near))
    near = np.zeros((*shape, num_near), dtype=np.int64)
    for number, time in enumerate(times):
        now = unit(time)
        moved[:, number] = 1 - (first[asked] * now[asked]).sum(1).numpy()
        alike = (now[asked] @ now[at].T).masked_fill(asked[:, None] == at, -torch.inf)
        values, best = alike.topk(num_near, dim=1)
        cosines[:, number], near[:, number] = values.numpy(), common[best.numpy()]
    return Drift(rows, times, moved, near, cosines, often[order], far[order])
