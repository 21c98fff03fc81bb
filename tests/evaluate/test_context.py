"""evaluate/context.py: ranks of held-out words by their contexts, by an obvious loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedemb.data.partition import Natural
from fedemb.data.synthetic import Synthetic
from fedemb.evaluate.choose import evaluation_for, measurable
from fedemb.evaluate.context import ContextPrediction
from fedemb.tasks.contexts import neighbours
from fedemb.tasks.dynamic import Dynamic


@pytest.mark.parametrize("rows", ["static", "slices", "continuous"])
@pytest.mark.parametrize("memory_bytes", [1 << 28, 1])
def test_ranks_by_an_obvious_loop(rows: str, memory_bytes: int) -> None:
    data = Synthetic(num_clients=7, num_items=15, examples_per_client=20, num_clusters=3, days=6).load(
        Natural(), 0
    )
    task = Dynamic.build(
        data, dim=3, negatives=2, own_negatives=0, rows=rows, state="mean", context="window", length=2, repeats=False,
        slice="2 days", walk=1.0, num_waves=2, l2=0.0, init_scale=0.5, temperature=0.5,
    )  # fmt: skip
    found = evaluation_for(task, data)
    assert isinstance(found, ContextPrediction)
    evaluation = ContextPrediction(task, found.held_out, memory_bytes=memory_bytes)
    torch.manual_seed(0)
    tables = {t.name: torch.randn(t.num_rows, t.dim) for t in task.tables}
    tables["item"][4] = tables["item"][5]  # these two are always level, but for their biases
    tables |= {d.name: 0.3 * torch.randn(d.shape) for d in task.dense}
    clients = np.array([1, 2, 5])
    result = evaluation(tables, {}, clients)
    held_out, ranks = data.held_out["test"].take(clients), {0: [], 1: [], 2: []}
    contexts = neighbours(held_out, 2)
    for line, owner in enumerate(held_out.owners()):
        time = int(held_out.columns["time"][line])
        here = [int(i) for i in contexts[line] if i >= 0]
        state = tables["context"][here].sum(0) / (len(here) + 1)
        scores = task.vectors_at(tables, time) @ state / 0.5
        at = int(np.clip(np.searchsorted(task.bounds, time, side="right") - 1, 0, task.num_slices - 1))
        if rows == "slices":
            scores = scores + tables["bias_slice"].view(15, -1)[:, at]
        else:
            scores = scores + tables["bias"][:, 0]
        if rows == "continuous":
            features = task.features(torch.tensor([time]), tables["wave"][None], torch.float32)[0]
            scores = scores + tables["bias_wave"] @ features
        own = scores[int(held_out.columns["item"][line])]
        close = torch.isclose(scores, own, rtol=0, atol=1e-6)
        ranks[int(owner)].append(float(((scores > own) & ~close).sum()) + (float(close.sum()) + 1) / 2)
    everything = [rank for own in ranks.values() for rank in own]
    assert result.metrics["mrr"] == pytest.approx(np.mean([1 / rank for rank in everything]), rel=1e-5)
    assert result.metrics["hits@10"] == pytest.approx(np.mean([rank <= 10 for rank in everything]))
    for place, own in ranks.items():
        assert result.per_client["mrr"][place] == pytest.approx(np.mean([1 / rank for rank in own]), rel=1e-5)
    assert measurable(evaluation, data).tolist() == np.flatnonzero(data.held_out["test"].sizes > 0).tolist()


def test_level_words_share_their_ranks_and_who_has_none_has_no_number() -> None:
    data = Synthetic(num_clients=3, num_items=9, examples_per_client=9, num_clusters=3, days=6).load(
        Natural(), 0
    )
    task = Dynamic.build(
        data, dim=2, negatives=2, own_negatives=0, rows="static", state="mean", context="window", length=2,
        repeats=False, slice="day", walk=1.0, num_waves=0, l2=0.0, init_scale=0.5,
    )  # fmt: skip
    tables = {t.name: torch.zeros(t.num_rows, t.dim) for t in task.tables}
    few = data.held_out["test"].take(np.array([1]))
    sizes = np.array([few.num_examples, 0, 0])
    one = type(few)(few.columns, np.cumsum([0, *sizes]))
    result = ContextPrediction(task, one, "validation")(tables, {}, np.arange(3))
    assert result.metrics["validation_mrr"] == pytest.approx(1 / 5)
    assert np.isnan(result.per_client["validation_mrr"][1:]).all()
