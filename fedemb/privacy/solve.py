"""From a target to what meets it: the noise that an epsilon needs, and the rounds that a budget lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fedemb.privacy.accountant import epsilon, upper_bound, worst
from fedemb.privacy.events import Event

_TOLERANCE = 1e-4  # relative, of a noise multiplier
_MOST_NOISE = 1e5


def noise_multiplier_for(
    event_of: Callable[[float], Event], target_epsilon: float, delta: float, accountant: str = "pld"
) -> float:
    """Smallest noise multiplier, to a relative 1e-4 and on the safe side, with which an event meets a target.

    Args:
        event_of: The event with a given noise multiplier; more noise must cost less.
        target_epsilon: Positive.
        delta: In (0, 1).
        accountant: See ``accountant.epsilon``.

    Raises:
        ValueError: If no noise multiplier up to 10^5 does.
    """
    if not 0 < target_epsilon < float("inf"):
        raise ValueError(f"privacy.target_epsilon must be a positive number or null, got {target_epsilon}")

    def meets(z: float) -> bool:
        return epsilon(event_of(z), delta, accountant) <= target_epsilon

    def quick(z: float) -> bool:
        return upper_bound(event_of(z), delta) <= target_epsilon

    low, high = _bracket(quick)  # Renyi divergences are quick, and err on the side of more noise
    high *= 1 + _TOLERANCE
    if not meets(high):
        low, high = _bracket(meets, high)
    else:
        low = high
        while low > 1e-3 and meets(low):
            high, low = low, low * 0.85
    while high > low * (1 + _TOLERANCE):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _bracket(meets: Callable[[float], bool], start: float = 1.0) -> tuple[float, float]:
    """Noise multipliers within a tenth of each other, of which the second one meets the target."""
    high = start
    while not meets(high):
        high *= 2
        if high > _MOST_NOISE:
            raise ValueError(
                "privacy.target_epsilon cannot be met with any noise; raise privacy.target_epsilon or privacy.delta"
            )
    low = high / 2
    while meets(low) and low > 1e-3:
        high, low = low, low / 2
    while high > 1.1 * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if meets(middle) else (middle, high)
    return low, high


def noise_multiplier_for_all(
    histories_of: Callable[[float], Iterable[Event]],
    target_epsilon: float,
    delta: float,
    accountant: str = "pld",
) -> float:
    """As ``noise_multiplier_for``, for the worst of many histories, which may be another one with other noise.

    Args:
        histories_of: The histories with a given noise multiplier, always in the same order.
        target_epsilon: Positive.
        delta: In (0, 1).
        accountant: See ``accountant.epsilon``.

    Raises:
        ValueError: As ``noise_multiplier_for``.
    """
    needed, z = 0.0, 1.0
    while True:
        cost, event = worst(histories_of(z), delta, accountant)
        if needed and cost <= target_epsilon:
            return needed
        at = list(histories_of(z)).index(event) if cost else 0
        own = noise_multiplier_for(
            lambda own_z, at=at: list(histories_of(own_z))[at],  # type: ignore[misc]
            target_epsilon,
            delta,
            accountant,
        )
        needed = z = max(own, needed * (1 + _TOLERANCE))


def most_rounds(cost_after: Callable[[int], float], budget: float, first: int, last: int) -> int:
    """The last round in ``first - 1 .. last`` after which no more than the budget is spent.

    Args:
        cost_after: Epsilon after so many rounds; more rounds must cost more.
        budget: An epsilon.
        first: The first round that is not yet done.
        last: The last one that is wanted; tried first.
    """
    if cost_after(last) <= budget:
        return last
    low, high = first - 1, last  # low rounds are within the budget, or done already; high ones are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost_after(middle) <= budget else (low, middle)
    return low
