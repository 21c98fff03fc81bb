"""What events cost: the smallest epsilon at a delta, by one of three accountants.

- ``pld``: privacy loss distributions of dp-accounting, pessimistic; in closed form where all noise is Gaussian and
  nobody is sampled.
- ``prv``: Opacus's, the cross-check: a little above by its own error bound.
- ``rdp``: Renyi divergences: looser by 10 to 30 per cent; knows fixed-size samples and Skellam noise as well.

Reference: Koskela, Jälkö, Honkela, "Computing Tight Differential Privacy Guarantees Using FFT", AISTATS 2020; Gopi,
Lee, Wutschitz, "Numerical Composition of Differential Privacy", NeurIPS 2021; Mironov, Talwar, Zhang, "Rényi
Differential Privacy of the Sampled Gaussian Mechanism", 2019; Wang, Balle, Kasiviswanathan, "Subsampled Rényi
Differential Privacy and Analytical Moments Accountant", AISTATS 2019 (fixed size); Agarwal, Kairouz, Liu, "The Skellam
Mechanism for Differentially Private Federated Learning", NeurIPS 2021, theorem 3.5 (for whole orders).
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from logging import root as root_logger
from typing import Any, TypeAlias

import numpy as np

from fedemb.privacy.events import (
    Composed,
    Event,
    FixedSizeSampled,
    GaussianNoise,
    Leaf,
    PoissonSampled,
    SkellamNoise,
    Slack,
    counted,
)
from fedemb.privacy.gaussian_mechanism import check_delta, gaussian_epsilon

ACCOUNTANTS = ("pld", "prv", "rdp")
_ERROR = 1e-3  # that telling privacy losses apart on a grid may add to epsilon, relative to it above 1
_COARSE = 1e-2  # grid of a quick bound
_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 80, 96, 128, 192, 256, 512, 1024)
_FEW_ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128, 256)  # quick, and a bound as well
History: TypeAlias = tuple[tuple[Leaf, int], ...]


class UnknownEventError(ValueError):
    """An accountant was given an event that it does not know."""


def epsilon(event: Event, delta: float, accountant: str = "pld") -> float:
    """Smallest epsilon with which all of ``event`` is (epsilon, delta)-private; 0 for nothing, infinite without noise.

    Args:
        event: What was done.
        delta: In (0, 1); what ``Slack`` takes is taken from it first.
        accountant: ``pld``, ``prv`` or ``rdp``.

    Raises:
        UnknownEventError: If that accountant does not know an event.
        ValueError: If an argument is out of range.

    >>> round(epsilon(GaussianNoise(1.0), 1e-5), 4)
    4.3772
    """
    check_delta(delta)
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"privacy.accountant must be one of {', '.join(ACCOUNTANTS)}, got {accountant!r}")
    history = _canonical(counted(event))
    slack = sum(leaf.delta * count for leaf, count in history if isinstance(leaf, Slack))
    left = tuple((leaf, count) for leaf, count in history if not isinstance(leaf, Slack))
    for leaf, _ in left:
        _check(leaf, accountant)
    if not left:
        return 0.0 if slack <= delta else math.inf
    if slack >= delta or any(_noiseless(leaf) for leaf, _ in left):
        return math.inf
    return _epsilon(left, delta - slack, accountant)


def worst(histories: Iterable[Event], delta: float, accountant: str = "pld") -> tuple[float, Event]:
    """The largest epsilon of many histories, and whose it is: those of clients with different numbers of examples, say.

    Only as many are accounted for exactly as must be. Renyi divergences bound the exact value from above, quickly; so
    does a coarse pessimistic grid, more tightly. What is bounded below the largest exact value cannot be worse.
    """
    events = list({_canonical(counted(event)): event for event in histories}.values())
    bounds = sorted(((upper_bound(event, delta), at) for at, event in enumerate(events)), reverse=True)
    largest, found = 0.0, Composed(())  # type: tuple[float, Event]
    for bound, at in bounds:
        if bound <= largest:
            break
        if accountant == "pld" and largest and _coarse_bound(events[at], delta) <= largest:
            continue
        exact = epsilon(events[at], delta, accountant)
        if exact > largest:
            largest, found = exact, events[at]
    return largest, found


def _coarse_bound(event: Event, delta: float) -> float:
    """An epsilon that is enough, by losses on a coarse grid."""
    history = _canonical(counted(event))
    if any(not isinstance(leaf, GaussianNoise | PoissonSampled) for leaf, _ in history):
        return math.inf
    return _by_pld(history, delta, _COARSE) if history else 0.0


def upper_bound(event: Event, delta: float) -> float:
    """An epsilon that is enough, looser than any accountant's and quickly found.

    Raises:
        ValueError: As ``epsilon``.
    """
    check_delta(delta)
    history = _canonical(counted(event))
    slack = sum(leaf.delta * count for leaf, count in history if isinstance(leaf, Slack))
    left = tuple((leaf, count) for leaf, count in history if not isinstance(leaf, Slack))
    for leaf, _ in left:
        _check(leaf, "rdp")
    if slack >= delta or any(_noiseless(leaf) for leaf, _ in left):
        return math.inf
    return _by_rdp(left, delta - slack, _FEW_ORDERS) if left else 0.0


def _canonical(counts: dict[Leaf, int]) -> History:
    """The same history in one order, with what is sampled surely not sampled, and all Gaussian noise as one release."""
    merged: dict[Leaf, int] = {}
    precision = 0.0
    for leaf, count in counts.items():
        plain = leaf.event if isinstance(leaf, PoissonSampled) and leaf.rate == 1 else leaf
        if isinstance(plain, GaussianNoise) and plain.noise_multiplier > 0:
            precision += count / plain.noise_multiplier**2
        else:
            merged[plain] = merged.get(plain, 0) + count  # type: ignore[index, arg-type]
    if precision:
        merged[GaussianNoise(precision**-0.5)] = 1
    return tuple(sorted(merged.items(), key=repr))


def _noiseless(leaf: Leaf) -> bool:
    inner = leaf.event if isinstance(leaf, PoissonSampled | FixedSizeSampled) else leaf
    return isinstance(inner, GaussianNoise) and inner.noise_multiplier == 0


def _check(leaf: Leaf, accountant: str) -> None:
    """Raises unless the accountant knows the event and its numbers are in range."""
    inner = leaf.event if isinstance(leaf, PoissonSampled | FixedSizeSampled) else leaf
    sampled = inner is not leaf
    if isinstance(inner, GaussianNoise):
        if not 0 <= inner.noise_multiplier < math.inf:
            raise ValueError(f"a noise multiplier must be at least 0, got {inner.noise_multiplier}")
        knows: tuple[str, ...] = ACCOUNTANTS if not isinstance(leaf, FixedSizeSampled) else ("rdp",)
    elif isinstance(inner, SkellamNoise) and not sampled:
        if not inner.variance > 0 or min(inner.l1, inner.l2) < 0:
            raise ValueError(
                f"Skellam noise must have a positive variance and norms of at least 0, got {inner}"
            )
        knows = ("rdp",)
    else:
        knows = ()
    if isinstance(leaf, PoissonSampled) and not 0 < leaf.rate <= 1:
        raise ValueError(f"a sampling rate must be in (0, 1], got {leaf.rate}")
    if isinstance(leaf, FixedSizeSampled) and not 0 < leaf.size <= leaf.population:
        raise ValueError(f"a sample must have 1 to {leaf.population} units, got {leaf.size}")
    if accountant not in knows:
        who = f"use privacy.accountant={' or '.join(knows)}" if knows else "no accountant does"
        raise UnknownEventError(f"privacy.accountant={accountant} does not know {leaf}; {who}")


@lru_cache(maxsize=4096)
def _epsilon(history: History, delta: float, accountant: str) -> float:
    if accountant == "rdp":
        return _by_rdp(history, delta)
    (leaf, count), *others = history
    if accountant == "pld":
        if not others and isinstance(leaf, GaussianNoise):
            return gaussian_epsilon(count**0.5 / leaf.noise_multiplier, delta)
        return _by_pld(history, delta)
    return _by_prv(history, delta)


def _by_pld(history: History, delta: float, interval: float | None = None) -> float:
    library = _dp_accounting()
    from dp_accounting import pld

    interval = _interval(history, delta) if interval is None else interval
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    for leaf, count in history:
        accountant.compose(_translated(leaf, library), count)
    return float(accountant.get_epsilon(delta))


def _interval(history: History, delta: float) -> float:
    """How far apart the losses of the grid are: rounding adds the number of events times its square, as was measured,
    and time goes with its inverse.
    """
    count = sum(times for _, times in history)
    wanted = _ERROR * max(1.0, _by_rdp(history, delta, _FEW_ORDERS)) / count
    return float(min(1e-3, max(1e-6, math.sqrt(wanted))))


def _by_prv(history: History, delta: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    for leaf, count in history:
        rate = leaf.rate if isinstance(leaf, PoissonSampled) else 1.0
        inner = leaf.event if isinstance(leaf, PoissonSampled) else leaf
        assert isinstance(inner, GaussianNoise)
        accountant.history.append((inner.noise_multiplier, rate, count))
    with (
        warnings.catch_warnings()
    ):  # logarithms of zero that are masked afterwards, and the grid of its RDP bound
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"opacus\.accountants")
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        try:
            return float(accountant.get_epsilon(delta))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"privacy.accountant=prv cannot account for this history ({error}); use privacy.accountant=pld"
            ) from error


def _by_rdp(history: History, delta: float, orders: tuple[float, ...] = _ORDERS) -> float:
    _dp_accounting()
    from dp_accounting import rdp

    replaces = _replaces(history)
    total = np.sum(
        [count * np.array(_divergences(leaf, replaces, orders)) for leaf, count in history], axis=0
    )
    found, _ = rdp.compute_epsilon(orders, total, delta)
    return max(0.0, float(found))


def _replaces(history: History) -> bool:
    """Whether neighbours differ by a unit that is replaced; raises where some events are stated for the other kind."""
    fixed = [isinstance(leaf, FixedSizeSampled) for leaf, _ in history]
    poisson = [isinstance(leaf, PoissonSampled) for leaf, _ in history]
    if any(fixed) and any(poisson):
        raise UnknownEventError(
            "samples of fixed size protect a unit that is replaced, Poisson samples one that is added: their costs do "
            "not add up; use one kind of cohort throughout"
        )
    return any(fixed)


@lru_cache(maxsize=4096)
def _divergences(leaf: Leaf, replaces: bool, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Renyi divergence of one release at each order; a unit that is replaced moves a sum by twice its norm."""
    library = _dp_accounting()
    from dp_accounting import rdp

    if isinstance(leaf, SkellamNoise):
        factor = 2.0 if replaces else 1.0
        return tuple(_skellam_divergence(leaf, order, factor) for order in orders)
    relation = library.NeighboringRelation
    accountant = rdp.RdpAccountant(orders, relation.REPLACE_ONE if replaces else relation.ADD_OR_REMOVE_ONE)
    with _quiet():
        accountant.compose(_translated(leaf, library, 0.5 if replaces else 1.0))
    return tuple(float(value) for value in accountant._rdp)


