"""Text: who wrote what, and when (speeches, notes, messages)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedemb.data.assemble import Assembly, Expand, assemble, expanded_sizes, in_order
from fedemb.data.columns import check_roles
from fedemb.data.declared import read_vocabulary
from fedemb.data.documents import Documents, find_documents
from fedemb.data.events import Reading, read_events, window_of
from fedemb.data.held_out import HoldOut, Label
from fedemb.data.interactions import check_counts
from fedemb.data.shards import Column, Shards, offsets_of, ragged_indices
from fedemb.data.vocabulary import Vocabulary
from fedemb.data.words import WordRule, WordStore
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset, Partition

ROLES = ("client", "text", "time")
PARTS_OF_A_TEXT = ("line", "file")


@dataclass(frozen=True)
class Text:
    """Documents from a CSV, TSV, JSON Lines or Parquet file, a text, or a folder with a file for each client.

    Training columns: ``item`` int64, the words in the order in which they stand; ``session`` int64, a number for each
    document, so that no window reaches from one into another; with times ``time`` int64, that of its document. A
    client's documents are in the order of time; those of the same second, and all without time, stay in the order of
    the file. Words that are out of vocabulary are left out before windows are laid, as word2vec does. What is a
    word, ``fedemb.data.words.WordRule`` says.

    The vocabulary is agreed by counts: a word is in it if the clients' counts of it in training add up to
    ``min_count``, and if ``min_clients`` of them have it, so that nobody's own word becomes everybody's. Counts of
    words tell about their client nevertheless; where they must not be told, declare the ``vocabulary``.

    Documents are held out as a whole: by time where there is time, else at random among those of each client.

    Attributes:
        path: The file; compressed is fine (``.jsonl.gz``). Or a folder whose files are the clients (``ann.txt``),
            where ``.txt`` files hold documents without time, and tables have the columns ``text`` and ``time``.
        columns: Column name of ``client``, ``text`` and ``time``. Null: the column with a usual name for it, if any,
            which is logged; an empty name: none. Without a client column ``partition`` makes the clients.
        document: What of a ``.txt`` file is a document: a ``line`` that is not blank, or the whole ``file``.
        lowercase: Whether case is folded.
        numbers: Whether words without any letter count.
        stop_words: A file of words that are left out before windows are laid; null: none.
        min_count: Words with fewer occurrences in training are out of vocabulary.
        min_clients: Words of fewer clients' training are out of vocabulary; null: 2, or 1 where there is one client
            only or a vocabulary.
        min_client_count: Clients with fewer training words (of the vocabulary) are dropped.
        since: ISO time; earlier documents are not used at all. Null: all.
        until: ISO time; documents from here on are not used at all. Null: all.
        shuffle_times: A leak check: the training documents' times are dealt anew among all of them, so that
            what training could learn of time is lost; what is known of clients when they are measured keeps its
            times. A model that does as well as before does not live on time, or it knows the future.
        validation_from: ISO time; from here on documents are validation. Null: no such part, or, if ``test_from`` is
            null as well, by shares.
        test_from: ISO time; from here on documents are test.
        validation_share: Of all documents, the last before the test period; without time, of each client's, drawn
            at random.
        test_share: Of all documents, the last ones; without time, of each client's, drawn at random.
        keep_cold_clients: Keep clients who have validation documents but no training documents.
        vocabulary: A file that declares all words, in the form of the rule; null: those of training.
        time_format: Of times that are neither ISO 8601 nor epoch numbers, as for ``strptime``: ``%Y`` for years.
        delimiter: Between cells; null: a tab in ``.tsv``, else a comma.
        memory_bytes: Budget for words in memory; more go to temporary files, mapped into memory.
    """

    path: str
    columns: Mapping[str, str | None] = field(default_factory=dict)
    document: str = "line"
    lowercase: bool = True
    numbers: bool = False
    stop_words: str | None = None
    min_count: int = 1
    min_clients: int | None = None
    min_client_count: int = 1
    since: str | None = None
    until: str | None = None
    shuffle_times: bool = False
    validation_from: str | None = None
    test_from: str | None = None
    validation_share: float = 0.1
    test_share: float = 0.1
    keep_cold_clients: bool = False
    vocabulary: str | None = None
    time_format: str | None = None
    delimiter: str | None = None
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        check_roles(self.columns, ROLES)
        check_counts(self.min_count, self.min_client_count, self.memory_bytes, self.vocabulary)
        if self.min_clients is not None and self.min_clients < 1:
            raise SettingError(f"data.min_clients must be at least 1, or null, got {self.min_clients}")
        if self.vocabulary is not None and (self.min_clients or 1) > 1:
            raise SettingError(
                f"data.min_clients must be 1 or null where data.vocabulary declares the words, got {self.min_clients}"
            )
        if self.document not in PARTS_OF_A_TEXT:
            raise SettingError(
                f"data.document must be one of {', '.join(PARTS_OF_A_TEXT)}, got {self.document!r}"
            )
        _ = self.hold_out, window_of(self.since, self.until)

    @property
    def hold_out(self) -> HoldOut:
        return HoldOut(
            self.validation_from, self.test_from, self.validation_share, self.test_share, at_random=True
        )

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The documents as words.

        Raises:
            DataError: If a file or a column is not as it must be, or nothing is left to train on.
            SettingError: If the partition does not suit the data.
        """
        counts: dict[str, int] = {}
        rule = WordRule(self.lowercase, self.numbers)
        declared = _declared(self.vocabulary, rule) if self.vocabulary else None
        if self.stop_words:
            rule = replace(rule, stop_words=frozenset(_stop_words(self.stop_words, rule)))
        found = find_documents(
            self.path, self.columns, ROLES, self.document == "file", self.delimiter, counts
        )
        self._check(found, partition)
        reading = Reading(
            path=self.path,
            columns=found.columns,
            entity_of={},
            time_format=self.time_format,
            delimiter=self.delimiter,
            memory_bytes=self.memory_bytes,
            window=window_of(self.since, self.until),
        )
        store = WordStore(rule, counts, self.memory_bytes)
        rows = None if found.is_table else found.rows()
        events = read_events(reading, partition, seed, counts, rows, store.add)
        words, names = store.finish()
        assembly = Assembly(
            entity_of={"item": "item"},
            hold_out=self.hold_out,
            min_count=self.min_count,
            min_clients=1 if declared else self.min_clients,
            min_client_count=self.min_client_count,
            keep_cold_clients=self.keep_cold_clients,
            declared={"item": declared} if declared else {},
            shuffle_times=self.shuffle_times,
            memory_bytes=self.memory_bytes,
        )
        return assemble(
            replace(events, names={"item": names}),
            lambda lines: (in_order(lines), 0),
            assembly,
            seed,
            counts,
            into_words(words),
        )

    def _check(self, found: Documents, partition: Partition) -> None:
        if "time" not in found.columns and (self.since or self.until):
            raise DataError(
                "data.columns.time must name a column where data.since or data.until is set, got none"
            )
        column = getattr(partition, "column", None)
        if column is not None and not found.is_table and "client" not in found.columns:
            raise DataError(f"partition.column must name a column, got {column!r}, but {self.path} has none")


