"""What is promised, to whom, against whom, and what the rounds that were run have cost of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedemb.privacy.accountant import worst
from fedemb.privacy.banded import effective_noise_multiplier
from fedemb.privacy.events import (
    Composed,
    Event,
    FixedSizeSampled,
    GaussianNoise,
    PoissonSampled,
    Repeated,
    SkellamNoise,
)
from fedemb.privacy.gaussian_mechanism import analytic_noise_multiplier
from fedemb.privacy.settings import CENTRAL, DISTRIBUTED, EXAMPLE, LOCAL, RAW, PrivacySettings
from fedemb.privacy.solve import noise_multiplier_for_all
from fedemb.train.poisson import Sampling
from fedemb.types import CohortSampler, Int64, Participation


@dataclass(frozen=True)
class Segment:
    """Consecutive rounds that were run with the same noise; a run that was killed may have run a round twice.

    Attributes:
        first, last: Rounds.
        noise_multiplier: Of their noise.
    """

    first: int
    last: int
    noise_multiplier: float


@dataclass(frozen=True)
class Facts:
    """What a claim follows from besides the settings.

    Attributes:
        participation: How clients come to take part.
        sampler: The sampler itself, for cohorts that are drawn from the run's seed and thus known to everybody.
        seed: The run's seed.
        sizes: ``(clients,)`` training examples.
        epochs: Of a round.
        batch_size: Examples of a step on average; 0: all.
        bands: Of correlated noise; 1: independent.
        skellam: The noise of a sum of integers, by noise multiplier, for ``client_distributed``.
        choice: What choosing a universe costs; nothing where it is declared.
    """

    participation: Participation
    sampler: CohortSampler
    seed: int
    sizes: Int64
    epochs: int
    batch_size: int
    bands: int
    skellam: Callable[[float], SkellamNoise]
    choice: Event


@dataclass(frozen=True)
class Claim:
    """A guarantee, for the noise that was chosen.

    Attributes:
        settings: What was asked for.
        facts: What it follows from.
        noise_multiplier: The noise.
    """

    settings: PrivacySettings
    facts: Facts
    noise_multiplier: float

    @staticmethod
    def of(settings: PrivacySettings, facts: Facts, rounds: int) -> Claim:
        """The claim with the noise that is set, or the least that meets the target after so many rounds.

        Raises:
            ValueError: If no noise meets it, or an event has no accountant.
        """
        chosen = 1.0 if settings.noise_multiplier is None else settings.noise_multiplier
        claim = Claim(settings, facts, chosen)
        if settings.target_epsilon is None:
            claim.spent([Segment(1, 1, chosen)])  # that the accountant knows such events
            return claim
        if settings.name == LOCAL and settings.accountant == "pld":  # its releases are one, in closed form
            most = claim._most(Segment(1, rounds, 1.0))
            alone = analytic_noise_multiplier(settings.target_epsilon, settings.delta)
            return Claim(settings, facts, alone * max(1, most) ** 0.5)
        found = noise_multiplier_for_all(
            lambda z: claim.histories([Segment(1, rounds, z)]),
            settings.target_epsilon,
            settings.delta,
            settings.accountant,
        )
        return Claim(settings, facts, found)

    def spent(self, segments: Sequence[Segment], choices: int = 1) -> float:
        """Epsilon of all that these rounds released, and so many choices of a universe: the largest of any unit."""
        found = self.histories(segments, choices)
        return worst(found, self.settings.delta, self.settings.accountant)[0]

    def histories(self, segments: Sequence[Segment], choices: int = 1) -> Iterable[Event]:
        """What was done to each unit; to the worst one of them where that is clear."""
        if self.settings.name == EXAMPLE:
            return self._of_examples(segments)
        return [Composed((Repeated(self.facts.choice, choices), *map(self._of_clients, segments)))]

    def _of_clients(self, segment: Segment) -> Event:
        """The event of a segment for the client that took part most often."""
        facts, rounds, z = self.facts, segment.last - segment.first + 1, segment.noise_multiplier
        participation = facts.participation
        if self.settings.name == DISTRIBUTED:
            return Repeated(facts.skellam(z), self._most(segment)) if z else GaussianNoise(0.0)
        if self.settings.name != CENTRAL:
            return Repeated(GaussianNoise(z), self._most(segment))
        if facts.bands > 1:  # rounds that were run before a restart are in its past: counted with it
            return GaussianNoise(
                effective_noise_multiplier(z, facts.bands, segment.last, participation.separation)
            )
        if participation.kind == "poisson":
            rate = participation.size / participation.population
            return Repeated(PoissonSampled(rate, GaussianNoise(z)), rounds)
        if participation.kind == "fixed":
            size = round(participation.size)
            return Repeated(FixedSizeSampled(participation.population, size, GaussianNoise(z)), rounds)
        return Repeated(GaussianNoise(z), -(-rounds // participation.separation))

    def _of_examples(self, segments: Sequence[Segment]) -> list[Event]:
        """Of clients with as many examples as each other, the one that took part most; there may be thousands.

        Clients whose batches are all that they have are sampled alike, however many examples that is.
        """
        if not segments:
            return []
        counts = np.stack([self.participations(segment) for segment in segments], 1)
        sizes, batch_size = self.facts.sizes, self.facts.batch_size
        alike = sizes if batch_size else np.minimum(sizes, 1)
        alike = np.where(alike <= batch_size, np.minimum(alike, 1), alike)
        distinct, at = np.unique(alike, return_inverse=True)
        most = np.zeros((len(distinct), len(segments)), dtype=np.int64)
        np.maximum.at(most, at.ravel(), counts)
        sampling = Sampling.of(distinct, batch_size)
        steps = most * sampling.steps[:, None]
        kept = _undominated(np.column_stack((sampling.rate, steps))[distinct > 0])
        return [
            self.history_of(int(distinct[distinct > 0][at]), most[distinct > 0][at].tolist(), segments)
            for at in kept
        ]

    def history_of(self, size: int, counts: Sequence[int], segments: Sequence[Segment]) -> Event:
        """What was done to each example of a client that has ``size`` and took part so often in each segment."""
        parts = [
            step_event(size, self.facts.batch_size, self.facts.epochs * count, segment.noise_multiplier)
            for count, segment in zip(counts, segments, strict=True)
        ]
        return Composed(tuple(parts))

    def participations(self, segment: Segment) -> Int64:
        """How often each client ``(clients,)`` takes part in these rounds, where cohorts are drawn from the seed."""
        facts = self.facts
        eligible = np.flatnonzero(facts.sizes > 0)
        counts = np.zeros(len(facts.sizes), dtype=np.int64)
        if facts.participation.kind == "full":
            counts[eligible] = segment.last - segment.first + 1
            return counts
        for round in range(segment.first, segment.last + 1):
            counts[facts.sampler(facts.seed, round, eligible)] += 1
        return counts

    def _most(self, segment: Segment) -> int:
        return int(self.participations(segment).max(initial=0))

    def words(self) -> dict[str, Any]:
        """The claim in words, for the summary."""
        settings = self.settings
        example = settings.name == EXAMPLE
        return {
            "mode": settings.name,
            "unit": "example" if example else "client",
            "neighbours": (
                "one training example counts for nothing; how many a client has is public"
                if example
                else "one client is there or not; how many are expected is public"
            ),
            "mechanism": self._mechanism(),
            "sampling": self._sampling(),
            "adversary": _ADVERSARIES[settings.name],
            "universe": _UNIVERSES.get(
                settings.universe, f"rows named in {settings.universe}, which is public"
            ),
        }

    def _mechanism(self) -> str:
        settings = self.settings
        if settings.name == EXAMPLE:
            return "DP-SGD at each client: Gaussian noise on clipped gradients of examples"
        if settings.name == DISTRIBUTED:
            return "Skellam noise in shares of the clients, on a sum of integers"
        if settings.name != CENTRAL:
            return "Gaussian noise of each client on its own clipped update"
        adaptive = "" if settings.quantile is None else "; clip norm follows noisy counts, which are paid for"
        if self.facts.bands > 1:
            return (
                f"Gaussian noise correlated over {self.facts.bands} rounds, on the sum of clipped updates"
                + adaptive
            )
        return "Gaussian noise on the sum of clipped updates" + adaptive

    def _sampling(self) -> str:
        participation, settings = self.facts.participation, self.settings
        if settings.name == EXAMPLE:
            return "Poisson samples of a client's examples in each step; who takes part is known"
        if settings.name == CENTRAL and participation.kind == "poisson":
            return f"Poisson, rate {participation.size / participation.population:.4g}, by coins that nobody else sees"
        if settings.name == CENTRAL and participation.kind == "fixed":
            return f"{participation.size:g} of {participation.population} clients, chosen in secret"
        return "none that amplifies: who takes part is known, and participations are counted"


def _undominated(costs: npt.NDArray[np.float64]) -> list[int]:
    """Lines than which no other is as large in all columns and larger in one; of equal lines, the first.

    >>> _undominated(np.array([[0.5, 4.0], [0.4, 4.0], [0.1, 9.0], [0.5, 4.0]]))
    [0, 2]
    """
    kept = []
    for at, own in enumerate(costs):
        as_large = (costs >= own).all(1)
        larger = as_large & (costs > own).any(1)
        if not larger.any() and not as_large[:at].any():
            kept.append(at)
    return kept


_ADVERSARIES = {
    EXAMPLE: "everybody else, the server included, who sees every update",
    CENTRAL: "everybody but the server, which is trusted; sees the model after every round, not who took part",
    DISTRIBUTED: "everybody, the server included, who sees sums over the cohort alone, and who took part",
    LOCAL: "everybody else, the server included, who sees every update",
}
_UNIVERSES = {
    "vocabulary": "all rows; their names are declared to be public",
    "select": "rows chosen once under differential privacy, which is paid for",
}


def step_event(size: int, batch_size: int, num_epochs: int, noise_multiplier: float) -> Event:
    """What so many epochs of Poisson batches do to an example of a client that has ``size`` of them."""
    sampling = Sampling.of(np.array([size]), batch_size)
    event = PoissonSampled(float(sampling.rate[0]), GaussianNoise(noise_multiplier))
    return Repeated(event, int(sampling.steps[0]) * num_epochs)


def charged(done: Sequence[Segment], new: Segment) -> list[Segment]:
    """Rounds that are done and then new ones. A round that is run a second time, with new noise, counts again.

    >>> charged([Segment(1, 5, 1.0)], Segment(6, 6, 1.0))
    [Segment(first=1, last=6, noise_multiplier=1.0)]
    >>> len(charged([Segment(1, 5, 1.0)], Segment(4, 4, 1.0)))
    2
    """
    last = done[-1] if done else None
    if last is not None and last.last == new.first - 1 and last.noise_multiplier == new.noise_multiplier:
        return [*done[:-1], Segment(last.first, new.last, new.noise_multiplier)]
    return [*done, new]


def why_not_private(settings: PrivacySettings, others: Sequence[str], checkpoints: bool) -> list[str]:
    """What keeps a run folder as a whole from being private; empty if nothing does.

    Args:
        settings: What was asked for.
        others: What stands beside the model that was trained on the same data without protection.
        checkpoints: Whether the folder holds any.
    """
    reasons = []
    if settings.noise_multiplier == 0:
        reasons.append("there is no noise")
    if settings.seeded_noise:
        reasons.append("the noise can be reproduced from the seed (privacy.seeded_noise=false)")
    if settings.metrics == RAW:
        reasons.append(
            "losses and evaluations on clients' data are reported without noise (privacy.metrics=none)"
        )
    if settings.name == DISTRIBUTED:
        reasons.append(
            "the server adds integers up that it sees one by one, until there are masks to hide them"
        )
    if checkpoints:
        reasons.append("checkpoint/ holds what only the server and the clients may see: take it out")
    if others:
        reasons.append(f"trained on the same data without protection: {', '.join(others)}")
    return reasons
