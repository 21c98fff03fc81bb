"""Who takes part in a round. The draw depends on seed and round alone, never on nodes or order of replies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedemb.errors import SettingError
from fedemb.seeds import generator
from fedemb.types import Int64, Participation


@dataclass(frozen=True)
class Full:
    """Everybody, every round. No amplification by sampling."""

    def __call__(self, seed: int, round: int, eligible: Int64) -> Int64:
        return eligible

    def check(self, num_eligible: int) -> None:
        """Every population will do."""

    def participation(self, num_eligible: int) -> Participation:
        """Everybody, in every round."""
        return Participation("full", num_eligible, float(num_eligible))


@dataclass(frozen=True)
class Uniform:
    """``size`` different clients, uniformly. Sampling of fixed size: replace-one, sensitivity doubled under DP."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"cohort.size must be at least 1, got {self.size}")

    def __call__(self, seed: int, round: int, eligible: Int64) -> Int64:
        chosen = generator(seed, "cohort", round).choice(
            len(eligible), self.size, replace=False, shuffle=False
        )
        return eligible[np.sort(chosen)]

    def check(self, num_eligible: int) -> None:
        """Raises SettingError if there are fewer clients than a cohort needs."""
        if self.size > num_eligible:
            raise SettingError(
                f"cohort.size must be at most {num_eligible}, the clients with examples, got {self.size}; "
                "use a smaller one or cohort=full"
            )

    def participation(self, num_eligible: int) -> Participation:
        """So many different ones, and maybe the same again in the next round."""
        return Participation("fixed", num_eligible, float(self.size))


@dataclass(frozen=True)
class Poisson:
    """A coin for each client, independent of everybody else's; a cohort may be empty. Amplifies privacy."""

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"cohort.rate must be in (0, 1], got {self.rate}")

    def __call__(self, seed: int, round: int, eligible: Int64) -> Int64:
        return eligible[generator(seed, "cohort", round).random(len(eligible)) < self.rate]

    def check(self, num_eligible: int) -> None:
        """Every population will do."""

    def participation(self, num_eligible: int) -> Participation:
        """A coin for each."""
        return Participation("poisson", num_eligible, self.rate * num_eligible)


@dataclass(frozen=True)
class Turns:
    """At most ``size`` clients in a random order that stays: each has its turn once in so many rounds, never sooner.

    No amplification by sampling, for who takes part is foreseen; but a bound on how often and how soon again, which
    correlated noise needs. Cohorts are as even as they get.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"cohort.size must be at least 1, got {self.size}")

    def __call__(self, seed: int, round: int, eligible: Int64) -> Int64:
        order = generator(seed, "turns", 0).permutation(len(eligible))
        num_turns = -(-len(eligible) // self.size)
        return eligible[np.sort(np.array_split(order, num_turns)[(round - 1) % num_turns])]

    def check(self, num_eligible: int) -> None:
        """Raises SettingError if there are fewer clients than a cohort needs."""
        Uniform(self.size).check(num_eligible)

    def participation(self, num_eligible: int) -> Participation:
        """Each once in as many rounds as there are cohorts."""
        num_turns = -(-num_eligible // self.size)
        return Participation("turns", num_eligible, num_eligible / max(1, num_turns), num_turns)