def into_words(words: Column) -> Expand:
    """What turns documents into their words.

    Args:
        words: Word numbers of all documents: those of one stand from its ``start`` on, ``size`` of them.
    """

    def expand(documents: Shards, label: Label) -> tuple[Shards, Label]:
        size = documents.columns["size"]
        columns: dict[str, Column] = {
            "item": words[ragged_indices(documents.columns["start"], size)],
            "session": np.repeat(np.arange(len(size), dtype=np.int64), size),
        }
        if "time" in documents.columns:
            columns["time"] = np.repeat(documents.columns["time"], size)
        return Shards(columns, offsets_of(expanded_sizes(documents))), np.repeat(label, size)

    return expand


def _stop_words(path: str, rule: WordRule) -> list[str]:
    """Words in a file, in the form of the rule.

    Raises:
        DataError: If the file cannot be read, or something in it is not one word.
    """
    names = read_vocabulary(path).to_list()
    found = [rule.words(name) for name in names]
    for name, words in zip(names, found, strict=True):
        if len(words) != 1:
            raise DataError(f"{path} must hold a word on each line, got {name!r}")
    return [words[0] for words in found]


def _declared(path: str, rule: WordRule) -> Vocabulary:
    """A declared vocabulary that the rule can meet.

    Raises:
        DataError: If the file cannot be read, or something in it is never a word by this rule.
    """
    vocabulary = read_vocabulary(path)
    for name in vocabulary.to_list():
        if rule.words(name) != [name]:
            raise DataError(
                f"{path} must hold words in the form that data.lowercase={str(rule.lowercase).lower()} gives them, "
                f"got {name!r}, which is {rule.words(name)}"
            )
    return vocabulary
