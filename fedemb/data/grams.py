"""Texts as numbers of hashed n-grams: a new word needs no vocabulary, and nobody learns which words there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fedemb.data.words import WordRule
from fedemb.errors import SettingError

NOTHING = -1


@lru_cache(maxsize=1 << 20)
def bucket_of(gram: str, buckets: int) -> int:
    """Bucket of an n-gram: the first 8 bytes of its BLAKE2b digest (UTF-8), little end first, modulo ``buckets``.

    The same on every machine and in every process, which Python's own ``hash`` is not.

    >>> bucket_of("oil paint", 1 << 15), bucket_of("<oi", 1 << 15)
    (19024, 18145)
    """
    digest = hashlib.blake2b(gram.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % buckets


@dataclass(frozen=True)
class GramRule:
    """Which n-grams a text has. A setting that is wrong is an error that begins with its name.

    Attributes:
        words: Longest run of words that is an n-gram, from 1 on; 0: none.
        characters: Shortest and longest run of characters within ``<word>``; null: none.
        buckets: Rows that they are hashed into.
        length: Most different n-grams of a text; the rest is left out, words before characters.

    Reference: Bojanowski et al., "Enriching Word Vectors with Subword Information", TACL 2017, section 3.2 (n-grams of
    ``<word>``); Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
    """

    words: int = 2
    characters: tuple[int, int] | None = None
    buckets: int = 1 << 14
    length: int = 64

    def __post_init__(self) -> None:
        for name in ("words", "buckets", "length"):
            if not is_whole(getattr(self, name)):
                raise SettingError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        if self.words < 0 or (not self.words and self.characters is None):
            raise SettingError(f"words must be 1 or more where there are no characters, got {self.words}")
        if self.characters is not None and not _is_range(self.characters):
            given = list(self.characters) if isinstance(self.characters, tuple) else self.characters
            raise SettingError(f"characters must be [shortest, longest] such as [3, 5], got {given!r}")
        for name in ("buckets", "length"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1, got {getattr(self, name)}")

    def grams(self, text: str) -> Iterator[str]:
        """All n-grams of a text, those of words first.

        >>> list(GramRule(2, (4, 4)).grams("Red Sea"))
        ['red', 'sea', 'red sea', '<red', 'red>', '<sea', 'sea>']
        """
        words = WordRule(numbers=True).words(text)
        for size in range(1, self.words + 1):
            for start in range(len(words) - size + 1):
                yield " ".join(words[start : start + size])
        if self.characters is not None:
            for word in (f"<{word}>" for word in words):
                for size in range(self.characters[0], self.characters[1] + 1):
                    for start in range(len(word) - size + 1):
                        yield word[start : start + size]

    def encode(self, texts: Sequence[str | None]) -> tuple[npt.NDArray[np.int32], int]:
        """Buckets ``(texts, width)`` of every text, filled up with -1, and how many texts were too long."""
        found, num_cut = [], 0
        for text in texts:
            grams = () if text is None else self.grams(text)
            buckets = list(dict.fromkeys(bucket_of(gram, self.buckets) for gram in grams))
            num_cut += len(buckets) > self.length
            found.append(buckets[: self.length])
        return padded(found), num_cut


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, and not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_range(given: Any) -> bool:
    return (
        isinstance(given, tuple)
        and len(given) == 2
        and all(map(is_whole, given))
        and 1 <= given[0] <= given[1]
    )


def padded(lists: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    """Lists ``(lists, longest)``, filled up with -1; at least one column.

    >>> padded([[3], [], [1, 2]]).tolist()
    [[3, -1], [-1, -1], [1, 2]]
    """
    width = max(1, max(map(len, lists), default=1))
    out = np.full((len(lists), width), NOTHING, dtype=np.int32)
    sizes = np.array([len(one) for one in lists], dtype=np.int64)
    out[np.arange(width) < sizes[:, None]] = [value for one in lists for value in one]
    return out