def _skellam_divergence(noise: SkellamNoise, order: float, factor: float) -> float:
    """Bound of theorem 3.5 at whole orders: that of Gaussian noise of the same variance, and what integers add to it.

    Between them, ``(order - 1)`` times the divergence is convex, so it lies below the chord.
    """
    below, share = math.floor(order), order - math.floor(order)
    if share:
        low = (below - 1) * _skellam_divergence(noise, below, factor) if below > 1 else 0.0
        high = below * _skellam_divergence(noise, below + 1, factor)
        return ((1 - share) * low + share * high) / (order - 1)
    l1, l2, variance = factor * noise.l1, factor * noise.l2, noise.variance
    gaussian = order * l2**2 / (2 * variance)
    return gaussian + min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))


def _translated(leaf: Leaf, library: Any, share: float = 1.0) -> Any:
    """The event in the words of dp-accounting, its noise multiplier times ``share``."""
    if isinstance(leaf, GaussianNoise):
        return library.GaussianDpEvent(leaf.noise_multiplier * share)
    if isinstance(leaf, PoissonSampled):
        return library.PoissonSampledDpEvent(leaf.rate, _translated(leaf.event, library, share))  # type: ignore[arg-type]
    assert isinstance(leaf, FixedSizeSampled)
    inner = _translated(leaf.event, library, share)  # type: ignore[arg-type]
    return library.SampledWithoutReplacementDpEvent(leaf.population, leaf.size, inner)


@cache
def _dp_accounting() -> Any:
    """The library, without the handler that its logging hangs on everybody's: it would print all messages twice, and
    close whatever standard error is at the moment.
    """
    before = list(root_logger.handlers)
    import dp_accounting
    from absl import logging

    handler = logging.get_absl_handler()
    if handler not in before:
        root_logger.removeHandler(handler)
    handler.python_handler.stream = sys.__stderr__
    return dp_accounting


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a line of log for every order that a series does not converge at; these are left out."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
