"""Whether a pipeline does what its claim says: canaries go through it, and what is released tells of them.

    canaries ── trainer, stages, sampler, aggregator, strategy: the configured ones ──> released, round by round
                                                                                          │ along its direction
    claimed noise, signal, epsilon  <── compared with ── noise, signal, lower bounds <────┘

Three ways: lower bounds on epsilon that hold whatever the mechanism is; how far canaries that took part lie from those
that did not, in deviations, against what the claim allows; and whether noise and signal are as large as claimed. The
first sees gross faults alone, the third one sees half the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedemb.privacy.accountant import epsilon
from fedemb.privacy.banded import coefficients
from fedemb.privacy.events import Event, GaussianNoise, PoissonSampled, Repeated
from fedemb.privacy.gaussian_mechanism import gaussian_epsilon
from fedemb.privacy.one_run import one_run_bound, one_run_gaussian_bound

Float64 = npt.NDArray[np.float64]
_ERRORS = 3.0  # standard errors that a ratio may be away from 1


@dataclass(frozen=True)
class Released:
    """What canaries found of themselves in what was released.

    Attributes:
        along: ``(rounds, canaries)`` what was released of each canary's rows, along its direction, in clip norms.
        included: ``(canaries,)`` whether it took part in the data.
        sent: ``(rounds, canaries)`` whether its client was asked, for whoever may know that.
    """

    along: Float64
    included: npt.NDArray[np.bool_]
    sent: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Claimed:
    """What a pipeline says of itself.

    Attributes:
        epsilon, delta: After these rounds.
        noise_multiplier: Of a round's sum, or of a step's.
        rate: Probability that a canary is in a sum, where nobody may know which; 1 where it is known.
        steps: Sums that a round releases.
        bands: Of correlated noise.
        accountant: Which one it used.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    rate: float
    steps: int
    bands: int
    accountant: str


@dataclass(frozen=True)
class Finding:
    """One line of an audit's table.

    Attributes:
        what: In words.
        found: Number that was found.
        error: Its standard error; None for a bound.
        claimed: What it should be, or may be at the most.
        refutes: Whether it speaks against the claim.
    """

    what: str
    found: float
    error: float | None
    claimed: float
    refutes: bool


def audited(released: Released, claimed: Claimed, confidence: float = 0.95) -> list[Finding]:
    """What the released numbers say of the claim.

    Args:
        released: By the pipeline.
        claimed: Of it.
        confidence: Of the bounds from one run; what is compared with a number may be three standard errors away.
    """
    scores, allowed = _scores(released, claimed)
    inside, outside = scores[released.included], scores[~released.included]
    deviation, size = float(outside.std(ddof=1)), len(outside)
    noise = _ratio(
        "noise, over the claimed", deviation / claimed.noise_multiplier, 1 / math.sqrt(2 * (size - 1))
    )
    difference = float(inside.mean() - outside.mean())
    spread = math.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / size)
    signal = _ratio("signal, over the claimed", difference / allowed, spread / allowed)
    mu, low = _mu(inside, outside)
    most = allowed / claimed.noise_multiplier
    (gross, plain), far = _one_run(scores, released, claimed, confidence), low > most * 1.02
    return [
        _epsilon("epsilon, at least (one run)", gross, claimed),
        _epsilon("epsilon, at least (one run, Gaussian)", plain, claimed),
        Finding("mu, distance in deviations", mu, None, most, far),
        _epsilon("epsilon, of that distance at least", gaussian_epsilon(low, claimed.delta), claimed),
        _epsilon("epsilon, accounted for anew", recomputed(released, claimed), claimed),
        noise,
        signal,
    ]


def _one_run(scores: Float64, released: Released, claimed: Claimed, confidence: float) -> tuple[float, float]:
    gross = one_run_bound(scores, released.included, claimed.delta, confidence)
    return gross, one_run_gaussian_bound(scores, released.included, claimed.delta, confidence)


def _epsilon(what: str, found: float, claimed: Claimed) -> Finding:
    """A lower bound, which refutes the claim where it is above it by more than accountants differ."""
    return Finding(what, found, None, claimed.epsilon, found > claimed.epsilon * 1.02 + 0.03)


