"""The Gaussian mechanism in closed form: what one release costs, and the noise that a release needs.

Reference: Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal
Denoising", ICML 2018: theorem 8 (the exact curve), algorithm 1 (calibration). ``mu`` is sensitivity over the noise's
standard deviation; ``T`` releases with the same noise are one with ``mu * sqrt(T)``.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

_LARGEST = 1e6  # of epsilon and of noise multipliers that are looked for


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Smallest delta at this epsilon: ``Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)``.

    >>> round(gaussian_delta(1.0, 1.0), 4)
    0.1269
    """
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return max(0.0, -math.exp(first) * math.expm1(min(0.0, second - first)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon at this delta; 0 where the mechanism is that good without, infinite without noise.

    Raises:
        ValueError: If delta is not in (0, 1), or mu negative.
    """
    check_delta(delta)
    if not mu >= 0:
        raise ValueError(f"mu must be at least 0, got {mu}")
    if math.isinf(mu):
        return math.inf
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(mu, high) > delta:
        high *= 2
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-12))


def analytic_noise_multiplier(epsilon: float, delta: float) -> float:
    """Smallest noise, over the sensitivity, with which one release is (epsilon, delta)-private.

    >>> round(analytic_noise_multiplier(1.0, 1e-5), 4)
    3.7306

    Raises:
        ValueError: If epsilon is not positive, or delta not in (0, 1).
    """
    check_delta(delta)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be a positive number, got {epsilon}")
    low, high = 1e-6, _LARGEST
    found = brentq(lambda z: math.log(gaussian_delta(1 / z, epsilon) / delta) if gaussian_delta(1 / z, epsilon)
                   else -1.0, low, high, xtol=1e-12)  # fmt: skip
    return float(found) * (1 + 1e-9)


def check_delta(delta: float) -> None:
    """Raises ValueError unless a delta is a probability that says something."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}; 1e-5 is usual for up to 10,000 clients")
