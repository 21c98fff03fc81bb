"""What of records is held out: as the file says, else by time, else at random."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.data.held_out import SPLITS, TEST, TRAIN, VALIDATION, HoldOut, Label
from fedemb.errors import DataError
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Int64

OUT_OF_DISTRIBUTION = 3
PUBLISHED = {"train": TRAIN, **SPLITS, "out_of_distribution": OUT_OF_DISTRIBUTION}


def published(cells: pa.Array, where: Callable[[str], str]) -> Label:
    """The split of each record ``(records,)`` by its own cell; an empty one: training.

    Args:
        cells: ``(records,)`` of text.
        where: File and line of the first record with such a cell, for the message.

    Raises:
        DataError: If a cell names no split.
    """
    names = cells.fill_null("train")
    for name in pc.unique(names).to_pylist():
        if name not in PUBLISHED:
            raise DataError(f"{where(name)}: the split must be one of {', '.join(PUBLISHED)}, got {name!r}")
    encoded = names.dictionary_encode()
    numbers = np.array([PUBLISHED[name] for name in encoded.dictionary.to_pylist()], dtype=np.int8)
    split: Label = numbers[np.asarray(encoded.indices)]
    return split


def check_one_split(ids: pa.Array, split: Label, where: Callable[[str], str]) -> None:
    """Refuses an id that stands in two splits.

    Args:
        ids: ``(records,)`` of text.
        split: ``(records,)``.
        where: File and line of the first record with such an id, for the message.

    Raises:
        DataError: If there is one.
    """
    names = list(PUBLISHED)
    first: dict[str, int] = {}
    for one, number in zip(ids.to_pylist(), split.tolist(), strict=True):
        if first.setdefault(one, number) != number:
            raise DataError(
                f"{where(one)}: an id must be in one split, but {one!r} is in {names[first[one]]} "
                f"and in {names[number]}"
            )


def by_time(time: Int64, cuts: tuple[int, int]) -> Label:
    """The split of each record ``(records,)`` by when it was."""
    return np.where(time >= cuts[1], TEST, np.where(time >= cuts[0], VALIDATION, TRAIN)).astype(np.int8)


def at_random(keys: Int64, hold_out: HoldOut, seed: int) -> Label:
    """Splits drawn by the records' own keys: the same whoever holds them and whatever else is in the file."""
    draws = uniforms(stream_keys(seed, "held out", keys), 1)[:, 0]
    label = np.where(draws < hold_out.validation_share, VALIDATION, TRAIN)
    return np.where(draws >= 1 - hold_out.test_share, TEST, label).astype(np.int8)


def dealt(keys: Int64, clients: Int64, seed: int) -> Int64:
    """One of these clients for each record ``(records,)``, in an order drawn by key: numbers differ by one at most.

    >>> np.bincount(dealt(np.arange(7), np.array([2, 4]), seed=0)).tolist()
    [0, 0, 4, 0, 3]
    """
    draws = uniforms(stream_keys(seed, "dealt out", keys), 1)[:, 0]
    places = np.empty(len(keys), dtype=np.int64)
    places[np.lexsort((keys, draws))] = np.arange(len(keys))
    return clients[places % len(clients)]
