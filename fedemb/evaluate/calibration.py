"""Maps that make probabilities true: fitted from sums that clients add up, applied to what a model says.

    validation records ── at clients ──> counts in fine bins, slopes ── added up ──> maps ──> test records

``temperature`` divides all log probabilities. The others map the log odds of what is believed (the most probable label,
or that a triple is true); all other labels share the rest as they did.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq, isotonic_regression, minimize
from scipy.special import expit, log_expit, logit

from fedemb.evaluate.answers import Answers
from fedemb.evaluate.fine_bins import NUM_BINS, centres, counted, fine_bins, fixed
from fedemb.evaluate.reliability import equal_mass
from fedemb.types import Float, Int64

MAPS = ("temperature", "platt", "isotonic", "histogram")
# Inverse temperatures whose slopes clients send: the same for all, whatever their data.
INVERSE_TEMPERATURES = 2.0 ** (np.arange(-24, 25) / 4)


Arrays = Mapping[str, Float]


def fit_sums(answers: Answers) -> dict[str, Int64]:
    """What all maps follow from; sums over records, so they add up over clients.

    ``counts`` ``(2, NUM_BINS)``: records of which what is believed is not so, and is so, by its log odds. ``slopes``
    ``(temperatures,)``, ``fixed``: the derivative of the negative log likelihood by the inverse temperature, at each
    of ``INVERSE_TEMPERATURES``.
    """
    true = answers.log_p[np.arange(len(answers)), answers.truth]
    below = answers.log_p - answers.log_p.max(axis=1, keepdims=True)
    slopes = []
    for inverse in INVERSE_TEMPERATURES:
        shares = np.exp(below * inverse)
        expected = np.einsum("nk,nk->n", shares, answers.log_p) / shares.sum(1)
        slopes.append(fixed(expected - true).sum())
    return {"counts": counted(answers.log_odds, answers.hit), "slopes": np.array(slopes, dtype=np.int64)}


def fit(name: str, sums: Mapping[str, Int64], num_groups: int) -> Float:
    """The numbers of one of ``MAPS``; those of a map that changes nothing, where there are no records.

    Args:
        name: Of the map.
        sums: From ``fit_sums``, summed over clients.
        num_groups: Of histogram binning.
    """
    match name:
        case "temperature":
            return fit_temperature(sums["slopes"])
        case "platt":
            return fit_platt(sums["counts"])
        case "isotonic":
            return fit_isotonic(sums["counts"])
        case _:
            return fit_histogram(sums["counts"], num_groups)


def calibrated(name: str, numbers: Float, answers: Answers) -> tuple[Answers, Float]:
    """The answers, and the log odds ``(records,)`` of what is believed, after one of ``MAPS``."""
    if name == "temperature":
        sharper = answers.sharpened(1 / float(numbers[0]))
        return sharper, sharper.log_odds
    if name == "platt":
        return answers, np.asarray(numbers[0] * answers.log_odds + numbers[1])
    found = numbers[fine_bins(answers.log_odds)]
    return answers, np.where(np.isnan(found), answers.log_odds, logit(found))


def fit_temperature(slopes: Int64) -> Float:
    """The temperature ``(1,)`` of the highest likelihood.

    The likelihood is concave in the inverse temperature, so its slope has one root, which a monotone curve through the
    slopes finds between two neighbours. At an end of ``INVERSE_TEMPERATURES``, 1 / 64 or 64, where everything is right
    or the model knows less than nothing; 1 where no temperature changes anything.

    Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    if not slopes.any():
        return np.ones(1)
    slope, place = slopes.astype(np.float64), np.log(INVERSE_TEMPERATURES)
    after = int(np.searchsorted(slope, 0.0))  # slopes ascend
    if after in (0, len(slope)):
        return np.array([1 / INVERSE_TEMPERATURES[min(after, len(slope) - 1)]])
    root = brentq(PchipInterpolator(place, slope), place[after - 1], place[after], xtol=1e-12)
    return np.array([np.exp(-root)])


def fit_platt(counts: Int64) -> Float:
    """Slope and intercept ``(2,)`` of a logistic regression on the log odds.

    Its targets are drawn in by one record of each kind, so that it stays finite where both are told apart.

    Args:
        counts: ``(2, NUM_BINS)`` from ``fit_sums``; records count as in the middle of their bin.

    Reference: Platt, "Probabilistic Outputs for Support Vector Machines", 1999, section 2.2.
    """
    total = counts.sum(1)
    if not total.sum():
        return np.array([1.0, 0.0])
    there = counts.sum(0) > 0
    weights, x = counts[:, there].astype(np.float64), centres()[there]
    both = weights.sum(0)
    centre = float(np.average(x, weights=both))
    scale = float(np.sqrt(np.average((x - centre) ** 2, weights=both))) or 1.0
    features = np.stack(((x - centre) / scale, np.ones(len(x))))
    aims = weights[1] * (total[1] + 1) / (total[1] + 2) + weights[0] / (total[0] + 2)
    ridge = np.diag([1e-6, 0.0])  # decides where all log odds are alike

    def loss(p: Float) -> float:
        odds = p @ features
        return float(-(aims * log_expit(odds) + (both - aims) * log_expit(-odds)).sum() + p @ ridge @ p / 2)

    def gradient(p: Float) -> Float:
        return np.asarray(features @ (both * expit(p @ features) - aims) + ridge @ p)

    def curvature(p: Float) -> Float:
        said = expit(p @ features)
        return np.asarray((features * (both * said * (1 - said))) @ features.T + ridge)

    found = minimize(loss, np.array([scale, centre]), jac=gradient, hess=curvature, method="trust-exact").x
    return np.array([found[0] / scale, found[1] - found[0] * centre / scale])


def fit_isotonic(counts: Int64) -> Float:
    """The probability ``(NUM_BINS,)`` in each bin: of all that never falls, the nearest to the shares.

    Bins without records lie on the line between their neighbours.

    Reference: Zadrozny, Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates", KDD
    2002 (pair-adjacent violators).
    """
    sizes = counts.sum(0)
    there = np.flatnonzero(sizes)
    if not len(there):
        return np.full(NUM_BINS, np.nan)
    shares = counts[1][there] / sizes[there]
    rising = isotonic_regression(shares, weights=sizes[there].astype(np.float64)).x
    return _never_certain(np.interp(np.arange(NUM_BINS), there, rising), sizes)


def fit_histogram(counts: Int64, num_groups: int) -> Float:
    """The probability ``(NUM_BINS,)`` in each bin: the share in its group, all groups with as many records.

    Bins without records belong to the group below.

    Reference: Zadrozny, Elkan, "Obtaining Calibrated Probability Estimates from Decision Trees and Naive Bayesian
    Classifiers", ICML 2001.
    """
    sizes = counts.sum(0)
    there = np.flatnonzero(sizes)
    if not len(there):
        return np.full(NUM_BINS, np.nan)
    group = equal_mass(sizes, num_groups)[there]
    hits, held = (np.bincount(group, row[there], minlength=num_groups) for row in (counts[1], sizes))
    shares = (hits[group] / held[group])[
        np.maximum(np.searchsorted(there, np.arange(NUM_BINS), "right") - 1, 0)
    ]
    return _never_certain(shares, sizes)


def _never_certain(shares: Float, sizes: Int64) -> Float:
    """So many records cannot tell a higher probability than by the rule of succession; likelihoods stay finite."""
    least = 1 / (sizes.sum() + 2)
    return np.asarray(np.clip(shares, least, 1 - least))
