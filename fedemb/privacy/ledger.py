"""What was spent, on disk before it is spent: a run that is killed and taken up again has not forgotten a round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fedemb.atomic import write_atomically
from fedemb.errors import RunError
from fedemb.privacy.claim import Segment, charged

NAME = "ledger.json"


class Ledger:
    """Rounds that were released, or may have been.

    Args:
        folder: Where they are written down; None: nowhere.
        done: Those of a run that is taken up.
    """

    def __init__(self, folder: Path | None, done: Sequence[Segment] = ()) -> None:
        self.path = None if folder is None else folder / NAME
        self.segments = list(done)

    def charge(self, round: int, noise_multiplier: float) -> None:
        """Writes a round down; to be called before anything of it leaves."""
        self.segments = charged(self.segments, Segment(round, round, noise_multiplier))
        if self.path is not None:
            text = json.dumps({"segments": [asdict(segment) for segment in self.segments]}, indent=1)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda path: path.write_text(text))


def read_ledger(folder: Path, last_round: int, noise_multiplier: float) -> list[Segment]:
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
        return [Segment(1, last_round, noise_multiplier)] if last_round else []
    try:
        found = json.loads(path.read_text())["segments"]
        return [Segment(int(s["first"]), int(s["last"]), float(s["noise_multiplier"])) for s in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} must say what was spent of the privacy budget, but cannot be read ({error})"
        ) from error
