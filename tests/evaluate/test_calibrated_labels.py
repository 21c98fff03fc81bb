"""evaluate/calibrated_labels.py by loops over records, clients apart and together, and never fitted on the test."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

import fedemb
from fedemb.build import build
from fedemb.config import compose_config
from fedemb.data.partition import Natural
from fedemb.data.records import Records
from fedemb.data.shards import Shards
from fedemb.errors import DataError, RunError, SettingError
from fedemb.evaluate.calibrated_labels import OUT, CalibratedLabels
from fedemb.evaluate.calibration import MAPS
from fedemb.evaluate.choose import evaluation_for, measurable
from fedemb.evaluate.confidence import Calibration
from fedemb.evaluate.labels import LabelPrediction
from fedemb.evaluate.measure import measured
from fedemb.evaluate.spread import added, overall
from fedemb.tasks.compositional import Compositional
from fedemb.types import Batch, Dataset, Fitted, Pooled
from tests.evaluate.test_calibration import slow_ece
from tests.gallery import COMPONENTS, gallery_file, gallery_overrides
from tests.tasks.test_compositional import SETTINGS, made

WANTED = Calibration(MAPS, 0.1, 5, True)


@lru_cache(maxsize=1)
def halves() -> Dataset:
    """Many records to fit on and to test on; the second client has none to fit on, some have no label known."""
    source = Records(
        str(gallery_file("category")), COMPONENTS, label="category", validation_share=0.4, test_share=0.4
    )
    data = source.load(Natural(), 0)
    held_out = {name: without_client(shards, 1) for name, shards in data.held_out.items()}
    held_out["test"] = data.held_out["test"]
    unknown = data.train
    columns = {**unknown.columns, "label": np.full_like(unknown.columns["label"], -1)}
    return replace(data, held_out={**held_out, OUT: Shards(columns, unknown.offsets)})


def without_client(shards: Shards, client: int) -> Shards:
    keep = shards.owners() != client
    sizes = np.where(np.arange(shards.num_clients) == client, 0, shards.sizes)
    return Shards({n: c[keep] for n, c in shards.columns.items()}, np.concatenate([[0], np.cumsum(sizes)]))


@dataclass(frozen=True)
class Doubting(Compositional):
    """The task, with an uncertainty of its own."""

    def uncertainties(self, tables: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {"norm": self.composed(tables, batch).norm(dim=1) / 1e3}


def prepared(doubting: bool = False) -> tuple[CalibratedLabels, dict[str, Tensor], np.ndarray]:
    task = (Doubting if doubting else Compositional).build(halves(), **SETTINGS)
    if doubting:
        task = Doubting(**{name: getattr(task, name) for name in Compositional.__dataclass_fields__})
    _, points, _ = made("category")
    shapes = {t.name: (t.num_rows, t.dim) for t in task.tables} | {d.name: d.shape for d in task.dense}
    points = {name: points[name][: shape[0]] for name, shape in shapes.items()}
    points = {n: p if p.shape == shapes[n] else torch.full(shapes[n], 0.1) for n, p in points.items()}
    points["label"] = points["label"] * 20
    return CalibratedLabels(task, halves(), 3, WANTED), points, np.arange(halves().train.num_clients)


def scores_of(evaluation: CalibratedLabels, points: dict[str, Tensor], split: str) -> tuple[Any, Any, Any]:
    """Scores, labels and owners of a split."""
    shards = halves().held_out[split]
    batch = {n: torch.from_numpy(np.array(c)) for n, c in evaluation.task.examples(shards).columns.items()}
    scores = evaluation.task.label_scores(points, batch).double().numpy()
    return scores, shards.columns["label"][:, 0], shards.owners()


def area(negative: np.ndarray, positive: np.ndarray) -> float:
    return float(np.mean([(a > b) + (a == b) / 2 for a in positive for b in negative]))


def test_it_is_an_evaluation_in_two_exchanges() -> None:
    evaluation, _, _ = prepared()
    assert isinstance(evaluation, Fitted)
    assert isinstance(evaluation, Pooled)
    assert not isinstance(evaluation.plain, Fitted)


def test_metrics_by_loops() -> None:
    evaluation, points, clients = prepared(doubting=True)
    result = measured(evaluation, points, {}, clients)
    plain = evaluation.plain(points, {}, clients)
    for name, value in plain.metrics.items():
        assert result.metrics[name] == value
    assert next(iter(result.metrics)) == "macro_ap"
    scores, truth, owner = scores_of(evaluation, points, "test")
    log_p = log_softmax(scores, axis=1)
    p, top = np.exp(log_p), log_p.argmax(1)
    hit, lines = (top == truth).astype(int), np.arange(len(truth))
    assert 0.05 < hit.mean() < 0.95
    assert result.metrics["nll"] == pytest.approx(-log_p[lines, truth].mean(), rel=1e-5)
    assert result.metrics["nll"] == pytest.approx(result.metrics["log_loss"], rel=1e-4)
    truths = np.eye(p.shape[1])[truth]
    assert result.metrics["brier"] == pytest.approx(((p - truths) ** 2).sum(1).mean(), rel=1e-5)
    assert result.metrics["ece"] == pytest.approx(slow_ece(p.max(1), hit, 5), abs=0.02)
    temperature = result.metrics["temperature"]
    after = np.exp(log_softmax(scores / temperature, axis=1))
    assert result.metrics["ece_temperature"] == pytest.approx(slow_ece(after.max(1), hit, 5), abs=0.02)
    assert result.metrics["brier_temperature"] == pytest.approx(
        ((after - truths) ** 2).sum(1).mean(), rel=1e-4
    )
    fit_scores, fit_truth, _ = scores_of(evaluation, points, "validation")

    def nll(t: float) -> float:
        return float(-log_softmax(fit_scores / t, axis=1)[np.arange(len(fit_truth)), fit_truth].mean())

    assert nll(temperature) <= min(nll(temperature * 1.02), nll(temperature / 1.02))
    for one in clients:
        mine = owner == one
        expected = slow_ece(p.max(1)[mine], hit[mine], 5)
        assert result.per_client["ece"][one] == pytest.approx(expected, abs=0.02)
    uncertainties = {"confidence": 1 - p.max(1), "temperature": 1 - after.max(1)}
    shards = halves().held_out["test"]
    batch = {n: torch.from_numpy(np.array(c)) for n, c in evaluation.task.examples(shards).columns.items()}
    vectors = evaluation.task.composed(points, batch).double().numpy()
    uncertainties["norm"] = np.linalg.norm(vectors, axis=1)
    vectors /= uncertainties["norm"][:, None]
    missed = []
    for line in lines:
        others = [other for other in lines if owner[other] == owner[line] and other != line]
        near = max(others, key=lambda other: (round(float(vectors[line] @ vectors[other]), 6), -other))
        missed.append(truth[near] != truth[line])
    wrong_neighbour = np.array(missed)
    out_scores, _, _ = scores_of(evaluation, points, OUT)
    out = {
        "confidence": 1 - np.exp(log_softmax(out_scores, axis=1)).max(1),
        "temperature": 1 - np.exp(log_softmax(out_scores / temperature, axis=1)).max(1),
    }
    for name, values in uncertainties.items():
        found = result.metrics[f"r_auroc_{name}"]
        assert found == pytest.approx(area(values[~wrong_neighbour], values[wrong_neighbour]), abs=0.02)
        order = np.argsort(values, kind="stable")
        risks = np.cumsum(1 - hit[order]) / np.arange(1, len(hit) + 1)
        assert result.metrics[f"aurc_{name}"] == pytest.approx(risks.mean(), abs=5e-3)
        if name in out:
            assert result.metrics[f"ood_auroc_{name}"] == pytest.approx(area(values, out[name]), abs=5e-3)
    assert 0 < result.metrics["ood_auroc_norm"] < 1


def test_sets_by_loops() -> None:
    evaluation, points, clients = prepared()
    result = measured(evaluation, points, {}, clients)
    scores, truth, owner = scores_of(evaluation, points, "test")
    fit_scores, fit_truth, fit_owner = scores_of(evaluation, points, "validation")
    p, fit_p = (np.exp(log_softmax(s, axis=1)) for s in (scores, fit_scores))
    true = fit_p[np.arange(len(fit_truth)), fit_truth]

    def threshold(values: np.ndarray) -> float:
        rank = math.ceil((len(values) + 1) * 0.9)
        return sorted(values, reverse=True)[rank - 1] if rank <= len(values) else 0.0

    common = threshold(true)
    for one in clients:
        mine = owner == one
        own = threshold(true[fit_owner == one])
        assert result.per_client["own_coverage"][one] == np.mean(p[mine, truth[mine]] >= own)
        assert result.per_client["own_set_size"][one] == pytest.approx((p[mine] >= own).sum(1).mean())
        covered = np.mean(p[mine, truth[mine]] >= common)
        assert covered <= result.per_client["coverage"][one] <= covered + 0.05
    assert result.per_client["own_set_size"][1] == p.shape[1], "nothing to fit on: all labels"
    assert result.metrics["set_size"] >= (p >= common).sum(1).mean()


def test_clients_apart_equal_clients_together() -> None:
    evaluation, points, clients = prepared(doubting=True)
    whole = evaluation.fit_sums(points, {}, clients)
    groups = (np.array([4, 1]), np.array([2]), np.array([0, 3]))
    apart = added([evaluation.fit_sums(points, {}, group) for group in groups])
    for name, value in whole.items():
        np.testing.assert_allclose(apart[name], value, atol=2 * 60)  # rounding of 32-bit scores
    tables = {**points, **evaluation.fitted(whole)}
    together = evaluation(tables, {}, clients)
    parts = [evaluation(tables, {}, group) for group in groups]
    per_client = {n: np.concatenate([part.per_client[n] for part in parts]) for n in together.per_client}
    weights = np.concatenate([part.weights for part in parts if part.weights is not None])
    metrics = overall(evaluation, per_client, weights, [part.sums for part in parts])
    assert list(metrics) == list(together.metrics)
    for name, value in together.metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5)
    nobody = measured(evaluation, points, {}, np.zeros(0, dtype=np.int64))
    assert np.isnan(nobody.metrics["ece"])


def test_a_client_alone_is_calibrated_by_itself() -> None:
    evaluation, points, _ = prepared()
    alone = [measured(evaluation, points, {}, np.array([client])) for client in range(5)]
    temperatures = [result.metrics["temperature"] for result in alone]
    assert len(set(temperatures)) == 5
    assert temperatures[1] == 1, "nothing to fit on"
    for name in MAPS:
        assert alone[1].metrics[f"nll_{name}"] == pytest.approx(alone[1].metrics["nll"])


def test_nothing_of_the_test_split_reaches_the_fit() -> None:
    evaluation, points, clients = prepared()
    fitted = evaluation.fitted(evaluation.fit_sums(points, {}, clients))
    rng = np.random.default_rng(0)
    test = halves().held_out["test"]
    mixed = {name: rng.permutation(column) for name, column in test.columns.items()}
    few = without_client(without_client(test, 0), 3)
    for other in (Shards(mixed, test.offsets), few):
        data = replace(halves(), held_out={**halves().held_out, "test": other})
        changed = replace(evaluation, dataset=data)
        assert (
            measured(changed, points, {}, clients).metrics["ece"]
            != measured(evaluation, points, {}, clients).metrics["ece"]
        )
        again = changed.fitted(changed.fit_sums(points, {}, clients))
        assert fitted.keys() == again.keys()
        assert all(torch.equal(value, again[name]) for name, value in fitted.items())


def test_no_argument_names_the_split_to_fit_on() -> None:
    assert set(CalibratedLabels.__dataclass_fields__) == {"task", "dataset", "seed", "wanted"}
    assert not {"split", "held_out"} & set(Calibration.__dataclass_fields__)


def test_a_record_in_both_splits_is_refused() -> None:
    data = halves()
    both = replace(data, held_out={**data.held_out, "test": data.held_out["validation"]})
    evaluation, _, _ = prepared()
    with pytest.raises(DataError, match=r"\d+ records stand in both"):
        replace(evaluation, dataset=both)
    assert isinstance(
        evaluation_for(evaluation.task, both, calibration=replace(WANTED, required=False)),
        LabelPrediction,
    )
    with pytest.raises(DataError, match="stand in both"):
        evaluation_for(evaluation.task, both, calibration=WANTED)


def test_where_there_is_nothing_to_fit_on() -> None:
    evaluation, _, _ = prepared()
    for split in ("test", "validation"):
        only = replace(halves(), held_out={split: halves().held_out[split]})
        found = evaluation_for(evaluation.task, only, calibration=replace(WANTED, required=False))
        assert isinstance(found, LabelPrediction)
        assert found.split == split
        with pytest.raises(
            SettingError, match=r"needs records in validation and test.*data\.validation_share"
        ):
            evaluation_for(evaluation.task, only, calibration=WANTED)
    task, _, _ = made("multi")
    with pytest.raises(SettingError, match=r"data\.label=category"):
        evaluation_for(task, halves(), calibration=WANTED)
    found = evaluation_for(evaluation.task, halves(), seed=3, calibration=WANTED)
    assert found == evaluation
    assert measurable(found, halves()).tolist() == np.flatnonzero(halves().held_out["test"].sizes).tolist()


def test_a_diverged_model_is_an_error_that_says_so() -> None:
    evaluation, points, clients = prepared()
    points["label_bias"] = points["label_bias"] * torch.nan
    with pytest.raises(RunError, match="the model diverged"):
        measured(evaluation, points, {}, clients)
    with pytest.raises(ValueError, match="must be fitted before"):
        evaluation(prepared()[1], {}, clients)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("evaluation.calibrate=temperature", "calibrate must be auto, or a list of temperature, platt"),
        ("evaluation.calibrate=[beta]", "calibrate must be auto, or a list of temperature, platt"),
        ("evaluation.calibrate=3", "calibrate must be auto"),
        ("evaluation.alpha=1.0", r"alpha must be in \(0, 1\), got 1.0; 0.1 makes"),
        ("evaluation.alpha=much", "alpha must be a number, got 'much'"),
        ("evaluation.bins=0", "bins must be at least 1, got 0; 15 is usual"),
        ("evaluation.bins=1.5", "bins must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(setting: str, complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        build(compose_config([*gallery_overrides("category"), setting]))


def test_a_run_keeps_what_it_fitted(tmp_path: Path) -> None:
    overrides = [
        *gallery_overrides("category"), "task.dim=8", "rounds=2", "data.validation_share=0.3", "data.test_share=0.3",
        "baselines=[fine_tuned,local_only]",
    ]  # fmt: skip
    fedemb.train(overrides, folder=tmp_path / "run")
    run = fedemb.load(tmp_path / "run")
    fitted = run.fitted()
    assert sorted(fitted) == [f"calibration/{n}" for n in sorted((*MAPS, "conformal"))]
    parts = build(compose_config(overrides))
    assert parts.evaluation is not None
    tables, dense = run.tensors()
    everybody = np.arange(parts.dataset.train.num_clients)
    again = parts.evaluation({**tables, **dense, **fitted}, {}, everybody)
    for name, value in again.metrics.items():
        assert run.summary["metrics"][name] == pytest.approx(value, rel=1e-6)
    assert set(run.summary["calibration"]) == {"federated", "fine_tuned", "local_only"}
    assert set(run.summary["calibration"]["federated"]["reliability"]) == {"before", *MAPS}
    assert all((tmp_path / "run" / f"{name}.png").is_file() for name in ("reliability", "risk"))
    for name in ("fine_tuned", "local_only"):
        spread = run.summary["baselines_per_client"][name]["temperature"]
        assert spread["std"] > 0, "each with its own"
    assert run.summary["per_client"]["temperature"]["std"] < 1e-9
    plain = fedemb.train(
        [*overrides[:-1], "baselines=[]", "evaluation.calibrate=[]"], folder=tmp_path / "plain"
    )
    assert plain.fitted() == {}
    assert "ece" not in plain.summary["metrics"]
