"""The parts that a mode of privacy puts on the way of an update.

example              DP-SGD in the trainer          | hide counts | weight                  -> plain sum
client_central       universe | clip | weight                                               -> plain sum -> noise
local                universe | clip | weight | spread over the universe, noise | hide       -> plain sum
client_distributed   universe | clip | weight | spread, round to integers, share of noise | hide -> sum in a ring
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedemb.aggregate.secure.ring import Ring, rounded_bound
from fedemb.aggregate.secure.ring_sum import RingSum
from fedemb.errors import RunError
from fedemb.privacy.banded import BandedNoise, best_bands
from fedemb.privacy.claim import Claim, Facts
from fedemb.privacy.events import Composed, SkellamNoise
from fedemb.privacy.noise import Noise
from fedemb.privacy.select import Selection
from fedemb.privacy.settings import CENTRAL, DISTRIBUTED, EXAMPLE, NONE, RAW, SELECT, PrivacySettings
from fedemb.stages.central_noise import AdaptiveClip, CentralNoise
from fedemb.stages.clip import Clip
from fedemb.stages.distributed_noise import DistributedNoise, grid_for
from fedemb.stages.local_noise import LocalNoise
from fedemb.stages.silent import Silent
from fedemb.stages.spread import Layout
from fedemb.stages.universe import Universe
from fedemb.stages.weight import Weight
from fedemb.train.private import ExamplePrivacy
from fedemb.types import Aggregator, CohortSampler, Dense, Int64, Stage, Stateful, Table


@dataclass(frozen=True)
class Protection:
    """A mode of privacy, ready to be built into a run.

    Attributes:
        settings: What was asked for.
        claim: What is promised.
        layout: The universe.
        dense: Dense parameters of the task.
        noise: Where noise comes from.
        divisor: What sums are divided by.
        ring_bits: Of the ring, for integer sums.
        device: Where tables live.
    """

    settings: PrivacySettings
    claim: Claim
    layout: Layout
    dense: tuple[Dense, ...]
    noise: Noise
    divisor: float
    ring_bits: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @staticmethod
    def of(
        settings: PrivacySettings,
        tables: tuple[Table, ...],
        dense: tuple[Dense, ...],
        universe: Mapping[str, Tensor],
        sampler: CohortSampler,
        sizes: Int64,
        epochs: int,
        batch_size: int,
        rounds: int,
        rows: str,
        ring_bits: int,
        seed: int,
        device: torch.device,
    ) -> Protection:
        """The mode with the noise that it needs.

        Args:
            settings: What was asked for.
            tables: The shared tables.
            dense: Dense parameters.
            universe: Per table, whether each row is public; all rows of tables that are not there.
            sampler: Who takes part.
            sizes: ``(clients,)`` training examples.
            epochs: Of a round.
            batch_size: Examples of a local step; 0: all.
            rounds: That are planned.
            rows: The rule of aggregation: ``sum`` or ``fedavg``.
            ring_bits: Of the ring.
            seed: The run's seed.
            device: Where tables live.

        Raises:
            ValueError: If a setting is out of range, or its target cannot be met.
        """
        participation = sampler.participation(int((sizes > 0).sum()))
        layout, noise = Layout(tables, universe), Noise(seed if settings.seeded_noise else None)
        divisor = participation.size if rows == "fedavg" else 1.0
        num_values = layout.num_values(dense)
        bands = settings.bands or 1
        if bands == "auto":
            bands = best_bands(rounds, participation.separation)
        selection = _selection(settings)
        facts = Facts(
            participation,
            sampler,
            seed,
            sizes,
            epochs,
            batch_size,
            int(bands),
            lambda z: _skellam(settings, z, num_values),
            Composed(()) if selection is None else selection.event,
        )
        claim = Claim.of(settings, facts, rounds)
        made = Protection(settings, claim, layout, dense, noise, divisor, ring_bits, device)
        made.server_stages()  # whose settings are checked
        if settings.name == DISTRIBUTED:
            made.check_ring()
        return made

    @property
    def selection(self) -> Selection | None:
        """How the universe is chosen, if it is."""
        return _selection(self.settings)

    def cohort_seed(self, seed: int) -> int:
        """Seed of the draws of cohorts: a secret one where the claim rests on nobody knowing who takes part."""
        drawn = self.claim.facts.participation.kind in ("poisson", "fixed")
        return self.noise.coins(seed) if drawn and self.settings.name == CENTRAL else seed

    @property
    def hides_metrics(self) -> bool:
        """Whether nothing that was measured on clients' data may leave."""
        return self.settings.metrics != RAW

    @property
    def hides_cohorts(self) -> bool:
        """Whether not even how many took part in a round may be told."""
        return self.hides_metrics and self.settings.name == CENTRAL

    def choose_universe(self, votes: Tensor, stages: Sequence[Stage]) -> None:
        """Confines these stages to rows that are chosen by clients' votes, once.

        Raises:
            RunError: If no row has votes enough.
        """
        assert self.selection is not None
        chosen = self.selection.chosen(votes, self.noise)
        if not bool(chosen.any()):
            raise RunError(
                f"no row has the {self.selection.threshold:.1f} votes that privacy.universe=select asks for; more "
                "clients, a larger privacy.selection.delta or a smaller privacy.selection.most_rows help, or "
                "privacy.universe=vocabulary where names are public"
            )
        for stage in stages:
            if isinstance(stage, Stateful):
                stage.confine(masks_of(self.layout.tables, torch.nonzero(chosen).view(-1)))

    def example_privacy(self) -> ExamplePrivacy | None:
        """What the trainer does; None where examples are not protected one by one."""
        if self.settings.name != EXAMPLE:
            return None
        return ExamplePrivacy(
            self.settings.clip_norm, self.claim.noise_multiplier, self.noise, self.layout.rows
        )

    def client_stages(self, weight: Weight) -> tuple[Stage, ...]:
        """Client halves, in the order that they must have."""
        settings = self.settings
        silent = Silent(settings.name != CENTRAL, self.hides_metrics, self._kept())
        if settings.name == EXAMPLE:
            return Universe(self.layout.rows, discard=False), weight, silent
        before = (
            Universe(self.layout.rows, discard=settings.name != CENTRAL),
            Clip(settings.clip_norm),
            weight,
        )
        if settings.name == CENTRAL:
            return (*before, silent)
        if settings.name == DISTRIBUTED:
            return (*before, self._integers(), silent)
        deviation = self.claim.noise_multiplier * settings.clip_norm
        return (*before, LocalNoise(self.layout, deviation, self.noise), silent)

    def _kept(self) -> tuple[str, ...]:
        return () if self.settings.quantile is None else ("clipped",)

    def server_stages(self) -> tuple[Stage, ...]:
        """Server halves, with a state of their own each time."""
        settings = self.settings
        if settings.name != CENTRAL:
            return ()
        z, adaptive = self.claim.noise_multiplier, self._adaptive()
        if adaptive is not None:
            z = adaptive.share_of_updates(z)
        bands = self.claim.facts.bands
        shapes = {part.name: part.shape for part in self.dense}
        return (
            CentralNoise(
                self.layout,
                shapes,
                z,
                settings.clip_norm,
                self.divisor,
                self.noise,
                adaptive,
                BandedNoise(bands) if bands > 1 else None,
                self.device,
            ),
        )

    def _adaptive(self) -> AdaptiveClip | None:
        wanted = self.settings.adaptive_clip
        if wanted is None or wanted.quantile is None:
            return None
        size = self.claim.facts.participation.size
        count_noise = wanted.count_noise
        if count_noise is None:
            count_noise = max(size / 20, 0.6 * self.claim.noise_multiplier)  # more than half is needed
        return AdaptiveClip(wanted.quantile, wanted.learning_rate, count_noise, size)

    def aggregator(self) -> Aggregator:
        """The sum in a ring, for integers."""
        stage = self._integers()
        return RingSum(self.layout, stage.ring, stage.grid, self.divisor, self.min_clients)

    @property
    def min_clients(self) -> int:
        """Clients whose shares of noise are enough."""
        size = int(self.claim.facts.participation.size)
        return self.settings.min_clients or max(1, math.ceil(0.9 * size))

    def _integers(self) -> DistributedNoise:
        z, ring = self.claim.noise_multiplier, Ring(self.ring_bits)
        noise = _skellam(self.settings, z, self.layout.num_values(self.dense))
        share = noise.variance / self.min_clients
        return DistributedNoise(self.layout, _grid(self.settings, z), noise.l2, share, ring, self.noise)

    def check_ring(self) -> None:
        """Raises ValueError unless the sum of a cohort and its noise has room in the ring."""
        participation = self.claim.facts.participation
        size = math.ceil(participation.size)
        if self.min_clients > size:
            raise ValueError(
                f"privacy.min_clients must be at most {size}, the clients of a cohort, got {self.min_clients}"
            )
        stage = self._integers()
        stage.ring.check_headroom(stage.bound, size, math.sqrt(stage.variance * size))

    def summary(self) -> dict[str, Any]:
        """What stands in ``summary.json`` apart from what was spent."""
        settings = self.settings
        return {
            **self.claim.words(),
            "delta": settings.delta,
            "accountant": settings.accountant,
            "noise_multiplier": self.claim.noise_multiplier,
            "clip_norm": settings.clip_norm,
            "noise_is_reproducible": self.noise.reproducible,
        }


