"""data/words.py: what is a word."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedemb.data.words import WordRule, WordStore
from fedemb.errors import DataError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("Hello, WORLD!", ["hello", "world"]),
        ("don't 'quote' rock-'n'-roll -- x-", ["don't", "quote", "rock", "n", "roll", "x"]),
        ("don’t well‐known non‑breaking", ["don't", "well-known", "non-breaking"]),
        ("co\N{SOFT HYPHEN}operate", ["cooperate"]),
        (
            "snake_case a.b mp3 19th-century 3.14",
            ["snake", "case", "a", "b", "mp3", "19th-century", "3", "14"],
        ),
        ("Straße ΣΊΣΥΦΟΣ", ["strasse", "σίσυφοσ"]),
        ("ﬁne Ｆｕｌｌ e\N{COMBINING ACUTE ACCENT}t\N{COMBINING ACUTE ACCENT}", ["fine", "full", "ét́"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("مى\N{ZERO WIDTH NON-JOINER}خواهم", ["مى\N{ZERO WIDTH NON-JOINER}خواهم"]),
        ("日本 語", ["日本", "語"]),
        ("a\nb\tc\0d", ["a", "b", "c", "d"]),
    ],
)
def test_the_rule(text: str, words: list[str]) -> None:
    assert WordRule().words(text) == words
    assert WordRule().words(f"{text} é")[:-1] == words  # by the way for all scripts too


@given(st.text(max_size=60))
def test_words_are_words_again(text: str) -> None:
    words = WordRule().words(text)
    for word in words:
        assert WordRule().words(word) == [word]
        assert not re.search(r"\s", word)
    letters = {c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum()}
    assert {c for word in words for c in word if c.isalnum()} >= {
        c for c in letters if c in unicodedata.normalize("NFKC", c)
    }


def by_hand(text: str) -> list[str]:
    """The rule once more, character by character, for the letters below."""
    text = unicodedata.normalize("NFKC", text.replace("\N{SOFT HYPHEN}", "")).casefold()
    text = "".join({"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{HYPHEN}": "-"}.get(c, c) for c in text)

    def letter(at: int) -> bool:
        return 0 <= at < len(text) and (unicodedata.category(text[at])[0] in "LM" or text[at].isdecimal())

    inner = [c in "'-" and letter(at - 1) and letter(at + 1) for at, c in enumerate(text)]
    kept = (c if letter(at) or inner[at] else " " for at, c in enumerate(text))
    return "".join(kept).split()


@given(
    st.text(
        st.sampled_from("aZé1² '-_.,\n½ﬁдЯ\N{RIGHT SINGLE QUOTATION MARK}\N{HYPHEN}\N{SOFT HYPHEN}"),
        max_size=30,
    )
)
def test_the_rule_agrees_with_one_by_hand(text: str) -> None:
    assert WordRule().words(text) == by_hand(text)


def test_numbers() -> None:
    assert [WordRule().number(word) for word in ("1984", "10-12", "mp3", "x")] == [True, True, False, False]
    assert not WordRule(numbers=True).number("1984")


def test_the_store_holds_texts_one_after_another() -> None:
    counts: dict[str, int] = {}
    store = WordStore(WordRule(stop_words={"the"}), counts, memory_bytes=8)
    long = "cat " * 400_000  # more than a chunk
    first, some = store.add(pa.record_batch([pa.array(["The cat", "12 the", long])], names=["text"]))
    second, _ = store.add(pa.record_batch([pa.array(["dog cat dog"])], names=["text"]))
    words, names = store.finish()
    assert some.tolist() == [True, False, True]
    assert first["size"].tolist() == [1, 0, 400_000]
    assert names.to_pylist() == ["cat", "dog"]
    start, size = second["start"][0], second["size"][0]
    assert words[start : start + size].tolist() == [1, 0, 1]
    assert np.all(words[first["start"][2] : start] == 0)
    assert counts == {
        "documents_empty": 1, "words_read": 400_007, "words_numbers": 1, "words_stopped": 2,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"data.columns.text must name a column of texts, got one of list"):
        store.add(pa.record_batch([pa.array([["a"]])], names=["text"]))
