"""What a user asks for under ``privacy.*``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedemb.privacy.accountant import ACCOUNTANTS
from fedemb.privacy.gaussian_mechanism import check_delta
from fedemb.privacy.select import Selection

NONE, EXAMPLE, CENTRAL, DISTRIBUTED, LOCAL = (
    "none",
    "example",
    "client_central",
    "client_distributed",
    "local",
)
VOCABULARY, SELECT = "vocabulary", "select"
RAW = "raw"


@dataclass(frozen=True)
class AdaptiveSettings:
    """Settings of a clip norm that follows the updates.

    Attributes:
        quantile: Share of updates that are not to be clipped; None: the clip norm stays.
        learning_rate: Of the logarithm of the clip norm.
        count_noise: Standard deviation of the noise on the count of these; None: a twentieth of the cohort.
    """

    quantile: float | None = None
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ValueError(
                f"privacy.adaptive_clip.quantile must be in (0, 1) or null, got {self.quantile}; 0.5 is usual"
            )
        for name in ("learning_rate", "count_noise"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"privacy.adaptive_clip.{name} must be a positive number, got {value}")


@dataclass(frozen=True)
class PrivacySettings:
    """One of the modes, and its numbers; what a mode does not have stays as it is here.

    Attributes:
        name: ``none``, ``example``, ``client_central``, ``client_distributed`` or ``local``.
        noise_multiplier: Standard deviation of the noise over the clip norm; None: 1, or what the target needs.
        target_epsilon: To be reached after all rounds, and never exceeded; None: ``noise_multiplier`` decides.
        budget: An epsilon that stops the run before it is exceeded; None: the target, if there is one.
        delta: Probability with which the guarantee may fail.
        clip_norm: Largest norm of what one unit adds, over all tables and dense parameters jointly.
        accountant: ``pld``, ``prv`` or ``rdp``.
        universe: ``vocabulary``: the names of all rows are public; a file that lists those of the main table; or
            ``select``: chosen once under privacy, and paid for.
        seeded_noise: Noise that everybody can reproduce who knows the seed: for studies and tests.
        metrics: ``raw``: losses and evaluations are reported as they are, and the run is not private as a whole;
            ``none``: nothing but the model leaves the mechanism.
        uses_other_examples: Whether an example's loss may look at the client's other examples.
        adaptive_clip: How the clip norm follows the updates.
        bands: Of correlated noise: a number, ``auto``, or None for independent noise of each round.
        grid: What an integer stands for; None: a 2^-14th of the noise's standard deviation.
        min_clients: Clients of a cohort whose noise must be enough; None: nine tenths of it.
        selection: How rows are chosen, for ``universe=select``.
    """

    name: str = NONE
    noise_multiplier: float | None = None
    target_epsilon: float | None = None
    budget: float | None = None
    delta: float = 1e-5
    clip_norm: float = 1.0
    accountant: str = "pld"
    universe: str = VOCABULARY
    seeded_noise: bool = False
    metrics: str = RAW
    uses_other_examples: bool = True
    adaptive_clip: AdaptiveSettings | None = None
    bands: int | str | None = None
    grid: float | None = None
    min_clients: int | None = None
    selection: Selection | None = None

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if not 0 < self.clip_norm < math.inf:
            raise ValueError(f"privacy.clip_norm must be a positive number, got {self.clip_norm}")
        if self.accountant not in ACCOUNTANTS:
            raise ValueError(
                f"privacy.accountant must be one of {', '.join(ACCOUNTANTS)}, got {self.accountant!r}"
            )
        if self.noise_multiplier is not None and self.target_epsilon is not None:
            raise ValueError(
                "privacy.noise_multiplier must be null where privacy.target_epsilon is set, which it is solved from, "
                f"got {self.noise_multiplier}"
            )
        if self.noise_multiplier is not None and not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(
                f"privacy.noise_multiplier must be at least 0 or null, got {self.noise_multiplier}; 1 is usual"
            )
        for name in ("target_epsilon", "budget", "grid"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"privacy.{name} must be a positive number or null, got {value}")
        if self.metrics not in (RAW, NONE):
            raise ValueError(f"privacy.metrics must be raw or none, got {self.metrics!r}")
        if (
            self.bands is not None
            and self.bands != "auto"
            and (isinstance(self.bands, str) or self.bands < 1)
        ):
            raise ValueError(f"privacy.bands must be at least 1, auto or null, got {self.bands!r}")
        if self.min_clients is not None and self.min_clients < 1:
            raise ValueError(f"privacy.min_clients must be at least 1 or null, got {self.min_clients}")

    @property
    def limit(self) -> float | None:
        """The epsilon that must not be exceeded, if there is one."""
        limits = [value for value in (self.target_epsilon, self.budget) if value is not None]
        return min(limits) if limits else None

    @property
    def by_clients(self) -> bool:
        """Whether a unit is a client with all that it has."""
        return self.name in (CENTRAL, DISTRIBUTED, LOCAL)

    @property
    def quantile(self) -> float | None:
        """Share of updates that the clip norm shall leave as they are; None: the clip norm stays."""
        return None if self.adaptive_clip is None else self.adaptive_clip.quantile
