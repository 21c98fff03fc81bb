"""What was spent, on disk before it is spent: a run that is killed and taken up again has not forgotten a round."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedemb.atomic import write_atomically
from fedemb.errors import RunError
from fedemb.privacy.claim import Segment, charged

NAME = "ledger.json"


@dataclass
class Ledger:
    """Rounds that were released, or may have been.

    Attributes:
        folder: Where they are written down; None: nowhere.
        segments: The rounds.
        choices: How often a universe was chosen; a run that was killed early may have done so twice.
    """

    folder: Path | None
    segments: list[Segment] = field(default_factory=list)
    choices: int = 0

    def charge(self, round: int, noise_multiplier: float) -> None:
        """Writes a round down; to be called before anything of it leaves."""
        self.segments = charged(self.segments, Segment(round, round, noise_multiplier))
        self._write()

    def charge_choice(self) -> None:
        """Writes down that a universe is chosen; to be called before it is."""
        self.choices += 1
        self._write()

    def _write(self) -> None:
        if self.folder is not None:
            segments = [asdict(segment) for segment in self.segments]
            text = json.dumps({"choices": self.choices, "segments": segments}, indent=1)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / NAME, lambda path: path.write_text(text))


def read_ledger(folder: Path, last_round: int, noise_multiplier: float) -> Ledger:
    """What a run that is taken up has spent; if that stands nowhere, what its finished rounds must have.

    Args:
        folder: Where its ledger is.
        last_round: Its last finished round.
        noise_multiplier: Of rounds that stand nowhere.

    Raises:
        RunError: If the ledger cannot be read: what was spent must not be forgotten.
    """
    path = folder / NAME
    if not path.is_file():
        done = [Segment(1, last_round, noise_multiplier)] if last_round else []
        return Ledger(folder, done, len(done))
    try:
        found = json.loads(path.read_text())
        segments = [
            Segment(int(s["first"]), int(s["last"]), float(s["noise_multiplier"])) for s in found["segments"]
        ]
        return Ledger(folder, segments, int(found["choices"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} must say what was spent of the privacy budget, but cannot be read ({error})"
        ) from error
