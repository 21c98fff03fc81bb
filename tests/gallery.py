"""A small gallery of records made of parts, some missing, in which labels follow from the parts."""

from __future__ import annotations

import atexit
import json
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedemb.data.partition import Natural
from fedemb.data.records import Records
from fedemb.data.shards import Shards
from fedemb.data.vocabulary import Vocabulary
from fedemb.types import Dataset

WORDS = ("river", "saint", "horse", "bowl", "storm", "king")
COMPONENTS: dict[str, Any] = {
    "title": {"kind": "text", "characters": [3, 4], "buckets": 64, "length": 24},
    "medium": "category",
    "tags": "multi",
    "year": {"kind": "number", "bins": 4},
    "height": {"kind": "number", "bins": 0},
}


def rows(num_rows: int = 150, num_clients: int = 6) -> list[dict[str, Any]]:
    """Rows as JSON has them: every part is missing somewhere, a few lack all, and nobody is called c2."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(num_rows):
        topic = int(rng.integers(0, len(WORDS)))
        there = rng.random(5) < (0.0 if number % 25 == 7 else 0.75)
        title = f"The {WORDS[topic]} and the {WORDS[int(rng.integers(0, len(WORDS)))]}"
        client = int(rng.integers(0, num_clients - 1))
        parts = {
            "title": title if there[0] else None,
            "medium": ("oil", "ink", "bronze")[topic % 3] if there[1] else "",
            "tags": [WORDS[topic], f"t{number % 4}"] if there[2] else [],
            "year": 1800 + 30 * topic + int(rng.integers(0, 20)) if there[3] else None,
            "height": round(float(rng.random()) + topic, 3) if there[4] else None,
        }
        labels = [f"about {WORDS[topic]}", *(["dark"] if topic > 3 else [])]
        found.append({"id": f"a{number}", "client": f"c{client + (client > 1)}", "label": labels, **parts})
    return found


@lru_cache(maxsize=2)
def gallery_file(label: str = "multi") -> Path:
    """The rows as JSON Lines; the file lasts as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="fedemb-gallery-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "gallery.jsonl"
    found = rows() if label == "multi" else [{**row, "label": row["label"][0]} for row in rows()]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@lru_cache(maxsize=4)
def gallery(label: str = "multi") -> Dataset:
    """The records at their clients; with ``category``, the first label of each."""
    return Records(str(gallery_file(label)), COMPONENTS, label=label, test_share=0.3).load(Natural(), 0)


def with_nobody(data: Dataset) -> Dataset:
    """The same data and, in the third place, a client more, which has none."""
    assert data.clients is not None
    names = data.clients.to_list()
    return replace(
        data,
        train=with_third_empty(data.train),
        held_out={split: with_third_empty(shards) for split, shards in data.held_out.items()},
        clients=Vocabulary.of([*names[:2], "nobody", *names[2:]]),
    )


def with_third_empty(shards: Shards) -> Shards:
    """The same lines, and a client more, which has none."""
    return Shards(shards.columns, np.insert(shards.offsets, 2, shards.offsets[2]))


def gallery_overrides(label: str = "multi") -> list[str]:
    """The settings of a run on the records; with ``category``, the first label of each."""
    components = str(COMPONENTS).replace("'", "")
    path = f"data.path={gallery_file(label)}"
    return [
        "data=records",
        path,
        f"data.components={components}",
        f"data.label={label}",
        "task=compositional",
    ]
