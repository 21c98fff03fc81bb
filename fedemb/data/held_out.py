"""What is held out: by time where there is time, else the last events or a random part of each client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedemb.data.cells import parse_time, show_time
from fedemb.data.shards import Column, Shards, offsets_of, ragged_indices
from fedemb.errors import DataError, SettingError
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Int64

Label = npt.NDArray[np.int8]

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = {"validation": VALIDATION, "test": TEST}
NEVER = np.iinfo(np.int64).max
DAY = 86_400
FINEST = 1 << 16  # bins of a time span of less than three weeks


@dataclass(frozen=True)
class HoldOut:
    """What of the events is kept from training; by time, a part begins at a point for all clients.

    Attributes:
        validation_from, test_from: ISO times, or null. One of them makes the shares void.
        validation_share, test_share: Of all events, the last ones; of each client's, without time.
        leave_last: Instead, this many of each client's last events for each part; at least one event
            of each client stays in training. Clients then differ in where their future begins.
        at_random: Without time, whether a client's events are held out at random, not from the end.
    """

    validation_from: str | None = None
    test_from: str | None = None
    validation_share: float = 0.1
    test_share: float = 0.1
    leave_last: int | None = None
    at_random: bool = False

    def __post_init__(self) -> None:
        for name in ("validation_share", "test_share"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise SettingError(f"data.{name} must be in [0, 1), got {share}")
        if self.validation_share + self.test_share >= 1:
            total = self.validation_share + self.test_share
            raise SettingError(f"data.validation_share and data.test_share must stay below 1, got {total}")
        if self.leave_last is not None and self.leave_last < 1:
            raise SettingError(f"data.leave_last must be at least 1, or null, got {self.leave_last}")
        if self.leave_last is not None and (self.validation_from or self.test_from):
            raise SettingError(
                f"data.leave_last must be null where data.test_from or data.validation_from is set, "
                f"got {self.leave_last}"
            )
        validation, test = self.fixed_cuts()
        if validation >= test and validation != NEVER:
            raise SettingError(
                "data.validation_from must be before data.test_from, "
                f"got {self.validation_from} and {self.test_from}"
            )

    def fixed_cuts(self) -> tuple[int, int]:
        """Where validation and test begin by the settings, in epoch seconds; NEVER for no such part."""
        return (
            NEVER
            if self.validation_from is None
            else parse_time("data.validation_from", self.validation_from),
            NEVER if self.test_from is None else parse_time("data.test_from", self.test_from),
        )

    def cuts(self, times: Column | None, num_lines: int = 1 << 22) -> tuple[int, int] | None:
        """Where validation and test begin for these times; None where clients are cut one by one.

        Shares are met as nearly as possible: at a midnight if the times span three weeks or more.

        Raises:
            DataError: If a point in time is asked for and there are no times.
        """
        fixed = self.fixed_cuts()
        if times is None and fixed != (NEVER, NEVER):
            raise DataError(
                "data.columns.time must name a column where data.test_from or data.validation_from is set, "
                "got none"
            )
        if times is None or self.leave_last is not None:
            return None
        return fixed if fixed != (NEVER, NEVER) else self._shared_cuts(times, num_lines)

    def _shared_cuts(self, times: Column, num_lines: int) -> tuple[int, int]:
        chunks = [slice(start, start + num_lines) for start in range(0, len(times), num_lines)]
        first = min(int(times[chunk].min()) for chunk in chunks)
        last = max(int(times[chunk].max()) for chunk in chunks)
        unit = DAY if last - first >= 21 * DAY else (last - first) // FINEST + 1
        origin = first // unit
        counts = np.zeros(last // unit - origin + 1, dtype=np.int64)
        for chunk in chunks:
            counts += np.bincount(times[chunk] // unit - origin, minlength=len(counts))
        before = np.concatenate([[0], np.cumsum(counts)]) / len(times)

        def cut(share: float) -> int:
            return int(origin + np.abs(before - (1 - share)).argmin()) * unit if share else NEVER

        test = cut(self.test_share)
        validation = cut(self.test_share + self.validation_share) if self.validation_share else NEVER
        return (validation if validation < test else NEVER), test

    def label(self, lines: Shards, cuts: tuple[int, int] | None, clients: Int64, seed: int) -> Label:
        """Part ``(lines,)`` that each line belongs to.

        Args:
            lines: Of a few clients, each one's in order; ``time`` where there are cuts.
            cuts: From ``cuts``.
            clients: ``(clients,)`` ids, for draws that do not depend on who comes together here.
            seed: Of the draws.
        """
        if cuts is not None:
            time = lines.columns["time"]
            label = np.where(time >= cuts[0], VALIDATION, TRAIN)
            return np.where(time >= cuts[1], TEST, label).astype(np.int8)
        sizes = lines.sizes
        if self.leave_last is not None:
            test = np.minimum(self.leave_last, np.maximum(sizes - 1, 0))
            validation = np.minimum(self.leave_last, np.maximum(sizes - test - 1, 0))
        else:
            test = np.minimum(np.floor(sizes * self.test_share + 0.5), np.maximum(sizes - 1, 0))
            validation = np.floor(sizes * self.validation_share + 0.5)
            validation = np.minimum(validation, np.maximum(sizes - test - 1, 0))
        position = ragged_indices(np.zeros_like(sizes), sizes)
        if self.at_random and self.leave_last is None:
            keys = np.repeat(stream_keys(seed, "held out", clients), sizes)
            draws = uniforms(keys, 1, start=position)[:, 0]
            order = np.lexsort((draws, lines.owners()))
            position[order] = position.copy()
        from_end = np.repeat(sizes, sizes) - position
        label = np.where(from_end <= np.repeat(test + validation, sizes), VALIDATION, TRAIN)
        return np.where(from_end <= np.repeat(test, sizes), TEST, label).astype(np.int8)


def check_no_future(
    train: Shards, held_out: Mapping[str, Shards], cuts: tuple[int, int] | None, num_clients: int = 1 << 14
) -> None:
    """Checks what was built, whatever the way: nothing at or after a cut is in training.

    With cuts, none for all clients; else no client's training reaches past its own held-out events.
    Nor is anything of the test period in validation.

    Raises:
        RuntimeError: If it is; a defect in the code that split, or a future that leaked otherwise.
    """
    validation, test = held_out.get("validation"), held_out.get("test")
    for name, early, late, cut in (
        ("training", train, validation, cuts and cuts[0]),
        ("training", train, test, cuts and cuts[1]),
        ("validation", validation, test, cuts and cuts[1]),
    ):
        if early is None or "time" not in early.columns:
            continue
        for start in range(0, train.num_clients, num_clients):
            clients = np.arange(start, min(start + num_clients, train.num_clients))
            latest = _extreme(early.take(clients), np.maximum, -NEVER)
            if cut is not None:
                limit = np.full(len(clients), cut)
            elif late is not None:
                limit = _extreme(late.take(clients), np.minimum, NEVER - 1) + 1
            else:
                continue
            if (latest >= limit).any():
                worst = int((latest >= limit).argmax())
                raise RuntimeError(
                    f"{name} must hold nothing from {show_time(int(limit[worst]))} on, "
                    f"got {show_time(int(latest[worst]))} at client {clients[worst]}; the future leaked"
                )


def _extreme(shards: Shards, pick: np.ufunc, empty: int) -> Int64:
    """First or last time of each client ``(clients,)``."""
    out = np.full(shards.num_clients, empty, dtype=np.int64)
    pick.at(out, shards.owners(), shards.columns["time"])
    return out


def client_blocks(sizes: Int64, num_lines: int) -> list[tuple[int, int]]:
    """Ranges of clients with about ``num_lines`` lines each; a larger client is alone.

    >>> client_blocks(np.array([3, 3, 9, 1, 1]), 6)
    [(0, 2), (2, 3), (3, 5)]
    """
    offsets, start, blocks = offsets_of(sizes), 0, []
    while start < len(sizes):
        end = int(np.searchsorted(offsets, offsets[start] + num_lines, side="right")) - 1
        end = max(end, start + 1)
        blocks.append((start, min(end, len(sizes))))
        start = end
    return blocks
