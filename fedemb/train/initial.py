"""Starting points of tables and dense parameters: a row's numbers follow from seed, name and id alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedemb.gaussian import Gaussian, split
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Dense, Int64, Table

_BLOCK_ROWS = 1 << 16


def initial_rows(table: Table, seed: int, ids: Int64) -> Tensor:
    """Starting points ``(ids, coordinates)`` of rows: ``exp`` at the origin of a uniform frame vector.

    Those of Gaussians have uniform means and the prior's precision.
    """
    origin = table.manifold.origin(table.dim)
    points = torch.empty((len(ids), len(origin)), dtype=table.manifold.dtype)
    for start in range(0, len(ids), _BLOCK_ROWS):
        part = ids[start : start + _BLOCK_ROWS]
        draws = uniforms(stream_keys(seed, f"init/{table.name}", part), table.dim)
        frame = torch.from_numpy((2 * draws - 1) * table.init_scale).to(table.manifold.dtype)
        if isinstance(table.manifold, Gaussian):
            frame = table.manifold.initial_frame(split(frame)[0])
        at = origin.expand(len(part), -1)
        points[start : start + len(part)] = table.manifold.exp(at, table.manifold.from_frame(at, frame))
    return points


def initial_table(table: Table, seed: int) -> Tensor:
    """All rows of a shared table ``(num_rows, coordinates)``."""
    return initial_rows(table, seed, np.arange(table.num_rows, dtype=np.int64))


def initial_dense(dense: Dense, seed: int) -> Tensor:
    """A dense parameter of its own shape."""
    size = int(np.prod(dense.shape, dtype=np.int64))
    draws = uniforms(stream_keys(seed, f"init/{dense.name}"), max(size, 1))[0, :size]
    return torch.from_numpy((2 * draws - 1) * dense.init_scale).float().reshape(dense.shape)
