"""Components of records: which kinds there are, and cells as numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.data.cells import parse_numbers
from fedemb.data.grams import NOTHING, GramRule, is_whole, padded
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import SettingError
from fedemb.types import Component

KINDS = ("category", "multi", "number", "text")
RESERVED = ("label", "client", "prior")
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PartRule:
    """How the cells of a component are read. A setting that is wrong is an error that begins with its name.

    Attributes:
        kind: ``category``, ``multi``, ``number`` or ``text``.
        column: Of the file; None: named like the component.
        separator: Between the values of a ``multi`` cell that is no list.
        min_count: Values of ``category`` and ``multi`` with fewer training records are missing.
        bins: A ``number`` is one of so many ranges that hold as many training records each; 0: it stays a number.
        words, characters, buckets, length: Of ``text``; see ``GramRule``.
    """

    kind: str
    column: str | None = None
    separator: str = ";"
    min_count: int = 1
    bins: int = 32
    words: int = 2
    characters: tuple[int, int] | None = None
    buckets: int = 1 << 14
    length: int = 64

    def __post_init__(self) -> None:
        for name in ("min_count", "bins"):
            if not is_whole(getattr(self, name)):
                raise SettingError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        if self.column is not None and not isinstance(self.column, str):
            raise SettingError(f"column must be the name of a column, got {self.column!r}")
        if self.kind not in KINDS:
            raise SettingError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.min_count < 1:
            raise SettingError(f"min_count must be at least 1, got {self.min_count}")
        if self.bins < 0 or self.bins == 1:
            raise SettingError(f"bins must be 2 or more, or 0 for no bins, got {self.bins}")
        if not self.separator or not isinstance(self.separator, str):
            raise SettingError(f"separator must be text such as ';', got {self.separator!r}")
        _ = self.grams

    @property
    def grams(self) -> GramRule:
        return GramRule(self.words, self.characters, self.buckets, self.length)


def part_rules(components: Mapping[str, Any]) -> dict[str, PartRule]:
    """The rule of each component, from a kind or from a mapping of settings.

    Raises:
        SettingError: If a name or a setting is not as it must be.
    """
    if not components:
        raise SettingError(
            "data.components must name at least one component, such as {title: text}, got none"
        )
    known = [field.name for field in fields(PartRule)]
    rules = {}
    for name, given in components.items():
        if not re.fullmatch(r"[A-Za-z]\w*", str(name), re.ASCII) or name in RESERVED:
            raise SettingError(
                f"data.components must have names of letters, digits and _, other than {', '.join(RESERVED)}, "
                f"got {name!r}; its column may have any name: {{kind: text, column: ...}}"
            )
        settings = {"kind": given} if isinstance(given, str) else given
        if not isinstance(settings, Mapping) or "kind" not in settings:
            raise SettingError(
                f"data.components.{name} must be a kind ({', '.join(KINDS)}) or settings with one, got {given!r}"
            )
        for setting in settings:
            if setting not in known:
                near = difflib.get_close_matches(str(setting), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
                raise SettingError(f"data.components.{name}.{setting} is no setting{hint}")
        own = {**settings, "characters": _as_pair(settings.get("characters"))}
        try:
            rules[str(name)] = PartRule(**own)
        except SettingError as error:
            raise SettingError(f"data.components.{name}.{error}") from None
    return rules


def _as_pair(given: Any) -> Any:
    """A list from the settings as the pair that a rule holds."""
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else given


def as_lists(cells: pa.Array, separator: str) -> list[list[str]]:
    """Values of every cell: those of a list, or the text between separators, without spaces around it; each once."""
    if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        rows = cells.to_pylist()
    else:
        texts = cells.cast(pa.string()).to_pylist()
        rows = [[] if text is None else text.split(separator) for text in texts]
    return [_values(row or []) for row in rows]


def as_texts(cells: pa.Array) -> list[str | None]:
    """Cells as text; several values of one as one text."""
    if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        return [" ".join(map(str, row)) if row else None for row in cells.to_pylist()]
    return [None if text is None else str(text) for text in cells.cast(pa.string()).to_pylist()]


def _values(row: Sequence[Any]) -> list[str]:
    plain = (str(value).strip() for value in row if value is not None)
    return list(dict.fromkeys(value for value in plain if value))


def encode_part(
    name: str, rule: PartRule, cells: pa.Array, gone: Mask, training: Mask, counts: MutableMapping[str, int]
) -> tuple[Component, npt.NDArray[Any], Vocabulary | None]:
    """A component, its column of the shards, and its values, of which the first is the empty one, for nothing.

    Args:
        name: Of the component.
        rule: How it is read.
        cells: ``(records,)``.
        gone: ``(records,)`` which are to be missing whatever they hold.
        training: ``(records,)`` which ones vocabularies and bins are made of.
        counts: Is added ``<name>_missing``, and what could not be used.
    """
    column = f"part_{name}"
    ids: npt.NDArray[Any]
    if rule.kind == "number":
        numbers = parse_numbers(cells)
        counts[f"{name}_bad"] = int((~np.isfinite(numbers) & ~np.asarray(pc.is_null(cells))).sum())
        numbers = np.where(gone | ~np.isfinite(numbers), np.nan, numbers)
        counts[f"{name}_missing"] = int(np.isnan(numbers).sum())
        seen = np.sort(numbers[training & ~np.isnan(numbers)])
        if not rule.bins:
            return Component(name, rule.kind, column, 0), _scaled(numbers, seen), None
        ids, names = _binned(numbers, seen, rule.bins)
    elif rule.kind == "text":
        texts = [None if lost else text for text, lost in zip(as_texts(cells), gone, strict=True)]
        ids, counts[f"{name}_too_long"] = rule.grams.encode(texts)
        names = [f"bucket {bucket}" for bucket in range(rule.buckets)]
    else:
        rows = as_lists(cells, rule.separator) if rule.kind == "multi" else [
            [text] if text else [] for text in as_texts(cells)
        ]  # fmt: skip
        rows = [[] if lost else row for row, lost in zip(rows, gone, strict=True)]
        ids, names = coded(rows, training, rule.min_count)
        counts[f"{name}_out_of_vocabulary"] = sum(map(len, rows)) - int((ids != NOTHING).sum())
    counts[f"{name}_missing"] = int((ids == NOTHING).all(axis=1).sum())
    seen_ids = ids[training]
    occurrences = np.bincount(seen_ids[seen_ids != NOTHING] + 1, minlength=len(names) + 1)
    vocabulary = Vocabulary.of(["", *names], occurrences.astype(np.int64))
    return Component(name, rule.kind, column, len(names), ids.shape[1]), ids, vocabulary


def coded(
    rows: Sequence[Sequence[str]], training: Mask, min_count: int
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Ids ``(rows, width)`` filled up with -1, and the names that stand in training so often, in alphabetical order."""
    seen: dict[str, int] = {}
    for row, trained in zip(rows, training, strict=True):
        if trained:
            for value in row:
                seen[value] = seen.get(value, 0) + 1
    names = sorted(name for name, count in seen.items() if count >= min_count)
    ids = {name: index for index, name in enumerate(names)}
    return padded([[ids[value] for value in row if value in ids] for row in rows]), names


def _binned(numbers: npt.NDArray[np.float64], seen: npt.NDArray[np.float64], bins: int) -> Any:
    """Range of each number ``(records, 1)``, and the ranges in words."""
    wanted = np.quantile(seen, np.arange(1, bins) / bins, method="higher") if len(seen) else seen
    cuts = np.unique(wanted)
    ids = np.where(np.isnan(numbers), NOTHING, np.searchsorted(cuts, numbers, side="right"))
    ends = ["", *(f"{cut:.10g}" for cut in cuts), ""]
    names = [f"{low} to {high}".strip() for low, high in pairwise(ends)]
    return ids[:, None].astype(np.int32), [f"{i}: {name}" for i, name in enumerate(names)]


def _scaled(numbers: npt.NDArray[np.float64], seen: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Numbers as their place among those of training, from 0 to 1, so that no outlier squeezes the others."""
    if not len(seen):
        return np.full(len(numbers), np.nan, dtype=np.float32)
    places = np.interp(numbers, *_steps(seen))
    return np.where(np.isnan(numbers), np.nan, places).astype(np.float32)


def _steps(seen: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    values, counts = np.unique(seen, return_counts=True)
    return values, (np.cumsum(counts) - counts / 2) / len(seen)
