"""Who stops a run before its budget is exceeded, and writes every round down before it is released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedemb.errors import RunError
from fedemb.privacy.ledger import Ledger
from fedemb.privacy.pipeline import Protection
from fedemb.privacy.solve import most_rounds


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
        claim, limit = self.protection.claim, self.protection.settings.limit
        if limit is None:
            return
        done = self.ledger.segments
        self.last_allowed = most_rounds(
            lambda round: claim.after(done, first, round) if round >= first else claim.spent(done),
            limit,
            first,
            last,
        )
        if self.last_allowed < first <= last:
            raise RunError(
                f"round {first} would bring epsilon to {claim.after(done, first, first):.4g}, above the budget of "
                f"{limit:g}; before it {claim.spent(done):.4g} is spent. Raise privacy.noise_multiplier or the budget"
            )

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
        return max(self.protection.claim.spent(self.ledger.segments), self.from_clients or 0.0)

    def summary(self) -> dict[str, Any]:
        """The part ``privacy`` of ``summary.json``, but for whether the folder as a whole is private."""
        found = {"epsilon": self.epsilon(), **self.protection.summary()}
        if self.stopped_before is not None:
            found["stopped_before_round"] = self.stopped_before
        return found
