"""evaluate/neighbours.py against a loop over pairs."""

from __future__ import annotations

import numpy as np
import torch

from fedemb.data.shards import offsets_of
from fedemb.evaluate.neighbours import own_neighbours


def test_nearest_by_a_loop() -> None:
    rng = np.random.default_rng(0)
    offsets = offsets_of(np.array([1, 300, 0, 2, 7, 290]))
    vectors = rng.normal(size=(600, 3))
    vectors[17] = vectors[5] * 2
    vectors[20:24] = 0.0
    found = own_neighbours(torch.from_numpy(vectors).float(), offsets)
    with np.errstate(invalid="ignore"):
        unit = np.nan_to_num(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    for client in range(6):
        lines = range(offsets[client], offsets[client + 1])
        for line in lines:
            others = {other: round(float(unit[line] @ unit[other]), 5) for other in lines if other != line}
            if not others:
                assert found[line] == -1
            else:
                assert others[found[line]] >= max(others.values()) - 1e-5
    assert found[5] == 17
    assert found[17] == 5
    assert own_neighbours(torch.zeros(0, 3), np.zeros(1, dtype=np.int64)).tolist() == []