def _ratio(what: str, found: float, error: float) -> Finding:
    return Finding(what, found, error, 1.0, not abs(found - 1) <= _ERRORS * max(error, 1e-12))


def _scores(released: Released, claimed: Claimed) -> tuple[Float64, float]:
    """The best single number about each canary ``(canaries,)``, with noise of the claimed multiplier, and how far apart
    those that took part and those that did not may lie, in clip norms.

    Correlated noise is made fresh noise again by its matrix; what a canary adds is then a known pattern over rounds,
    and the score is the release along it.
    """
    along = _whitened(released.along, claimed.bands)
    rounds = len(along)
    if claimed.rate < 1:  # whose sums it is in is not known
        steps = rounds * claimed.steps
        return along.sum(0) / math.sqrt(steps), claimed.rate * math.sqrt(steps)
    pattern = _banded(released.sent.astype(np.float64) * claimed.steps, claimed.bands)
    length = np.linalg.norm(pattern, axis=0)
    known = np.maximum(length, 1e-12)
    scores = (along * pattern).sum(0) / known / math.sqrt(claimed.steps)
    return scores, float(length.mean()) / math.sqrt(claimed.steps)


def _banded(values: Float64, bands: int) -> Float64:
    """The banded matrix times values ``(rounds, canaries)``."""
    out = np.zeros_like(values)
    for lag, c in enumerate(coefficients(bands)):
        if lag < len(values):
            out[lag:] += c * values[: len(values) - lag]
    return out


def _whitened(along: Float64, bands: int) -> Float64:
    return along if bands == 1 else _banded(along, bands)


def _mu(inside: Float64, outside: Float64) -> tuple[float, float]:
    """Distance of the two groups in deviations of those that did not take part, and it less three standard errors."""
    deviation = float(outside.std(ddof=1))
    if deviation == 0:
        return math.inf, math.inf
    mu = float(inside.mean() - outside.mean()) / deviation
    variance = (
        inside.var(ddof=1) / deviation**2 / len(inside) + 1 / len(outside) + mu**2 / (2 * (len(outside) - 1))
    )
    low = mu - _ERRORS * math.sqrt(float(variance))
    return mu, max(0.0, low)


def recomputed(released: Released, claimed: Claimed) -> float:
    """Epsilon of as many sums as were released, with the claimed noise and sampling, by Renyi divergences' rival."""
    rounds, z = len(released.along), claimed.noise_multiplier
    if claimed.bands > 1:
        pattern = _banded(released.sent.astype(np.float64), claimed.bands)
        return gaussian_epsilon(float(np.linalg.norm(pattern, axis=0).max()) / z, claimed.delta)
    event: Event = GaussianNoise(z)
    if claimed.rate < 1:
        event = Repeated(PoissonSampled(claimed.rate, event), rounds * claimed.steps)
    else:
        event = Repeated(event, int(released.sent.sum(0).max()) * claimed.steps)
    return epsilon(event, claimed.delta, "pld")


def table(findings: Sequence[Finding], claimed: Claimed) -> str:
    """The findings as a table for a terminal, with the verdict below."""
    wide = max(len(finding.what) for finding in findings)
    lines = [f"{'':{wide}}  {'found':>10}  {'± error':>8}  {'claimed':>8}"]
    for finding in findings:
        error = "" if finding.error is None else f"{finding.error:.4f}"
        mark = "  REFUTED" if finding.refutes else ""
        lines.append(
            f"{finding.what:{wide}}  {finding.found:10.4f}  {error:>8}  {finding.claimed:8.4f}{mark}"
        )
    verdict = "REFUTED" if any(finding.refutes for finding in findings) else "not refuted"
    lines.append(f"claim: epsilon {claimed.epsilon:.4f} at delta {claimed.delta:g}: {verdict}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding], claimed: Claimed) -> dict[str, Any]:
    """The same for a file."""
    return {
        "claimed": vars(claimed),
        "findings": [vars(finding) for finding in findings],
        "refuted": any(finding.refutes for finding in findings),
    }
