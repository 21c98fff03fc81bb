"""evaluate/labels.py: precision from counts in bins, what is removed, clients apart and together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedemb.evaluate.average_precision import average_precision, binned
from fedemb.evaluate.choose import evaluation_for, measurable
from fedemb.evaluate.labels import SHARES, LabelPrediction, label_ranking, removals
from fedemb.evaluate.spread import overall
from fedemb.tasks.compositional import multi_hot
from tests.gallery import gallery
from tests.tasks.test_compositional import loop, made


def obvious(scores: np.ndarray, truth: np.ndarray) -> float:
    """Average precision as scikit-learn defines it: thresholds at every score, from the highest on."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        precision, recall = truth[chosen].mean(), truth[chosen].sum() / truth.sum()
        total, before = total + (recall - before) * precision, recall
    return float(total)


def test_average_precision_by_an_obvious_loop() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 4))
    truth = rng.random((300, 4)) < 1 / (1 + np.exp(-scores)) * [0.9, 0.5, 0.1, 0.0]
    found = average_precision(binned(scores, truth))
    rounded = np.floor((scores + 10) / 20 * 1024)
    for label in range(3):
        assert found[label] == pytest.approx(obvious(rounded[:, label], truth[:, label]))
        assert found[label] == pytest.approx(obvious(scores[:, label], truth[:, label]), abs=0.01)
    assert np.isnan(found[3])


def test_counts_add_up_over_clients() -> None:
    rng = np.random.default_rng(1)
    scores, truth = rng.normal(size=(50, 3)) * 20, rng.random((50, 3)) < 0.4
    whole = binned(scores, truth)
    assert whole.sum() == 150
    assert np.array_equal(whole, binned(scores[:20], truth[:20]) + binned(scores[20:], truth[20:]))
    assert binned(np.full((2, 1), np.nan), np.ones((2, 1), bool))[0, 1, 0] == 2


def test_label_ranking_by_an_obvious_loop() -> None:
    rng = np.random.default_rng(2)
    scores, truth = rng.integers(0, 5, (40, 6)).astype(float), rng.random((40, 6)) < 0.4
    found = label_ranking(scores, truth)
    for line in range(40):
        shares = [
            (truth[line] & (scores[line] >= scores[line, label])).sum()
            / (scores[line] >= scores[line, label]).sum()
            for label in np.flatnonzero(truth[line])
        ]
        assert found[line] == pytest.approx(np.mean(shares) if shares else 0.0)


@pytest.mark.parametrize("label", ["multi", "category"])
def test_metrics_by_an_obvious_loop(label: str) -> None:
    data = gallery(label)
    task, points, _ = made(label)
    evaluation = evaluation_for(task, data, seed=3)
    assert isinstance(evaluation, LabelPrediction)
    clients = np.flatnonzero(data.held_out["test"].sizes)
    result = evaluation(points, {}, clients)
    shards = data.held_out["test"].take(clients)
    truth = multi_hot(torch.from_numpy(np.array(shards.columns["label"])), task.label.num_values).numpy()
    until = removals(task.components, shards.columns["key"], 3)
    for share in (0.0, *SHARES):
        batch = {n: torch.from_numpy(np.array(c)) for n, c in task.examples(shards).columns.items()}
        for line in range(len(truth)):
            for place, part in enumerate(task.components):
                if until[line, place] < share:
                    batch[part.column][line] = -1 if part.num_values else torch.nan
        scores = np.stack([loop(task, points, batch, line).numpy() for line in range(len(truth))]).astype(
            float
        )
        if label == "category":
            p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            scores = np.log(p / (1 - p))
        each = [obvious(scores[:, j], truth[:, j]) for j in range(truth.shape[1]) if truth[:, j].any()]
        name = "macro_ap" if share == 0 else f"macro_ap_without_{round(100 * share)}"
        assert result.metrics[name] == pytest.approx(np.mean(each), abs=0.06)  # 43 records, some in one bin
        if share == 0 and label == "category":
            right = truth[np.arange(len(truth)), scores.argmax(1)]
            assert result.metrics["accuracy"] == pytest.approx(right.mean())
            loss = -np.log(p[truth])
            assert result.metrics["log_loss"] == pytest.approx(loss.mean(), rel=1e-4)
            for place, _ in enumerate(clients):
                mine = shards.owners() == place
                assert result.per_client["accuracy"][place] == pytest.approx(right[mine].mean())
        if share == 0 and label == "multi":
            assert result.metrics["micro_ap"] == pytest.approx(
                obvious(scores.ravel(), truth.ravel()), abs=0.02
            )
            expected = label_ranking(scores, truth).mean()
            assert result.metrics["label_ranking_ap"] == pytest.approx(expected, abs=1e-6)
            loss = np.logaddexp(0, np.where(truth, -scores, scores)).sum(1)
            assert result.metrics["log_loss"] == pytest.approx(loss.mean(), rel=1e-4)
    assert next(iter(result.metrics)) == "macro_ap"
    assert measurable(evaluation, data).tolist() == clients.tolist()


def test_nothing_is_removed_where_there_is_one_component() -> None:
    data = gallery("category")
    task, points, _ = made("category")
    single = replace(task, components=task.components[:1], combine="mean")
    found = LabelPrediction(single, data.held_out["test"], 3)(points, {}, np.arange(data.train.num_clients))
    assert "macro_ap" in found.metrics
    assert not any("without" in name for name in found.metrics)


def test_clients_apart_equal_clients_together() -> None:
    data = gallery()
    task, points, _ = made()
    evaluation = LabelPrediction(task, data.held_out["test"], 0)
    whole = evaluation(points, {}, np.arange(data.train.num_clients))
    parts = [evaluation(points, {}, clients) for clients in (np.array([4, 1]), np.array([0, 2, 3]))]
    per_client = {n: np.concatenate([part.per_client[n] for part in parts]) for n in whole.per_client}
    weights = np.concatenate([part.weights for part in parts if part.weights is not None])
    together = overall(evaluation, per_client, weights, [part.sums for part in parts])
    assert together.keys() == whole.metrics.keys()
    for name, value in whole.metrics.items():
        assert together[name] == pytest.approx(value)
    nobody = evaluation(points, {}, np.zeros(0, dtype=np.int64))
    assert np.isnan(nobody.metrics["macro_ap"])


def test_another_split_has_another_name() -> None:
    data = gallery()
    task, points, _ = made()
    only = replace(data, held_out={"validation": data.held_out["validation"]})
    evaluation = evaluation_for(task, only)
    assert evaluation is not None
    result = evaluation(points, {}, np.arange(data.train.num_clients))
    assert all(name.startswith("validation_") for name in result.metrics)


def test_what_is_removed_belongs_to_the_record() -> None:
    task, _, _ = made()
    keys = gallery().train.columns["key"]
    whole = removals(task.components, keys, 5)
    assert np.array_equal(whole[3:9], removals(task.components, keys[3:9], 5))
    assert not np.array_equal(whole, removals(task.components, keys, 6))
    assert (whole < 0.5).mean() == pytest.approx(0.5, abs=0.08)
