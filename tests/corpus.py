"""Documents of a made-up world in which some words change their company over eight years, and the truth about it.

Every topic has words of its own, which stay. A word of ``MOVING`` stands among one topic's words in the early years
and among another's in the late ones.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Document = tuple[str, str, str]  # client, text, ISO time

START, END = datetime(2010, 1, 1, tzinfo=UTC), datetime(2018, 1, 1, tzinfo=UTC)
TOPICS = {
    "animals": ["cat", "dog", "fur", "tail", "paw", "whiskers", "cheese", "nest", "burrow"],
    "computers": ["keyboard", "screen", "laptop", "click", "cursor", "button", "driver", "cable", "software"],
    "weather": ["rain", "wind", "storm", "sunshine", "thunder", "fog", "drizzle", "sky", "forecast"],
    "kitchen": ["oven", "flour", "butter", "sugar", "recipe", "bowl", "spoon", "pan", "dough"],
    "music": ["guitar", "piano", "song", "melody", "concert", "choir", "drum", "violin", "tune"],
}
MOVING = {"mouse": ("animals", "computers"), "cloud": ("weather", "computers"), "jam": ("kitchen", "music")}
COMMON = ["the", "a", "of", "and", "to", "in", "is", "was", "with", "for", "on", "at"]
_MIDDLE, _STEEPNESS = 0.5, 14.0  # of the logistic curve over the eight years
_MENTIONS = 0.6  # share of the documents of a word's present topic that mention it


def late_share(word: str, time: str) -> float:
    """The truth: the share of a word's mentions at this time that are in its late topic, were both as frequent.

    >>> round(late_share("mouse", "2010-01-01"), 2), round(late_share("mouse", "2017-12-31"), 2)
    (0.0, 1.0)
    """
    assert word in MOVING, word
    moment = datetime.fromisoformat(time)
    passed = (moment.replace(tzinfo=UTC) - START) / (END - START)
    return float(1 / (1 + np.exp(-_STEEPNESS * (passed - _MIDDLE))))


def corpus(num_clients: int, num_documents: int, seed: int) -> list[Document]:
    """Client, text and ISO time of each document, in no order of time; the same for the same arguments.

    Clients write about some topics more than about others, and about the same ones in all years. Moving words
    are ``MOVING``: word, early topic, late topic; all words of ``TOPICS`` stay.

    Args:
        num_clients: Each has a document at least.
        num_documents: Of all clients together.
        seed: Of everything.
    """
    assert num_documents >= num_clients
    draw = np.random.Generator(np.random.PCG64(seed))
    names = list(TOPICS)
    likes = draw.dirichlet(np.full(len(names), 1.0), size=num_clients)
    days = (END - START).days
    documents = []
    for number in range(num_documents):
        client = number if number < num_clients else int(draw.integers(num_clients))
        topic = names[int(draw.choice(len(names), p=likes[client]))]
        time = (START + timedelta(days=int(draw.integers(days)))).strftime("%Y-%m-%d")
        words = [str(w) for w in draw.choice(TOPICS[topic], size=int(draw.integers(6, 11)))]
        words += [str(w) for w in draw.choice(COMMON, size=int(draw.integers(3, 7)))]
        for word, (early, late) in MOVING.items():
            share = late_share(word, time)
            rate = share * (topic == late) + (1 - share) * (topic == early)
            words += [word] * int(draw.random() < _MENTIONS * rate)
        draw.shuffle(words)
        documents.append((f"writer{client:03}", " ".join(words).capitalize() + ".", time))
    return documents


def write_csv(documents: Sequence[Document], path: Path) -> Path:
    """A table ``client,text,time``, compressed if the name ends in ``.gz``; returns the path."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("client", "text", "time"), *documents])
    return _written(text.getvalue(), path)


def write_json_lines(documents: Sequence[Document], path: Path) -> Path:
    """An object on each line, compressed if the name ends in ``.gz``; returns the path."""
    lines = (json.dumps({"client": client, "text": text, "time": time}) for client, text, time in documents)
    return _written("\n".join(lines) + "\n", path)


def write_parquet(documents: Sequence[Document], path: Path) -> Path:
    """The same as Parquet, times as dates; returns the path."""
    clients, texts, times = zip(*documents, strict=True)
    dates = pa.array(times).cast(pa.date32())
    pq.write_table(pa.table({"client": clients, "text": texts, "time": dates}), path)
    return path


def write_folder(documents: Sequence[Document], folder: Path, suffix: str = ".jsonl") -> Path:
    """A file for each client: ``.jsonl`` and ``.csv`` with text and time, ``.txt`` with a text on each line."""
    folder.mkdir(parents=True, exist_ok=True)
    by_client: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for client, text, time in documents:
        by_client[client].append((text, time))
    for client, mine in by_client.items():
        table = io.StringIO(newline="")
        if suffix.startswith(".txt"):
            table.writelines(f"{text}\n" for text, _ in mine)
        elif suffix.startswith(".csv"):
            csv.writer(table).writerows([("text", "time"), *mine])
        else:
            table.writelines(json.dumps({"text": text, "time": time}) + "\n" for text, time in mine)
        _written(table.getvalue(), folder / f"{client}{suffix}")
    return folder


def _written(text: str, path: Path) -> Path:
    data = text.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
    return path
