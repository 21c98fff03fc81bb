"""data/text.py: documents become words, the same from every kind of file; what is agreed, held out and refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedemb.data.partition import IID, ByColumn, Natural
from fedemb.data.shards import Shards
from fedemb.data.text import Text
from fedemb.errors import DataError, SettingError
from fedemb.tasks.skipgram import windows
from fedemb.types import Dataset, Source
from tests.corpus import (
    MOVING,
    TOPICS,
    Document,
    corpus,
    late_share,
    write_csv,
    write_folder,
    write_json_lines,
    write_parquet,
)

DOCUMENTS = corpus(6, 240, seed=1)
ALL: dict[str, Any] = {"validation_share": 0, "test_share": 0}
ROWS: list[Document] = [
    ("ann", "The cat, the dog.", "2020-01-01"),
    ("bob", "A cat sleeps", "2020-01-01"),
    ("ann", "Secret cat!", "2020-01-03"),
    ("ann", "42 - 7 ...", "2020-01-02"),
    ("bob", "the dog; the secretive dog", "2020-01-02"),
    ("ann", "dog cat", "2020-02-01"),
    ("bob", "cat comet", "2020-02-02"),
    ("cid", "cat", "2020-02-03"),
]


def load(path: Path, partition: Any = None, seed: int = 0, **settings: Any) -> Dataset:
    return Text(str(path), **settings).load(partition or Natural(), seed)


def documents_of(data: Dataset, part: str = "train") -> dict[str, list[str]]:
    """Each client's documents in order, their words joined."""
    shards = data.train if part == "train" else data.held_out[part]
    clients = data.clients.to_list() if data.clients else [str(c) for c in range(shards.num_clients)]
    out = {}
    for number, client in enumerate(clients):
        mine = shards.take(np.array([number]))
        words = np.array([data.vocabularies["item"].name(int(i)) for i in mine.columns["item"]], dtype=object)
        session = mine.columns["session"]
        out[client] = [" ".join(words[session == s]) for s in dict.fromkeys(session.tolist())]
    return out


def assert_same(one: Dataset, other: Dataset) -> None:
    assert one.vocabularies == other.vocabularies
    assert one.clients == other.clients
    assert one.held_out.keys() == other.held_out.keys()
    for part in ("train", *one.held_out):
        ours, theirs = (data.train if part == "train" else data.held_out[part] for data in (one, other))
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
        assert ours.columns.keys() == theirs.columns.keys()
        for name, column in ours.columns.items():
            np.testing.assert_array_equal(column, theirs.columns[name], err_msg=f"{part} {name}")


