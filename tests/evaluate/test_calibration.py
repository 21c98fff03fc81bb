"""evaluate/calibration.py and reliability.py against slow references on raw scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import isotonic_regression, minimize, minimize_scalar
from scipy.special import expit, log_softmax, logit

from fedemb.evaluate.answers import Answers
from fedemb.evaluate.calibration import MAPS, calibrated, fit, fit_sums
from fedemb.evaluate.fine_bins import FIXED, NUM_BINS, REACH, centres, fine_bins
from fedemb.evaluate.reliability import curve_of, errors_per_client, reliability_counts


def records(
    seed: int, num: int = 3000, labels: int = 6, factor: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are ``factor`` times as sharp as they should be, and labels."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num, labels)) * 1.5
    p = np.exp(log_softmax(scores, axis=1))
    truth = (rng.random((num, 1)) > p.cumsum(1)).sum(1).clip(max=labels - 1)
    return scores * factor, truth


def binary(seed: int, num: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Log odds that are too sharp and shifted, and whether it is so."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=num) * 1.5
    return 4 * true - 3, (rng.random(num) < expit(true)).astype(int)


def fitted(answers: Answers, name: str, groups: int = 15) -> np.ndarray:
    return fit(name, fit_sums(answers), groups)


def slow_ece(p: np.ndarray, hit: np.ndarray, groups: int) -> float:
    """Records of one probability are in the group of the middle one of them."""
    gaps = np.zeros(groups)
    for said, so in zip(p, hit, strict=True):
        middle = ((p < said - 1e-9).sum() + (p <= said + 1e-9).sum()) / 2
        gaps[int(groups * middle / len(p))] += said - so
    return float(np.abs(gaps).sum() / len(p))


def test_fine_bins_are_in_order_and_fine() -> None:
    assert np.array_equal(fine_bins(centres()), np.arange(NUM_BINS))
    for size in (1e-3, 1.0, 100.0):
        gap = centres()[fine_bins(np.array([size]))[0]] - size
        assert abs(gap) < 0.006 * size
    with pytest.raises(ValueError, match="NaN in 1 of 2"):
        fine_bins(np.array([1.0, np.nan]))


@pytest.mark.parametrize("labels", [1, 2, 6])
def test_losses_and_log_odds_by_a_loop(labels: int) -> None:
    scores, truth = records(0, 40, labels)
    answers = Answers.top_label(scores, truth)
    p = np.exp(log_softmax(scores, axis=1))
    moved = answers.log_odds * 0.5 + 0.3
    found = answers.losses(moved)
    for line in range(40):
        top, mine = int(p[line].argmax()), p[line].copy()
        if labels > 1:
            assert answers.log_odds[line] == pytest.approx(logit(p[line, top]), rel=1e-6)
            mine *= (1 - expit(moved[line])) / (1 - p[line, top])
            mine[top] = expit(moved[line])
        assert mine.sum() == pytest.approx(1)
        assert found[0][line] == pytest.approx(-np.log(mine[truth[line]]), abs=1e-9)
        squares = sum((mine[j] - (j == truth[line])) ** 2 for j in range(labels))
        assert found[1][line] == pytest.approx(squares / (2 if labels == 2 else 1), abs=1e-9)
    if labels == 1:
        assert (answers.log_odds == REACH).all()


def test_two_labels_are_true_or_false() -> None:
    odds, so = binary(1, 50)
    answers = Answers.true_or_false(odds, so)
    assert answers.log_odds == pytest.approx(odds)
    nll, brier = answers.losses(answers.log_odds)
    assert brier == pytest.approx((expit(odds) - so) ** 2)
    assert nll == pytest.approx(np.logaddexp(0, np.where(so, -odds, odds)))


def test_temperature_is_the_best_one() -> None:
    scores, truth = records(2)
    answers = Answers.top_label(scores, truth)

    def nll(log_temperature: float) -> float:
        found = log_softmax(scores / np.exp(log_temperature), axis=1)
        return float(-found[np.arange(len(truth)), truth].mean())

    best = np.exp(minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert fitted(answers, "temperature")[0] == pytest.approx(best, rel=1e-3)
    assert best == pytest.approx(3, rel=0.1)


def test_platt_is_the_best_line() -> None:
    odds, so = binary(3)
    aims = np.where(so, (so.sum() + 1) / (so.sum() + 2), 1 / ((1 - so).sum() + 2))

    def loss(p: np.ndarray) -> float:
        line = p[0] * odds + p[1]
        return float((np.logaddexp(0, line) - aims * line).sum())

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    found = fitted(Answers.true_or_false(odds, so), "platt")
    assert found == pytest.approx(best, rel=5e-3)
    assert found == pytest.approx([0.25, 0.75], abs=0.08)


def test_isotonic_equals_that_of_raw_scores() -> None:
    odds, so = binary(4)
    answers = Answers.true_or_false(odds, so)
    order = np.argsort(odds)
    raw = np.empty(len(odds))
    raw[order] = isotonic_regression(so[order].astype(float)).x
    _, moved = calibrated("isotonic", fitted(answers, "isotonic"), answers)
    assert np.abs(expit(moved) - raw).mean() < 5e-3
    assert (np.diff(expit(moved)[order]) >= -1e-12).all()


def test_histogram_binning_equals_that_of_raw_scores() -> None:
    odds, so = binary(5)
    answers = Answers.true_or_false(odds, so)
    _, moved = calibrated("histogram", fitted(answers, "histogram", 10), answers)
    order = np.argsort(odds)
    raw = np.empty(len(odds))
    for part in np.array_split(order, 10):
        raw[part] = so[part].mean()
    assert np.abs(expit(moved) - raw).mean() < 0.01
    assert len(np.unique(moved)) == 10


@pytest.mark.parametrize("name", MAPS)
def test_every_map_helps_on_records_that_it_has_not_seen(name: str) -> None:
    seen, fresh = (Answers.top_label(*records(seed)) for seed in (6, 7))
    after, odds = calibrated(name, fitted(seen, name), fresh)
    before = curve_of(reliability_counts(fresh.log_odds, fresh.hit), 15).error
    assert before > 0.2
    assert curve_of(reliability_counts(odds, fresh.hit), 15).error < 0.05
    for raw, moved in zip(fresh.losses(fresh.log_odds), after.losses(odds), strict=True):
        assert moved.mean() < raw.mean()


def test_error_by_a_loop() -> None:
    rng = np.random.default_rng(8)
    odds = rng.normal(size=700) * 2 + 1
    hit = (rng.random(700) < expit(odds * 0.4)).astype(int)
    counts = reliability_counts(odds, hit)
    assert curve_of(counts, 15).error == pytest.approx(slow_ece(expit(odds), hit, 15), abs=2e-3)
    assert counts[2].sum() / FIXED == pytest.approx(expit(odds).sum(), abs=1e-4)
    client = np.sort(rng.integers(0, 4, 700))
    client[client == 2] = 3
    found = errors_per_client(odds, hit, client, 5, 15)
    for one in (0, 1, 3):
        mine = client == one
        own = curve_of(reliability_counts(odds[mine], hit[mine]), 15).error
        assert found[one] == pytest.approx(own, abs=1e-6)
        assert found[one] == pytest.approx(slow_ece(expit(odds[mine]), hit[mine], 15), abs=0.01)
    assert np.isnan(found[[2, 4]]).all()
    assert np.isnan(curve_of(np.zeros((3, NUM_BINS), dtype=np.int64), 15).error)


def test_sums_add_up_in_any_order() -> None:
    scores, truth = records(9, 500)
    whole = fit_sums(Answers.top_label(scores, truth))
    lines = np.random.default_rng(0).permutation(500)
    parts = [fit_sums(Answers.top_label(scores[at], truth[at])) for at in np.array_split(lines, 7)]
    for name, value in whole.items():
        assert np.array_equal(value, np.sum([part[name] for part in parts], axis=0))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("fault", ["nobody", "all right", "all wrong", "alike", "one record", "far out"])
def test_maps_stay_finite(name: str, fault: str) -> None:
    scores, truth = records(10, 60)
    if fault == "nobody":
        scores, truth = scores[:0], truth[:0]
    if fault == "all right":
        truth = scores.argmax(1)
    if fault == "all wrong":
        truth = scores.argmin(1)
    if fault == "alike":
        scores = np.zeros_like(scores)
    if fault == "one record":
        scores, truth = scores[:1], truth[:1]
    if fault == "far out":
        scores = scores * 1e30
    numbers = fitted(Answers.top_label(scores, truth), name)
    fresh = Answers.top_label(*records(11, 80))
    after, odds = calibrated(name, numbers, fresh)
    losses = after.losses(odds)
    assert np.isfinite(odds).all()
    assert all(np.isfinite(loss).all() for loss in losses)
    if fault == "nobody":
        assert odds == pytest.approx(fresh.log_odds)
    if name == "temperature" and fault in ("all right", "all wrong"):
        assert 1 / 64 <= numbers[0] <= 64
        assert numbers[0] < 0.2 if fault == "all right" else numbers[0] == pytest.approx(64)


def test_scores_that_are_no_numbers_are_refused() -> None:
    scores, truth = records(12, 10)
    scores[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 10 records"):
        Answers.top_label(scores, truth)
    with pytest.raises(ValueError, match=r"lower train\.learning_rate"):
        Answers.true_or_false(np.array([np.inf, 1.0]), np.array([0, 1]))
