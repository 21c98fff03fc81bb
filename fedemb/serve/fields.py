"""What an interaction consists of: the columns that the run was trained on, by name and with names for ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, create_model

from fedemb.data.cells import NO_TIME, parse_times
from fedemb.data.held_out import DAY
from fedemb.serve.queue import Entry

NUMBERS = {"label": (False, "1 belongs together, 0 does not"), "weight": (True, "how much it counts")}
Name = Annotated[str, Field(min_length=1, max_length=1024)]
Moment = Annotated[int | float | str, Field(description="ISO 8601 (without a zone: UTC) or epoch seconds")]


@dataclass(frozen=True)
class Problem:
    """What is wrong with a value, and where it stands."""

    place: int
    field: str
    value: Any
    message: str


@dataclass(frozen=True)
class Fields:
    """How interactions are read.

    Attributes:
        columns: Of the training data, in order.
        ids: Name to id per column of names.
    """

    columns: tuple[str, ...]
    ids: Mapping[str, Mapping[str, int]]

    @staticmethod
    def unknown(columns: Sequence[str], entity_of: Mapping[str, str]) -> str | None:
        """The first column that an interaction cannot bring; None if it can bring all."""
        known = {*entity_of, *NUMBERS, "time", "session"}
        return next((name for name in columns if name not in known), None)

    def model(self) -> type[BaseModel]:
        """The schema of one interaction; a field that it does not know is refused."""
        fields: dict[str, Any] = {"client": (Name, Field(description="who took part"))}
        for name in self.columns:
            if name in self.ids:
                fields[name] = (Name, Field(description="a name that the run was trained with"))
            elif name == "time":
                fields[name] = (Moment, ...)
            elif name in NUMBERS:
                positive, words = NUMBERS[name]
                bounds: dict[str, Any] = {"allow_inf_nan": False, "ge": 0.0 if positive else -1e6, "le": 1e6}
                fields[name] = (float, Field(default=1.0, description=words, **bounds))
        made: type[BaseModel] = create_model(
            "Interaction", __config__=ConfigDict(extra="forbid", strict=True), **fields
        )
        return made

    def entries(self, interactions: Sequence[BaseModel]) -> tuple[list[Entry], list[Problem]]:
        """What goes to the queue, and what is wrong with names and times, if anything."""
        problems: list[Problem] = []
        columns: dict[str, list[Any]] = {}
        for name in self.columns:
            if name == "session":
                continue
            given = [getattr(interaction, name) for interaction in interactions]
            if name in self.ids:
                found = [self.ids[name].get(value) for value in given]
                for place, (value, row) in enumerate(zip(given, found, strict=True)):
                    if row is None:
                        problems.append(
                            Problem(place, name, value, f"{value!r} is no {name} that the run knows")
                        )
                columns[name] = found
            elif name == "time":
                columns[name] = read_times(given)
                for place, (value, seconds) in enumerate(zip(given, columns[name], strict=True)):
                    if seconds == NO_TIME:
                        message = f"a time must be ISO 8601 or epoch seconds, got {value!r}"
                        problems.append(Problem(place, name, value, message))
            else:
                columns[name] = given
        if "session" in self.columns:  # as where a file has no such column: a client's day, or all together
            days = [seconds // DAY for seconds in columns.get("time", [0] * len(interactions))]
            columns["session"] = days
        ordered = [columns[name] for name in self.columns]
        clients = [interaction.client for interaction in interactions]  # type: ignore[attr-defined]
        return list(zip(clients, (list(line) for line in zip(*ordered, strict=True)), strict=True)), problems


def read_times(values: Sequence[int | float | str]) -> list[int]:
    """Epoch seconds of times as people give them; ``NO_TIME`` for what is none."""
    seconds: list[int] = parse_times(pa.array([str(value) for value in values], type=pa.string())).tolist()
    return seconds
