"""Words of a text: the rule, and texts as numbers of words."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Collection, Iterator, MutableMapping
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.data.shards import Column
from fedemb.data.store import ShardBuilder
from fedemb.data.vocabulary import OUT_OF_VOCABULARY, VocabularyBuilder
from fedemb.errors import DataError

_CHUNK_BYTES = 1 << 20
_SAME = str.maketrans(
    {"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-"}
    | {"\N{SOFT HYPHEN}": None, "\N{ZERO WIDTH SPACE}": " "}
)
_ASCII = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


@dataclass(frozen=True)
class WordRule:
    """What is a word, and which words count.

    A word is a run of letters, digits and the marks on them (Unicode), with single apostrophes or hyphens inside:
    ``don't``, ``well-known``, ``mp3``. The text is brought into the form NFKC before, typographic apostrophes and
    hyphens are made plain, soft hyphens go. Scripts that do not part words, such as Chinese, must come with spaces.

    Attributes:
        lowercase: Whether ``The`` is ``the`` (Unicode case folding: ``Straße`` is ``strasse``).
        numbers: Whether words without a letter count, such as ``1984``.
        stop_words: Words that do not count, in the form that the rule gives them.
    """

    lowercase: bool = True
    numbers: bool = False
    stop_words: Collection[str] = frozenset()

    def words(self, text: str) -> list[str]:
        """All words of a text in order, whether or not they count.

        >>> WordRule().words("Don’t STOP - the well-known ‘Straße’ of 1984, rock-'n'-roll.")
        ["don't", 'stop', 'the', 'well-known', 'strasse', 'of', '1984', 'rock', 'n', 'roll']
        """
        if text.isascii():
            return _ASCII.findall(text.lower() if self.lowercase else text)
        text = unicodedata.normalize("NFKC", text.translate(_SAME))
        if self.lowercase:
            text = unicodedata.normalize("NFKC", text.casefold())
        return _unicode().findall(text)

    def number(self, word: str) -> bool:
        """Whether a word counts as a number only."""
        return not self.numbers and not any(letter.isalpha() for letter in word)


@cache
def _unicode() -> re.Pattern[str]:
    """The rule for all scripts: ``re`` takes marks, such as the vowels of Hindi, for no part of a word."""
    marks = [
        code for code in range(0x300, sys.maxunicode) if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me")
    ]
    marks += [0x200C, 0x200D]  # joiners inside words of Persian and of Indian scripts
    breaks = np.flatnonzero(np.diff(marks) != 1)
    firsts, lasts = np.array(marks)[np.r_[0, breaks + 1]], np.array(marks)[np.r_[breaks, -1]]
    ranges = "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(firsts, lasts, strict=True))
    run = rf"[^\W_]+(?:[{ranges}]+[^\W_]*)*"
    return re.compile(rf"{run}(?:['-]{run})*")


@final
class WordStore:
    """Texts as runs of word numbers in one long column, on disk where memory does not hold it."""

    def __init__(self, rule: WordRule, counts: MutableMapping[str, int], memory_bytes: int) -> None:
        self._rule, self._counts = rule, counts
        self._known = VocabularyBuilder()
        self._words = ShardBuilder(memory_bytes=memory_bytes)
        self._words.append({"word": np.zeros(0, dtype=np.int32)}, np.zeros(0, dtype=np.int64))
        self._stops = frozenset(rule.stop_words)
        for name in ("documents_empty", "words_read", "words_numbers", "words_stopped"):
            counts.setdefault(name, 0)

    def add(self, batch: pa.RecordBatch) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.bool_]]:
        """Where each row's text stands in the column, ``start`` and ``size``, and which rows have a word at all.

        Raises:
            DataError: If texts are no strings.
        """
        starts, sizes = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for texts in _chunks(_as_strings(batch.column("text"))):
            begin = self._words.num_examples
            sizes.append(self._add(texts))
            starts.append(begin + np.cumsum(sizes[-1]) - sizes[-1])
        size = np.concatenate(sizes)
        self._counts["documents_empty"] += int((size == 0).sum())
        return {"start": np.concatenate(starts), "size": size}, size > 0

    def _add(self, texts: list[str]) -> npt.NDArray[np.int64]:
        found = [self._rule.words(text) for text in texts]
        sizes = np.array([len(words) for words in found], dtype=np.int64)
        encoded = pc.dictionary_encode(pa.array([word for words in found for word in words], pa.string()))
        different = encoded.dictionary.to_pylist()
        number = np.array([self._rule.number(word) for word in different], dtype=np.bool_)
        stop = np.array([word in self._stops for word in different], dtype=np.bool_) & ~number
        at = np.asarray(encoded.indices, dtype=np.int64)
        self._counts["words_read"] += len(at)
        self._counts["words_numbers"] += int(number[at].sum())
        self._counts["words_stopped"] += int(stop[at].sum())
        counted = ~(number | stop)
        codes = np.full(len(different), OUT_OF_VOCABULARY, dtype=np.int32)
        codes[counted] = self._known.encode(encoded.dictionary.filter(pa.array(counted)))
        good = counted[at]
        self._words.append({"word": codes[at][good]}, np.zeros(int(good.sum()), dtype=np.int64))
        owner = np.repeat(np.arange(len(texts)), sizes)
        return np.bincount(owner[good], minlength=len(texts)).astype(np.int64)

    def finish(self) -> tuple[Column, pa.Array]:
        """All numbers one after another, and the words that they stand for."""
        return self._words.finish(1).columns["word"], self._known.names()


def _as_strings(texts: pa.Array) -> pa.Array:
    try:
        return texts.cast(pa.string())
    except pa.ArrowException:
        raise DataError(f"data.columns.text must name a column of texts, got one of {texts.type}") from None


def _chunks(texts: pa.Array) -> Iterator[list[str]]:
    """Lists of texts with about a megabyte each: their words stand in memory one by one."""
    ends = np.cumsum(np.asarray(pc.fill_null(pc.binary_length(texts), 0), dtype=np.int64))
    begin = 0
    while begin < len(texts):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + _CHUNK_BYTES, side="right")))
        yield texts[begin:end].to_pylist()
        begin = end
