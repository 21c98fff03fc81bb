"""evaluate/calibrated_triples.py: labelled triples by a loop, clients apart and together, never fitted on the test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from fedemb.data.shards import Shards
from fedemb.errors import DataError, RunError, SettingError
from fedemb.evaluate.calibrated_triples import CalibratedTriples
from fedemb.evaluate.calibration import MAPS
from fedemb.evaluate.choose import evaluation_for, measurable
from fedemb.evaluate.confidence import Calibration
from fedemb.evaluate.measure import measured
from fedemb.evaluate.spread import added, overall
from fedemb.evaluate.triples import LinkPrediction
from tests.evaluate.test_calibration import slow_ece
from tests.evaluate.test_triples import EVERYBODY, Given, given_scores, slow_threshold, triples_of
from tests.graphs import graph

WANTED = Calibration(MAPS, 0.1, 5, True)


def evaluation() -> CalibratedTriples:
    return CalibratedTriples(Given(), graph(), WANTED)


def informed() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Scores that are higher where triples are true, and too sharp."""
    tables, personal = given_scores("different")
    for name in ("validation", "test"):
        for _, h, r, t in triples_of(graph().held_out[name]):
            tables["score"][0, r, h, t] += 1.5
    return {"score": 3 * tables["score"]}, {"own": 3 * personal["own"]}


def labelled(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels, clients and relations."""
    tables, personal = informed()
    found = [
        (float(tables["score"][0, r, h, t] + personal["own"][client, r, t]), label, client, r)
        for name, label in ((split, 1), (f"{split}_negatives", 0))
        for client, h, r, t in triples_of(graph().held_out[name])
    ]
    scores, labels, clients, relations = (np.array(column) for column in zip(*found, strict=True))
    return scores, labels, clients, relations


def shifted(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores less the threshold of their relation at their client, and labels."""
    seen, so, who, which = labelled("validation")
    scores, labels, clients, relations = labelled(split)
    out = scores.copy()
    for line in range(len(scores)):
        own = who == clients[line]
        alike = own & (which == relations[line])
        alike = alike if alike.any() else own
        out[line] -= slow_threshold(seen[alike].tolist(), so[alike].tolist()) if own.any() else 0
    return out, labels


def test_metrics_by_loops() -> None:
    tables, personal = informed()
    result = measured(evaluation(), tables, personal, EVERYBODY)
    plain = LinkPrediction(Given(), graph())(tables, personal, EVERYBODY)
    assert list(result.metrics)[: len(plain.metrics)] == list(plain.metrics)
    assert {n: result.metrics[n] for n in plain.metrics} == pytest.approx(dict(plain.metrics))
    scores, labels, clients, _ = labelled("test")
    p = expit(scores)
    assert result.metrics["ece"] == pytest.approx(slow_ece(p, labels, 5), abs=0.02)
    assert result.metrics["brier"] == pytest.approx(((p - labels) ** 2).mean(), abs=1e-6)
    loss = np.logaddexp(0, np.where(labels, -scores, scores))
    assert result.metrics["nll"] == pytest.approx(loss.mean(), abs=1e-6)
    after = expit(shifted("test")[0] / result.metrics["temperature"])
    assert result.metrics["brier_temperature"] == pytest.approx(((after - labels) ** 2).mean(), abs=1e-5)
    seen, so = shifted("validation")

    def nll(t: float) -> float:
        return float(np.logaddexp(0, np.where(so, -seen, seen) / t).mean())

    t = result.metrics["temperature"]
    assert nll(t) <= min(nll(t * 1.02), nll(t / 1.02)) + 1e-9
    for client in EVERYBODY:
        mine = clients == client
        expected = slow_ece(p[mine], labels[mine], 5) if mine.any() else np.nan
        assert result.per_client["ece"][client] == pytest.approx(expected, abs=0.02, nan_ok=True)


def test_clients_apart_equal_clients_together() -> None:
    tables, personal = informed()
    found, groups = evaluation(), (np.array([4, 1]), np.array([2]), np.array([0, 3, 5]))
    rows = [{"own": personal["own"][group]} for group in groups]
    whole = found.fit_sums(tables, personal, EVERYBODY)
    apart = added([found.fit_sums(tables, own, group) for own, group in zip(rows, groups, strict=True)])
    assert all(np.array_equal(value, apart[name]) for name, value in whole.items())
    ready = {**tables, **found.fitted(whole)}
    together = found(ready, personal, EVERYBODY)
    parts = [found(ready, own, group) for own, group in zip(rows, groups, strict=True)]
    per_client = {n: np.concatenate([part.per_client[n] for part in parts]) for n in together.per_client}
    weights = np.concatenate([part.weights for part in parts if part.weights is not None])
    metrics = overall(found, per_client, weights, [part.sums for part in parts])
    assert list(metrics) == list(together.metrics)
    assert metrics == pytest.approx(dict(together.metrics), nan_ok=True)


def test_nothing_of_the_test_split_reaches_the_fit() -> None:
    tables, personal = informed()
    fitted = evaluation().fitted(evaluation().fit_sums(tables, personal, EVERYBODY))
    data, rng = graph(), np.random.default_rng(0)
    other = dict(data.held_out)
    for name in ("test", "test_negatives"):
        part = other[name]
        other[name] = Shards({n: rng.permutation(c) for n, c in part.columns.items()}, part.offsets)
    kept = {(h, r, t) for n in ("validation", "validation_negatives") for _, h, r, t in triples_of(other[n])}
    assert not kept & {(h, r, t) for n in ("test", "test_negatives") for _, h, r, t in triples_of(other[n])}
    changed = replace(evaluation(), dataset=replace(data, held_out=other))
    again = changed.fitted(changed.fit_sums(tables, personal, EVERYBODY))
    assert all(torch.equal(value, again[name]) for name, value in fitted.items())
    moved = measured(changed, tables, personal, EVERYBODY).metrics["nll"]
    assert moved != measured(evaluation(), tables, personal, EVERYBODY).metrics["nll"]


def test_when_it_is_chosen() -> None:
    auto = replace(WANTED, required=False)
    found = evaluation_for(Given(), graph(), calibration=auto)  # type: ignore[arg-type]
    assert isinstance(found, CalibratedTriples)
    sizes = graph().held_out["test"].sizes
    assert measurable(found, graph()).tolist() == np.flatnonzero(sizes).tolist()
    unlabelled = {n: s for n, s in graph().held_out.items() if "negatives" not in n}
    plain = replace(graph(), held_out=unlabelled)
    assert isinstance(evaluation_for(Given(), plain, calibration=auto), LinkPrediction)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"needs labelled triples in validation and validation_negatives"):
        evaluation_for(Given(), plain, calibration=WANTED)  # type: ignore[arg-type]
    both = replace(graph(), held_out={**graph().held_out, "test": graph().held_out["validation_negatives"]})
    with pytest.raises(DataError, match="stand in both"):
        CalibratedTriples(Given(), both, WANTED)


def test_scores_that_are_no_numbers() -> None:
    tables, personal = given_scores("broken")
    with pytest.raises(RunError, match=r"NaN or infinity in .* the model diverged"):
        evaluation().fit_sums(tables, personal, EVERYBODY)
