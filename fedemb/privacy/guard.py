"""Who stops a run before its budget is exceeded, and writes every round down before it is released."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedemb.errors import RunError
from fedemb.privacy.claim import Segment, charged
from fedemb.privacy.ledger import Ledger
from fedemb.privacy.pipeline import Protection
from fedemb.privacy.solve import most_rounds
from fedemb.types import Stage


@dataclass
class Guard:
    """The claim of a run, and what it has spent.

    Attributes:
        protection: The mode.
        ledger: Rounds that were released.
        last_allowed: The last round that the budget allows; None: there is none.
        stopped_before: The round at which the run was stopped; None: it was not.
        from_clients: The largest epsilon that a client itself reports, where clients keep their own books.
    """

    protection: Protection
    ledger: Ledger
    last_allowed: int | None = None
    stopped_before: int | None = None
    from_clients: float | None = None

    def plan(self, first: int, last: int) -> None:
        """Finds out how far the budget reaches, before the first round.

        Raises:
            RunError: If not one round is left.
        """
        limit = self.protection.settings.limit
        if limit is None:
            return
        self.last_allowed = most_rounds(lambda round: self._after(first, round), limit, first, last)
        if self.last_allowed < first <= last:
            raise RunError(
                f"round {first} would bring epsilon to {self._after(first, first):.4g}, above the budget of {limit:g}; "
                f"before it {self._spent(self.ledger.segments):.4g} is spent. Raise privacy.noise_multiplier or the "
                "budget"
            )

    def _spent(self, segments: Sequence[Segment]) -> float:
        return self.protection.claim.spent(segments, self.ledger.choices)

    def _after(self, first: int, last: int) -> float:
        """Epsilon once the rounds ``first .. last`` are run as well, if there are any."""
        done, claim = self.ledger.segments, self.protection.claim
        return self._spent(
            charged(done, Segment(first, last, claim.noise_multiplier)) if last >= first else done
        )

    def choose_universe(self, votes: Tensor, stages: Sequence[Stage]) -> None:
        """Confines these stages to rows that are chosen by clients' votes, which is written down before.

        Raises:
            RunError: If no row has votes enough.
        """
        self.ledger.charge_choice()
        self.protection.choose_universe(votes, stages)

    def allows(self, round: int) -> bool:
        """Whether the budget reaches as far as this round."""
        if self.last_allowed is None or round <= self.last_allowed:
            return True
        self.stopped_before = round
        return False

    def charge(self, round: int) -> None:
        """Writes a round down; to be called before anything of it leaves."""
        self.ledger.charge(round, self.protection.claim.noise_multiplier)

    def epsilon(self) -> float:
        """What was spent, by the server's books or a client's own, whichever is more."""
        return max(self._spent(self.ledger.segments), self.from_clients or 0.0)

    def summary(self) -> dict[str, Any]:
        """The part ``privacy`` of ``summary.json``, but for whether the folder as a whole is private."""
        found = {"epsilon": self.epsilon(), **self.protection.summary()}
        if self.stopped_before is not None:
            found["stopped_before_round"] = self.stopped_before
        return found
