"""What a mechanism did to private data, in words that an accountant turns into (epsilon, delta).

Parts of the pipeline emit events and know nothing of accountants; an event that an accountant does not know is an error
there. Every mechanism is stated for a sensitivity of 1: ``noise_multiplier`` is the noise's standard deviation over the
norm that one protected unit (a client, or an example) can move the sum by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class GaussianNoise:
    """A sum released once with Gaussian noise."""

    noise_multiplier: float


@dataclass(frozen=True)
class SkellamNoise:
    """A sum of integers released once with Skellam noise, the difference of two Poisson variables.

    Attributes:
        variance: Of the noise on each coordinate, summed over all who add a share of it.
        l1, l2: Largest norms that one protected unit moves the sum by, in the same integers.
    """

    variance: float
    l1: float
    l2: float


@dataclass(frozen=True)
class PoissonSampled:
    """``event`` on a sample that each unit enters with probability ``rate``, by a coin that nobody else sees.

    Neighbours differ in one unit that is there or not.
    """

    rate: float
    event: Event


@dataclass(frozen=True)
class FixedSizeSampled:
    """``event`` on ``size`` different units of ``population``, chosen uniformly and secretly.

    Neighbours differ in one unit that is replaced by another, so that it moves the sum by twice its norm; ``event`` is
    stated for sensitivity 1 as always, and the accountant knows of the factor.
    """

    population: int
    size: int
    event: Event


@dataclass(frozen=True)
class Slack:
    """Something that fails with probability ``delta``, and costs nothing else (a threshold on noisy counts)."""

    delta: float


@dataclass(frozen=True)
class Repeated:
    """``event``, ``count`` times, each one chosen with the earlier ones in view."""

    event: Event
    count: int


@dataclass(frozen=True)
class Composed:
    """All of these, each one chosen with the earlier ones in view."""

    events: tuple[Event, ...]


Event: TypeAlias = (
    GaussianNoise | SkellamNoise | PoissonSampled | FixedSizeSampled | Slack | Repeated | Composed
)
Leaf: TypeAlias = GaussianNoise | SkellamNoise | PoissonSampled | FixedSizeSampled | Slack


def counted(event: Event) -> dict[Leaf, int]:
    """How often each mechanism was used in all; what was used no times is not there.

    >>> counted(Composed((Repeated(GaussianNoise(1.0), 3), GaussianNoise(1.0), Repeated(Slack(1e-6), 0))))
    {GaussianNoise(noise_multiplier=1.0): 4}
    """
    found: dict[Leaf, int] = {}
    _count(event, 1, found)
    return found


def _count(event: Event, times: int, found: dict[Leaf, int]) -> None:
    if isinstance(event, Composed):
        for one in event.events:
            _count(one, times, found)
    elif isinstance(event, Repeated):
        _count(event.event, times * event.count, found)
    elif times:
        found[event] = found.get(event, 0) + times
