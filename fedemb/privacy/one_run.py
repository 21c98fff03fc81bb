"""Lower bounds on epsilon from one run in which half of many canaries took part.

Whoever tells canaries that took part from those that did not, more often than a private mechanism would let them,
refutes its epsilon. Guesses are made where scores are extreme, and none about the rest; several numbers of guesses are
tried, and the confidence is divided among them.

Reference: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, theorem 5.2 and
appendix D; Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One Run", 2024 (arXiv 2410.22235),
algorithm 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binom

from fedemb.privacy.gaussian_mechanism import gaussian_epsilon

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
_SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of canaries that are guessed about
_LARGEST = 100.0


def one_run_bound(scores: Float64, included: Bool, delta: float, confidence: float = 0.95) -> float:
    """Largest epsilon that the guesses refute at this confidence; 0 where they refute nothing.

    Args:
        scores: ``(canaries,)`` higher for those that seem to have taken part.
        included: ``(canaries,)`` whether they did, by a fair coin each.
        delta: Of the claim.
        confidence: That the mechanism's epsilon is not below what is returned.
    """
    tries = _guesses(scores, included)
    level, best = (1 - confidence) / len(tries), 0.0
    for made, right in tries:
        best = max(best, _bisect(lambda e, r=made, v=right: _p_value(len(scores), r, v, e, delta) < level))  # type: ignore[misc]
    return best


def one_run_gaussian_bound(scores: Float64, included: Bool, delta: float, confidence: float = 0.95) -> float:
    """As ``one_run_bound``, among Gaussian mechanisms: the largest one that is refuted, as an epsilon at ``delta``."""
    tries = _guesses(scores, included)
    level, best = (1 - confidence) / len(tries), 0.0
    for made, right in tries:
        best = max(best, _bisect(lambda mu, r=made, v=right: _refutes(len(scores), r, v, mu, level)))  # type: ignore[misc]
    return gaussian_epsilon(best, delta)


def _guesses(scores: Float64, included: Bool) -> list[tuple[int, int]]:
    """Numbers of guesses that are tried, and how many of them are right: the highest are in, the lowest are out."""
    order = np.argsort(-scores, kind="stable")
    truth, found = included[order], []
    for share in _SHARES:
        half = round(share * len(scores) / 2)
        if half:
            found.append((2 * half, int(truth[:half].sum() + (~truth[-half:]).sum())))
    return found


def _p_value(canaries: int, made: int, right: int, epsilon: float, delta: float) -> float:
    """Probability that an (epsilon, delta)-private mechanism lets so many guesses be right."""
    rate = float(expit(epsilon))
    plain = float(binom.sf(right - 1, made, rate))
    below = np.cumsum(binom.pmf(right - np.arange(1, right + 1), made, rate))
    slack = float((below / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, plain + 2 * canaries * delta * slack)


def _refutes(canaries: int, made: int, right: int, mu: float, level: float) -> bool:
    """Whether so many right guesses are too many for a Gaussian mechanism."""
    share = level * made / canaries
    alpha, beta = share * right / made, share * (made - right) / made
    for at in range(right - 1, -1, -1):
        before = beta
        beta = max(beta, float(ndtr(ndtri(alpha) - mu)))
        alpha += at / (made - at) * (beta - before)
        if alpha + beta > made / canaries:
            return True
    return False


def _bisect(refuted: Callable[[float], bool]) -> float:
    """Largest number up to 100 that is refuted, to 1e-3; 0 if none is."""
    low, high = 0.0, _LARGEST
    if not refuted(1e-3):
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
