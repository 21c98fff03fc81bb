"""evaluate/retrieval.py by an obvious loop."""

import numpy as np
import pytest
import torch

from fedemb.evaluate import retrieval
from fedemb.evaluate.retrieval import same_owner_retrieval


@pytest.mark.parametrize("memory", [1 << 27, 1])
def test_by_an_obvious_loop(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_BYTES", memory)
    rng = np.random.default_rng(0)
    vectors, owner = rng.normal(size=(40, 5)), rng.integers(0, 12, 40)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    precisions, recalls = [], []
    for thing in range(40):
        order = [other for other in np.argsort(-unit @ unit[thing]) if other != thing]
        hits = [owner[other] == owner[thing] for other in order]
        if any(hits):
            at = [sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit]
            precisions.append(np.mean(at))
            recalls.append(sum(hits[:3]) / min(3, sum(hits)))
    found = same_owner_retrieval(torch.from_numpy(vectors), owner, 3)
    assert found["retrieval_map"] == pytest.approx(np.mean(precisions))
    assert found["retrieval_recall@3"] == pytest.approx(np.mean(recalls))


def test_nobody_has_two() -> None:
    assert np.isnan(same_owner_retrieval(torch.eye(3), np.arange(3))["retrieval_map"])
