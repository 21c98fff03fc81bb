"""Noise that is correlated from round to round, so that what is added in one is partly taken back in the next.

A model is a sum of all rounds' totals, so it is the noise of prefix sums that hurts. Where no amplification by sampling
can be had, noise ``C^-1 Z`` with a banded ``C`` costs as much privacy as the sensitivity of ``C`` says, and leaves less
in the sums than noise of each round's own. ``C`` has the first coefficients of ``(1 - x)^(-1/2)`` on its bands.

Reference: Kalinin, Lampert, "Banded Square Root Matrix Factorization for Differentially Private Model Training",
NeurIPS 2024 (the matrix, and that it is near the best); Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu,
"(Amplified) Banded Matrix Factorization: A unified approach to private training", NeurIPS 2023, theorem 2 (sensitivity
where a client takes part again after as many rounds as there are bands, or more).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float64: TypeAlias = npt.NDArray[np.float64]


def coefficients(bands: int) -> Float64:
    """The matrix's diagonals ``(bands,)``, from the main one down.

    >>> coefficients(3).tolist()
    [1.0, 0.5, 0.375]
    """
    k = np.arange(1, bands)
    return np.concatenate(([1.0], np.cumprod((2 * k - 1) / (2 * k))))


def sensitivity(bands: int, rounds: int, separation: int) -> float:
    """How far one client moves ``C`` times all rounds' sums, in clip norms.

    Its participations are ``separation`` rounds apart at the least, so their columns do not overlap and their squares
    add up; the last ones, cut off by the end, count as whole ones.

    Raises:
        ValueError: If a client may take part again before the bands are over.
    """
    if not 1 <= bands <= separation:
        raise ValueError(
            f"privacy.bands must be in 1 .. {separation}, the rounds from one participation of a client to its next, "
            f"got {bands}; cohort=turns with a smaller cohort.size sets them farther apart"
        )
    return math.sqrt(participations(rounds, separation)) * float(np.linalg.norm(coefficients(bands)))


def participations(rounds: int, separation: int) -> int:
    """How often a client can take part."""
    return -(-rounds // separation)


def effective_noise_multiplier(noise_multiplier: float, bands: int, rounds: int, separation: int) -> float:
    """The multiplier of the one Gaussian release that all rounds together are."""
    return noise_multiplier / sensitivity(bands, rounds, separation) if rounds else math.inf


def prefix_error(bands: int, rounds: int, separation: int) -> float:
    """Root mean square of the noise in prefix sums, in clip norms, where the whole run is one release of multiplier 1.

    Raises:
        ValueError: As ``sensitivity``.
    """
    inverse, c = np.zeros(rounds), coefficients(bands)
    inverse[0] = 1.0
    for t in range(1, rounds):  # column of C^-1: c convolved with it is the unit
        past = min(bands - 1, t)
        inverse[t] = -(c[1 : past + 1] @ inverse[t - past : t][::-1])
    variances = np.cumsum(np.cumsum(inverse) ** 2)
    return sensitivity(bands, rounds, separation) * math.sqrt(float(variances.mean()))


def best_bands(rounds: int, separation: int) -> int:
    """Bands, among powers of two and ``separation`` itself, that leave the least noise in prefix sums."""
    powers = [2**k for k in range(int(math.log2(max(1, separation))) + 1)]
    errors = {bands: prefix_error(bands, rounds, separation) for bands in sorted({*powers, separation})}
    best: int = min(errors, key=lambda bands: errors[bands])
    return best


@dataclass
class BandedNoise:
    """Makes correlated noise of fresh noise, round by round, remembering ``bands - 1`` rounds.

    Attributes:
        bands: Of the matrix.
    """

    bands: int
    _past: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)

    def correlate(self, name: str, fresh: Tensor) -> Tensor:
        """This round's row of ``C^-1 Z``, from its row of ``Z``; one call for each name and round."""
        past = self._past.setdefault(name, [])
        noise = fresh.clone()
        for c, before in zip(coefficients(self.bands)[1:], reversed(past), strict=False):
            noise.sub_(before, alpha=float(c))
        past.append(noise)
        del past[: max(0, len(past) - (self.bands - 1))]
        return noise

    def state(self) -> dict[str, Tensor]:
        """Noise of the last rounds by name, ``(rounds, ...)``: whoever has it can subtract it."""
        return {name: torch.stack(past) for name, past in self._past.items() if past}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up from what ``state`` returned."""
        self._past = {name: list(past.unbind(0)) for name, past in state.items()}
