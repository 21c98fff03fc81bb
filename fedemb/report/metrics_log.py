"""``metrics.jsonl``: a line a round, written as it happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedemb.errors import DataError
from fedemb.report.summary import plain

FILE_NAME = "metrics.jsonl"
# What is known about each round; whatever else is a number in a line is a metric of an evaluation.
FACTS = frozenset(
    {"round", "rounds", "phase", "loss", "client_updates", "seconds", "upload_bytes", "download_bytes"}
)


@dataclass(frozen=True)
class MetricsLog:
    """Appends lines to ``metrics.jsonl``; what is not finite becomes null.

    A line is complete in the file when a call returns. If a killed run left half a line, it is cut off.

    Attributes:
        folder: The run folder; made if need be.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / FILE_NAME
        if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
            path.write_bytes(text[: text.rfind(b"\n") + 1])

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Appends a line.

        Raises:
            OSError: If the disk does not take it.
            TypeError: If a value is neither plain nor a number.
        """
        text = json.dumps(plain(line), allow_nan=False) + "\n"
        with (self.folder / FILE_NAME).open("a", encoding="ascii") as file:
            file.write(text)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, in order; none where the run has not written any. Half a last line is left out.

    Raises:
        DataError: If a line is not a JSON object.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return []
    lines = []
    for index, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise DataError(f"{path} must hold a JSON object on each line, line {index} is {text[:80]!r}")
        lines.append(line)
    return lines


def evaluation_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation in a round's line.

    >>> evaluation_metrics({"phase": "federated", "round": 3, "loss": 0.5, "map": 0.25, "rejected": {}})
    {'map': 0.25}
    """
    return {
        name: value for name, value in line.items() if name not in FACTS and isinstance(value, int | float)
    }
