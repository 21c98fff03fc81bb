"""A universe of rows that is chosen under privacy: those that enough clients hold, by noisy counts above a threshold.

Each client has one vote of length 1, spread evenly over rows that it holds, ``most_rows`` at most; noise is added to
the sum, and a row is taken where that exceeds a threshold which a row of one client alone passes with probability
``delta`` at the most, counted over all of that client's rows.

Reference: Gopi, Gulhane, Kulkarni, Shen, Shokouhi, Yekhanin, "Differentially Private Set Union", ICML 2020, theorem 5.1
(Gaussian weights; here each client's weights do not depend on the others').
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from fedemb.privacy.events import Composed, Event, GaussianNoise, Slack
from fedemb.privacy.noise import Noise
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Int64


@dataclass(frozen=True)
class Selection:
    """How rows are chosen.

    Attributes:
        noise_multiplier: Standard deviation of the noise on votes; a client's vote has length 1.
        delta: Probability that a row of one client alone is taken, over all of its rows.
        most_rows: Rows that one client votes for at the most.
    """

    noise_multiplier: float
    delta: float
    most_rows: int

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < float("inf"):
            raise ValueError(
                f"privacy.selection.noise_multiplier must be a positive number, got {self.noise_multiplier}"
            )
        if not 0 < self.delta < 1:
            raise ValueError(
                f"privacy.selection.delta must be in (0, 1), got {self.delta}; a tenth of privacy.delta"
            )
        if self.most_rows < 1:
            raise ValueError(f"privacy.selection.most_rows must be at least 1, got {self.most_rows}")

    @property
    def event(self) -> Event:
        """What choosing once costs."""
        return Composed((GaussianNoise(self.noise_multiplier), Slack(self.delta)))

    @property
    def threshold(self) -> float:
        """What a row's noisy votes must exceed.

        >>> round(Selection(1.0, 1e-6, 1).threshold, 3)
        5.753
        """
        t = np.arange(1, self.most_rows + 1)
        return float(
            np.max(1 / np.sqrt(t) - self.noise_multiplier * ndtri(-np.expm1(np.log1p(-self.delta) / t)))
        )

    def chosen(self, votes: Tensor, noise: Noise) -> Tensor:
        """Whether each row is taken ``(num_rows,)``, from all clients' votes."""
        rows = np.arange(len(votes), dtype=np.int64)
        found = noise.normal("select", 1, torch.float64, rows)[:, 0] * self.noise_multiplier
        return (votes > 0) & (votes.double() + found > self.threshold)


def votes_of(held: Mapping[int, Int64], num_rows: int, most_rows: int, seed: int) -> Tensor:
    """Votes ``(num_rows,)`` float64 of these clients.

    Args:
        held: Per client id, the different rows that it holds.
        num_rows: Height of the table.
        most_rows: Rows that a client votes for at the most; which ones, if it has more, is drawn.
        seed: Of these draws.
    """
    votes = np.zeros(num_rows)
    for client, rows in held.items():
        if len(rows) > most_rows:
            draws = uniforms(stream_keys(seed, "votes", client), len(rows))[0]
            rows = rows[np.argsort(draws)[:most_rows]]
        votes[rows] += len(rows) ** -0.5 if len(rows) else 0.0
    return torch.from_numpy(votes)