def _selection(settings: PrivacySettings) -> Selection | None:
    return settings.selection if settings.universe == SELECT else None


def _grid(settings: PrivacySettings, noise_multiplier: float) -> float:
    return settings.grid or grid_for(settings.clip_norm, noise_multiplier)


def _skellam(settings: PrivacySettings, noise_multiplier: float, num_values: int) -> SkellamNoise:
    """The noise on the sum of integers: its deviation is the multiplier times what one client can move the sum by."""
    bound = rounded_bound(settings.clip_norm, _grid(settings, noise_multiplier), num_values)
    l1 = min(bound**2, bound * math.sqrt(num_values))  # integers: none is shorter than its square
    return SkellamNoise((noise_multiplier * bound) ** 2, l1, bound)


def universe_of(
    settings: PrivacySettings, tables: tuple[Table, ...], index: Callable[[str], Int64]
) -> dict[str, Tensor]:
    """Per shared table of the main entity, whether each row is in the universe; empty: all are.

    Args:
        settings: What was asked for.
        tables: The shared tables, the main one first.
        index: Ids of the names in a file, -1 for names that have no row.

    Raises:
        ValueError: If none of the names has a row.
    """
    if settings.name == NONE or settings.universe in ("vocabulary", SELECT) or not tables:
        return {}
    ids = index(settings.universe)
    ids = np.unique(ids[ids >= 0])
    if not len(ids):
        raise ValueError(
            f"privacy.universe={settings.universe} must name rows, but none of its names has one"
        )
    return masks_of(tables, torch.from_numpy(ids))


def masks_of(tables: tuple[Table, ...], entities: Tensor) -> dict[str, Tensor]:
    """Per table of the main entity, whether each row ``(num_rows,)`` belongs to one of these entities."""
    found = {}
    for table in tables:
        if table.entity == tables[0].entity:
            inside = torch.zeros(table.num_rows // table.num_slices, dtype=torch.bool)
            inside[entities] = True
            found[table.name] = inside.repeat_interleave(table.num_slices)
    return found
