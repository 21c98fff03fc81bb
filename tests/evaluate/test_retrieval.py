"""Things of one group, found among a client's own: against a loop, and where there is nothing to find."""

import itertools

import numpy as np
import pytest
import torch

from fedemb.data.partition import Natural
from fedemb.data.records import Records
from fedemb.evaluate.choose import evaluation_for
from fedemb.evaluate.retrieval import group_precision
from tests.evaluate.test_labels import made
from tests.gallery import COMPONENTS, gallery_file

OFFSETS = np.array([0, 7, 7, 19, 20])


def things() -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(20, 3))), rng.integers(-1, 4, 20)


def test_precision_by_an_obvious_loop() -> None:
    vectors, group = things()
    found = group_precision(vectors, group, OFFSETS)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    for start, stop in itertools.pairwise(OFFSETS.tolist()):
        for thing in range(start, stop):
            others = sorted(
                (o for o in range(start, stop) if o != thing), key=lambda o: -float(unit[thing] @ unit[o])
            )
            hits = [group[o] == group[thing] and group[thing] >= 0 for o in others]
            gained = [sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit]
            if gained:
                assert found[thing] == pytest.approx(np.mean(gained))
            else:
                assert np.isnan(found[thing])


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, group = things()
    whole = group_precision(vectors, group, OFFSETS)
    monkeypatch.setattr("fedemb.evaluate.retrieval._BYTES", 1)
    np.testing.assert_allclose(group_precision(vectors, group, OFFSETS), whole)


def test_groups_of_records_are_measured_and_not_learnt() -> None:
    columns = {"group": "medium"}
    data = Records(str(gallery_file()), COMPONENTS, columns, label="multi", test_share=0.3).load(Natural(), 0)
    task, points, _ = made("multi")
    assert "group" not in task.examples(data.train).columns
    held = data.held_out["test"]
    evaluation = evaluation_for(task, data)
    assert evaluation is not None
    found = evaluation(points, {}, np.arange(held.num_clients))
    batch = {n: torch.from_numpy(np.array(c)) for n, c in task.examples(held).columns.items()}
    each = group_precision(task.composed(points, batch), held.columns["group"], held.offsets)
    for client in range(held.num_clients):
        own = each[held.offsets[client] : held.offsets[client + 1]]
        expected = np.nanmean(own) if (~np.isnan(own)).any() else np.nan
        assert found.per_client["group_map"][client] == pytest.approx(expected, nan_ok=True)
    assert 0 < found.metrics["group_map"] < 1
