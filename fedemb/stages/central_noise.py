"""Noise that a trusted server adds to the sum of clipped updates, before anybody else sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedemb.privacy.banded import BandedNoise
from fedemb.privacy.noise import Noise
from fedemb.stages.spread import Layout
from fedemb.types import RowTotal, StageContext, Total, Updates

CLIP_NORM = "clip_norm"


@dataclass(frozen=True)
class AdaptiveClip:
    """Follows a quantile of the norms of clients' updates, by noisy counts of those that were not clipped.

    Reference: Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS
    2021, algorithm 1: counts of ``bit - 1/2``, which one client moves by a half, and the geometric update.

    Attributes:
        quantile: Share of updates that are not to be clipped.
        learning_rate: Of the logarithm of the clip norm.
        count_noise: Standard deviation of the noise on the count.
        expected: Clients that are expected in a cohort.
    """

    quantile: float
    learning_rate: float
    count_noise: float
    expected: float

    def share_of_updates(self, noise_multiplier: float) -> float:
        """Noise multiplier that is left for the updates, so that both together are as private as ``noise_multiplier``.

        Raises:
            ValueError: If the count alone needs less noise than it has.
        """
        left = noise_multiplier**-2 - (2 * self.count_noise) ** -2 if noise_multiplier else math.inf
        if left <= 0:
            raise ValueError(
                f"privacy.adaptive_clip.count_noise must be more than half of privacy.noise_multiplier "
                f"({noise_multiplier:g}), got {self.count_noise:g}; a twentieth of the cohort is usual"
            )
        return 0.0 if math.isinf(left) else left**-0.5

    def next(self, clip_norm: float, num_clients: int, clipped: float, normal: float) -> float:
        """The clip norm of the next round.

        Args:
            clip_norm: That of this one.
            num_clients: Who sent an update.
            clipped: How many of these were longer.
            normal: A standard normal number.
        """
        count = num_clients / 2 - clipped + self.count_noise * normal
        share = 0.5 + count / self.expected
        return clip_norm * math.exp(-self.learning_rate * (share - self.quantile))


@dataclass
class CentralNoise:
    """Adds Gaussian noise to every row of the universe, touched or not, and to dense parameters.

    A round in which nobody took part gets its noise like any other.

    Attributes:
        layout: The universe.
        dense: Shapes of dense parameters.
        noise_multiplier: Standard deviation of the noise on the sum of updates, over the clip norm.
        clip_norm: That of the next round; it moves where ``adaptive`` is set.
        divisor: What the sum was divided by, a public number.
        noise: Where it comes from.
        adaptive: How the clip norm follows the updates; None: it stays.
        banded: Correlates the noise of rounds; None: each has noise of its own.
        device: Where the tables are.
        confined: Whether the universe was chosen, and belongs to the state.
    """

    layout: Layout
    dense: Mapping[str, tuple[int, ...]]
    noise_multiplier: float
    clip_norm: float
    divisor: float
    noise: Noise
    adaptive: AdaptiveClip | None = None
    banded: BandedNoise | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    confined: bool = False
    name: str = "central_noise"
    bounded: bool = False

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        return updates

    def on_server(self, total: Total, context: StageContext) -> Total:
        deviation = self.noise_multiplier * self.clip_norm / self.divisor
        tables = {}
        for table in self.layout.tables:
            ids = self.layout.ids(table).to(self.device)
            dtype = table.manifold.dtype
            steps = torch.zeros((table.num_rows, table.dim), dtype=dtype, device=self.device)
            if table.name in total.tables:
                steps[total.tables[table.name].rows] = total.tables[table.name].steps
            noise = self._noise(table.name, table.dim, dtype, context.round, ids.cpu().numpy())
            tables[table.name] = RowTotal(ids, steps[ids] + noise * deviation)
        dense = {}
        for name, shape in self.dense.items():
            value = total.dense.get(name)
            width = math.prod(shape)
            dtype = torch.float32 if value is None else value.dtype
            noise = self._noise(name, width, dtype, context.round, np.zeros(1, dtype=np.int64)).view(shape)
            dense[name] = noise * deviation if value is None else value + noise * deviation
        if self.adaptive is not None:
            normal = float(self.noise.normal("central/clip", 1, torch.float64, context.round))
            self.clip_norm = self.adaptive.next(self.clip_norm, total.num_clients, total.clipped, normal)
        return replace(total, tables=tables, dense=dense)

    def _noise(self, name: str, width: int, dtype: torch.dtype, round: int, rows: np.ndarray) -> Tensor:
        fresh = self.noise.normal(f"central/{name}", width, dtype, round, rows).to(self.device)
        return fresh if self.banded is None else self.banded.correlate(name, fresh)

    def confine(self, rows: Mapping[str, Tensor]) -> None:
        """Leaves it these rows, per table ``(num_rows,)`` bool."""
        self.layout, self.confined = replace(self.layout, rows=rows), True

    def state(self) -> dict[str, Tensor]:
        """What the next round depends on; the noise of earlier rounds among it, which nobody else may see."""
        own = {CLIP_NORM: torch.tensor(self.clip_norm, dtype=torch.float64)}
        if self.confined:
            own |= {f"universe/{name}": rows for name, rows in self.layout.rows.items()}
        if self.banded is not None:
            own |= {f"banded/{name}": value for name, value in self.banded.state().items()}
        return own

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up from what ``state`` returned."""
        self.clip_norm = float(state[CLIP_NORM])
        rows = {n.removeprefix("universe/"): v.bool() for n, v in state.items() if n.startswith("universe/")}
        if rows:
            self.confine(rows)
        if self.banded is not None:
            own = {n.removeprefix("banded/"): v for n, v in state.items() if n.startswith("banded/")}
            self.banded.restore({name: value.to(self.device) for name, value in own.items()})