def test_a_small_file_as_it_is(tmp_path: Path) -> None:
    data = load(write_csv(ROWS, tmp_path / "data.csv"), test_from="2020-02-01")
    assert data.vocabularies["item"].to_list() == [
        "cat",
        "dog",
        "the",
    ]  # at both clients; not a, secret, sleeps
    assert data.vocabularies["item"].counts is not None
    assert data.vocabularies["item"].counts.tolist() == [3, 3, 4]
    assert documents_of(data) == {"ann": ["the cat the dog", "cat"], "bob": ["cat", "the dog the dog"]}
    assert documents_of(data, "test") == {"ann": ["dog cat"], "bob": ["cat"]}
    assert data.entity_of == {"item": "item"}
    assert {name: column.dtype for name, column in data.train.columns.items()} == {
        "item": np.int64, "session": np.int64, "time": np.int64,
    }  # fmt: skip
    assert (np.diff(data.train.columns["time"]) // 86_400).tolist() == [0, 0, 0, 2, -2, 1, 0, 0, 0]
    expected = {
        "rows_read": 8, "rows_malformed": 0, "rows_missing_client": 0, "rows_missing_text": 0,
        "rows_missing_time": 0, "rows_bad_time": 0, "rows_used": 7, "documents_empty": 1,
        "words_read": 21, "words_numbers": 2, "words_stopped": 0, "clients_read": 3, "items_read": 8,
        "duplicates": 0, "items_below_min_count": 0, "items_below_min_clients": 4,
        "training_events": 10, "training_out_of_vocabulary": 4, "training_of_unseen_clients": 0,
        "validation_events": 0, "validation_out_of_vocabulary": 0, "validation_of_unseen_clients": 0,
        "test_events": 3, "test_out_of_vocabulary": 1, "test_of_unseen_clients": 1,
        "clients": 2, "clients_without_training": 1, "clients_below_min_count": 0,
    }  # fmt: skip
    assert data.counts == expected
    per_part = [k for k in expected if k.startswith(("training_", "validation_", "test_"))]
    assert expected["words_read"] == expected["words_numbers"] + sum(expected[key] for key in per_part)
    source: Source = Text("x")
    assert source


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_csv(DOCUMENTS, folder / "data.csv.gz"),
        lambda folder: write_json_lines(DOCUMENTS, folder / "data.jsonl"),
        lambda folder: write_json_lines(DOCUMENTS, folder / "data.jsonl.gz"),
        lambda folder: write_parquet(DOCUMENTS, folder / "data.parquet"),
        lambda folder: write_folder(DOCUMENTS, folder / "clients"),
        lambda folder: write_folder(DOCUMENTS, folder / "clients", ".csv.gz"),
    ],
    ids=["csv.gz", "jsonl", "jsonl.gz", "parquet", "folder of jsonl", "folder of csv.gz"],
)
def test_every_kind_of_file_gives_the_same(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    assert_same(load(write_csv(DOCUMENTS, tmp_path / "data.csv")), load(write(tmp_path)))


def test_texts_without_time_are_those_of_a_table(tmp_path: Path) -> None:
    table = load(write_csv(DOCUMENTS, tmp_path / "data.csv"), columns={"time": ""})
    assert_same(table, load(write_folder(DOCUMENTS, tmp_path / "clients", ".txt")))
    assert "time" not in table.train.columns
    assert table.counts["test_events"] > 0


def test_order_of_rows_and_memory_do_not_matter(tmp_path: Path) -> None:
    by_second = [
        (client, text, f"{time} 10:{n // 60:02}:{n % 60:02}")
        for n, (client, text, time) in enumerate(DOCUMENTS)
    ]
    whole = load(write_csv(by_second, tmp_path / "data.csv"), min_count=20)
    mixed = [by_second[i] for i in np.random.default_rng(0).permutation(len(by_second))]
    path = write_csv(mixed, tmp_path / "mixed.csv")
    for settings in ({}, {"memory_bytes": 3_000}):
        other = load(path, min_count=20, **settings)
        assert_same(whole, other)
        assert whole.counts == other.counts
    assert whole.counts["items_below_min_count"] > 0


def test_memory_does_not_matter_where_documents_are_drawn_or_dealt_times(tmp_path: Path) -> None:
    path = write_csv(DOCUMENTS, tmp_path / "data.csv")
    for settings in ({"columns": {"time": ""}}, {"shuffle_times": True}):
        assert_same(load(path, **settings), load(path, **settings, memory_bytes=3_000))


def test_a_word_is_agreed_where_counts_and_clients_add_up(tmp_path: Path) -> None:
    rows = [
        ("ann", "own own own own", ""),
        ("ann", "both rare", ""),
        ("bob", "both both", ""),
        ("cid", "both x", ""),
    ]
    path = write_json_lines(rows, tmp_path / "data.jsonl")

    def agreed(**settings: Any) -> list[str]:
        return load(path, columns={"time": ""}, **ALL, **settings).vocabularies["item"].to_list()

    assert agreed() == ["both"]
    assert agreed(min_clients=1) == ["both", "own", "rare", "x"]
    assert agreed(min_clients=1, min_count=4) == ["both", "own"]
    assert agreed(min_clients=3) == ["both"]
    with pytest.raises(
        DataError, match=r"nothing is left to train on .*items_below_min_clients 4.*data.min_clients"
    ):
        agreed(min_clients=4)
    alone = write_json_lines(rows[:2], tmp_path / "alone.jsonl")
    assert load(alone, columns={"time": ""}, **ALL).vocabularies["item"].to_list() == ["both", "own", "rare"]


def test_held_out_documents_do_not_count_for_the_vocabulary(tmp_path: Path) -> None:
    rows = [("ann", "a b", "2020-01-01"), ("bob", "a", "2020-01-01"), ("bob", "b b b", "2020-03-01")]
    path = write_csv(rows, tmp_path / "data.csv")
    data = load(path, test_from="2020-02-01")
    assert data.vocabularies["item"].to_list() == ["a"]
    assert data.counts["test_out_of_vocabulary"] == 3


def test_documents_are_never_split(tmp_path: Path) -> None:
    path = write_csv(DOCUMENTS, tmp_path / "data.csv")
    whole = sorted(text for texts in documents_of(load(path, **ALL)).values() for text in texts)
    assert len(whole) == len(DOCUMENTS)
    for settings in ({}, {"columns": {"time": ""}}, {"shuffle_times": True}):
        data = load(path, seed=3, **settings)
        parts = {part: documents_of(data, part) for part in ("train", "validation", "test")}
        assert sorted(t for part in parts.values() for texts in part.values() for t in texts) == whole
        assert all(sum(map(len, part.values())) > 10 for part in parts.values())


def test_splits_follow_time(tmp_path: Path) -> None:
    data = load(
        write_csv(DOCUMENTS, tmp_path / "data.csv"), validation_from="2015-01-01", test_from="2016-01-01"
    )
    years = {part: shards.columns["time"] for part, shards in {"train": data.train, **data.held_out}.items()}
    cuts = [int(np.datetime64(day, "s").astype(int)) for day in ("2015-01-01", "2016-01-01")]
    assert years["train"].max() < cuts[0] <= years["validation"].min()
    assert years["validation"].max() < cuts[1] <= years["test"].min()
    since = load(tmp_path / "data.csv", since="2012-01-01", until="2014-01-01")
    assert since.counts["rows_before_since"] == sum(time < "2012" for _, _, time in DOCUMENTS)
    assert since.counts["rows_after_until"] == sum(time >= "2014" for _, _, time in DOCUMENTS)
    with pytest.raises(DataError, match=r"data.columns.time must name a column where data.since"):
        load(write_folder(DOCUMENTS, tmp_path / "texts", ".txt"), since="2012-01-01")


def test_without_time_documents_are_drawn_for_each_client(tmp_path: Path) -> None:
    path = write_csv(DOCUMENTS, tmp_path / "data.csv")
    one, same, other = (load(path, columns={"time": ""}, seed=seed) for seed in (0, 0, 1))
    assert_same(one, same)
    assert documents_of(one, "test") != documents_of(other, "test")
    for client, texts in documents_of(one, "test").items():
        total = sum(name == client for name, _, _ in DOCUMENTS)
        assert len(texts) == int(np.floor(total * 0.1 + 0.5))


def test_shuffled_times_are_dealt_to_documents(tmp_path: Path) -> None:
    path = write_csv(DOCUMENTS, tmp_path / "data.csv")
    true, shuffled = (load(path, test_from="2016-01-01", shuffle_times=flag) for flag in (False, True))

    def times(shards: Shards) -> list[int]:
        """Of each document once."""
        return [
            int(shards.columns["time"][shards.columns["session"] == s][0])
            for s in np.unique(shards.columns["session"])
        ]

    assert sorted(times(true.train)) == sorted(times(shuffled.train))
    assert not np.array_equal(true.train.columns["time"], shuffled.train.columns["time"])
    for session in np.unique(shuffled.train.columns["session"]):
        assert len(set(shuffled.train.columns["time"][shuffled.train.columns["session"] == session])) == 1
    before, after = documents_of(true), documents_of(shuffled)
    assert before.keys() == after.keys()
    assert before != after
    assert all(sorted(before[client]) == sorted(after[client]) for client in before)
    for client in range(true.train.num_clients):
        assert (np.diff(shuffled.train.take(np.array([client])).columns["time"]) >= 0).all()
    for name in ("item", "time"):
        np.testing.assert_array_equal(
            true.held_out["test"].columns[name], shuffled.held_out["test"].columns[name]
        )


def test_windows_stay_in_their_document(tmp_path: Path) -> None:
    rows = [(client, "a b" if n % 2 else "c d", "") for client in ("ann", "bob") for n in range(6)]
    data = load(write_csv(rows, tmp_path / "data.csv"), columns={"time": ""}, **ALL)
    pairs = windows(data.train, 5)
    names = data.vocabularies["item"].to_list()
    found = {
        names[left] + names[right]
        for left, right in zip(pairs.columns["left"], pairs.columns["right"], strict=True)
    }
    assert found == {"ab", "ba", "cd", "dc"}
    assert pairs.num_examples == 2 * len(rows)


def test_partitions_deal_out_documents(tmp_path: Path) -> None:
    path = write_csv(DOCUMENTS, tmp_path / "data.csv")
    dealt = load(path, IID(5), columns={"client": ""}, **ALL)
    assert [len(texts) for texts in documents_of(dealt).values()] == [48] * 5
    by_day = load(path, ByColumn("client"), columns={"client": "", "time": ""}, **ALL)
    assert documents_of(by_day) == documents_of(load(path, columns={"time": ""}, **ALL))
    lines = tmp_path / "all.txt"
    lines.write_text("\n".join(text for _, text, _ in DOCUMENTS))
    assert [len(texts) for texts in documents_of(load(lines, IID(5), **ALL)).values()] == [48] * 5
    with pytest.raises(
        DataError, match=r"partition.column must name a column, got 'x', but .*all.txt has none"
    ):
        load(lines, ByColumn("x"))
    with pytest.raises(DataError, match=r"partition=natural"):
        load(lines)


def test_lines_or_files_are_documents(tmp_path: Path) -> None:
    (tmp_path / "ann.txt").write_text("one two\r\n\n  \nthree\n", encoding="utf-8-sig")
    (tmp_path / "bob.txt").write_text("one\ntwo three")
    (tmp_path / "cid.txt").write_text("")
    (tmp_path / "notes.pdf").write_text("x")
    (tmp_path / ".hidden.txt").write_text("one")
    (tmp_path / "folder.txt").mkdir()
    data = load(tmp_path, **ALL)
    assert documents_of(data) == {"ann": ["one two", "three"], "bob": ["one", "two three"]}
    assert {k: v for k, v in data.counts.items() if k.startswith("files")} == {
        "files_read": 2, "files_empty": 1, "files_ignored": 1,
    }  # fmt: skip
    assert documents_of(load(tmp_path, document="file", **ALL)) == {
        "ann": ["one two three"],
        "bob": ["one two three"],
    }


def test_a_folder_may_mix_tables_and_name_clients_in_a_column(tmp_path: Path) -> None:
    write_csv(DOCUMENTS[:100], tmp_path / "1.csv")
    write_json_lines(DOCUMENTS[100:], tmp_path / "2.jsonl.gz")
    whole = load(write_csv(DOCUMENTS, tmp_path.parent / f"{tmp_path.name}.csv"), **ALL)
    assert_same(whole, load(tmp_path, columns={"client": "client"}, **ALL))
    by_file = load(tmp_path, **ALL)
    assert by_file.clients is not None
    assert by_file.clients.to_list() == ["1", "2"]


def test_stop_words_numbers_and_case(tmp_path: Path) -> None:
    rows = [(client, "The Cat of 1984", "") for client in ("ann", "bob")]
    path = write_csv(rows, tmp_path / "data.csv")
    stops = tmp_path / "stop.txt"
    stops.write_text("The\nof\n")

    def words(**settings: Any) -> list[str]:
        return documents_of(load(path, columns={"time": ""}, **ALL, **settings))["ann"]

    assert words() == ["the cat of"]
    assert words(numbers=True, lowercase=False) == ["The Cat of 1984"]
    assert words(stop_words=str(stops)) == ["cat"]
    data = load(path, columns={"time": ""}, stop_words=str(stops), **ALL)
    assert (data.counts["words_read"], data.counts["words_stopped"], data.counts["words_numbers"]) == (
        8,
        4,
        2,
    )
    stops.write_text("New York\n")
    with pytest.raises(DataError, match=r"stop.txt must hold a word on each line, got 'New York'"):
        words(stop_words=str(stops))


def test_declared_vocabulary(tmp_path: Path) -> None:
    path = write_csv(ROWS, tmp_path / "data.csv")
    declared = tmp_path / "words.txt"
    declared.write_text("secret\nunseen\ncat\n")
    data = load(path, vocabulary=str(declared), test_from="2020-02-01")
    assert data.vocabularies["item"].to_list() == ["secret", "unseen", "cat"]
    assert documents_of(data) == {"ann": ["cat", "secret cat"], "bob": ["cat"]}
    declared.write_text("cat\nCat\n")
    with pytest.raises(DataError, match=r"data.lowercase=true .* got 'Cat', which is \['cat'\]"):
        load(path, vocabulary=str(declared))
    for name in ("min_count", "min_clients"):
        with pytest.raises(SettingError, match=rf"data.{name} must be 1 .*got 3"):
            Text("x", vocabulary="words.txt", **{name: 3})  # type: ignore[arg-type]


def test_years_are_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "".join(
        f'{{"text": "cat", "client": "{c}", "year": {y}}}\n'
        for c, y in (("a", 1890), ("b", 1891), ("b", 2001))
    )
    path = tmp_path / "data.jsonl"
    path.write_text(rows + '{"text": "cat", "client": "b", "year": null}\n')
    data = load(path, columns={"time": "year"}, time_format="%Y", test_from="1950-01-01")
    assert data.train.columns["time"].tolist() == [-2524521600, -2492985600]
    assert data.counts["test_events"] == 1
    assert data.counts["rows_missing_time"] == 1
    with caplog.at_level(logging.WARNING, logger="fedemb"):
        load(path, columns={"time": "year"}, **ALL)
    assert (
        "times such as '1890' are read as seconds since 1970; if they are years, set data.time_format=%Y"
        in caplog.text
    )


def test_bad_rows_are_counted_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data.jsonl"
    good = '{"client": "%s", "text": "cat", "time": "2020-01-01"}\n'
    bad = ["not json\n", "[1]\n", '{"client": "ann", "text": ["cat"], "time": "2020-01-01"}\n']
    rest = [
        '{"client": "ann", "text": "", "time": "2020-01-01"}\n',
        '{"client": "ann", "text": "cat", "time": "soon"}\n',
    ]
    path.write_text("".join([good % "ann", *bad, *rest, good % "bob"]))
    with caplog.at_level(logging.WARNING, logger="fedemb"):
        counts = load(path, **ALL).counts
    names = ("rows_read", "rows_malformed", "rows_missing_text", "rows_bad_time", "rows_used")
    assert [counts[name] for name in names] == [7, 3, 1, 1, 2]
    assert (
        "data.jsonl, line 2: expected an object with plain values; 3 such rows were left out" in caplog.text
    )
    assert "data.jsonl, line 5: no text in column 'text'; 1 such rows" in caplog.text
    assert "data.jsonl, line 6: 'soon' is no time" in caplog.text


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        (
            {"a.csv": "client,text\n"},
            {"columns": {"text": "txet"}},
            r"data.columns.text .* got 'txet'.*did you mean 'text'",
        ),
        (
            {"a.csv": "client,txt\n"},
            {},
            r"data.columns.text must name a column of .*a.csv, got none; there are 'client', 'txt'",
        ),
        ({"a.csv": ""}, {}, r"empty files only"),
        ({}, {}, r"must hold a file for each client \(.txt, .*\), found no files"),
        ({"x.pdf": "x"}, {}, r"found x.pdf"),
        ({"a.txt": "cat"}, {"columns": {"time": "day"}}, r"data.columns.time must be '' .*a.txt, got 'day'"),
        (
            {"a.txt": "cat", "b.csv": "text,time\ncat,2020-01-01\n"},
            {},
            r"data.columns.time must be '' .*a.txt, got 'time'",
        ),
        (
            {"a.csv": "text,time\ncat,2020-01-01\n", "b.csv": "text\ncat\n"},
            {},
            r"data.columns.time .*b.csv, got 'time'",
        ),
        ({"a.txt": "... 12"}, {}, r"must have usable rows, found none: files_read 1, documents_empty 1"),
        ({"a.txt": b"cat\n\xff"}, {}, r"a.txt cannot be read: it must be UTF-8, and line 2 is not"),
        (
            {"a.jsonl": b'{"text": "\xff"}'},
            {},
            r"a.jsonl cannot be read: it must be UTF-8, and line 1 is not",
        ),
        ({"a.jsonl": "[]"}, {}, r"a.jsonl must hold an object on each line, found a list"),
        ({"a.jsonl": "cat"}, {}, r"a.jsonl must hold an object on each line, found none"),
        ({"a.jsonl.gz": "cat"}, {}, r"a.jsonl.gz cannot be read"),
        ({"a.txt.gz": "cat"}, {}, r"a.txt.gz cannot be read"),
    ],
)
def test_bad_files_end_with_a_line(
    tmp_path: Path, files: dict[str, str | bytes], settings: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_missing_files_and_settings_out_of_range() -> None:
    with pytest.raises(
        DataError, match=r"data.path must be a file or a folder, got nowhere.csv, found nothing there"
    ):
        load(Path("nowhere.csv"))
    for settings, message in (
        ({"document": "page"}, r"data.document must be one of line, file, got 'page'"),
        ({"min_clients": 0}, r"data.min_clients must be at least 1"),
        ({"min_count": 0}, r"data.min_count must be at least 1"),
        ({"columns": {"item": "x"}}, r"data.columns must be among client, text, time, got 'item'"),
        ({"since": "2020-01-02", "until": "2020-01-02"}, r"data.since must be before data.until"),
        ({"test_from": "soon"}, r"data.test_from must be an ISO 8601 time"),
    ):
        with pytest.raises(SettingError, match=message):
            Text("x", **settings)  # type: ignore[arg-type]


def test_the_corpus_is_as_its_truth_says() -> None:
    documents = corpus(8, 4_000, seed=0)
    assert documents == corpus(8, 4_000, seed=0)
    assert len({client for client, _, _ in documents}) == 8
    for word, (early, late) in MOVING.items():
        for first, last in (("2010", "2012"), ("2013", "2015"), ("2016", "2018")):
            mentions = [
                (text, time) for _, text, time in documents if first <= time < last and word in _words(text)
            ]
            share = np.mean([_in(text, TOPICS[late]) for text, _ in mentions])
            assert all(_in(text, TOPICS[late]) != _in(text, TOPICS[early]) for text, _ in mentions)
            assert abs(share - np.mean([late_share(word, time) for _, time in mentions])) < 0.15
            assert len(mentions) > 50


def _words(text: str) -> list[str]:
    return text.lower().strip(".").split()


def _in(text: str, topic: Sequence[str]) -> bool:
    return bool(set(_words(text)) & set(topic))
