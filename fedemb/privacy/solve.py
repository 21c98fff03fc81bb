"""From a target to what meets it: the noise that an epsilon needs, and the rounds that a budget lasts."""

from __future__ import annotations

from collections.abc import Callable

from fedemb.privacy.accountant import epsilon
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
    meets = _memory(lambda z: epsilon(event_of(z), delta, accountant) <= target_epsilon)
    quick = _memory(lambda z: epsilon(event_of(z), delta, "rdp") <= target_epsilon)
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


def _memory(function: Callable[[float], bool]) -> Callable[[float], bool]:
    known: dict[float, bool] = {}

    def asked(z: float) -> bool:
        if z not in known:
            known[z] = function(z)
        return known[z]

    return asked


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


def most_rounds(
    event_after: Callable[[int], Event], budget: float, delta: float, accountant: str, at_most: int
) -> int:
    """Largest number of rounds in ``0 .. at_most`` whose event costs no more than the budget.

    Args:
        event_after: All that was done after so many rounds; more rounds must cost more.
        budget: An epsilon.
        delta: In (0, 1).
        accountant: See ``accountant.epsilon``.
        at_most: Tried first.
    """
    if epsilon(event_after(at_most), delta, accountant) <= budget:
        return at_most
    low, high = 0, at_most  # low rounds are within the budget, high ones are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if epsilon(event_after(middle), delta, accountant) <= budget else (low, middle)
        )
    return low
