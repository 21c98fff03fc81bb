"""Who takes part in a round. The draw depends on seed and round alone, never on nodes or order of replies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedemb.errors import SettingError
from fedemb.seeds import generator
from fedemb.types import Int64


@dataclass(frozen=True)
class Full:
    """Everybody, every round. No amplification by sampling."""

    def __call__(self, seed: int, round: int, eligible: Int64) -> Int64:
        return eligible

    def check(self, num_eligible: int) -> None:
        """Every population will do."""

    def expected(self, num_eligible: int) -> float:
        """Mean size of a cohort."""
        return float(num_eligible)


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

    def expected(self, num_eligible: int) -> float:
        """Mean size of a cohort."""
        return float(self.size)


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

    def expected(self, num_eligible: int) -> float:
        """Mean size of a cohort."""
        return self.rate * num_eligible
