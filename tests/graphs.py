"""A small made-up knowledge graph: entities stand on a circle, and a relation leads so many steps along it.

One relation leads to two places, so that questions have several answers.
"""

from __future__ import annotations

import atexit
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedemb.data.graph_files import ENTITY_OF
from fedemb.data.shards import Shards, group_by_client
from fedemb.data.vocabulary import Vocabulary
from fedemb.types import Dataset

NUM_CLIENTS, NUM_ENTITIES = 6, 15
STEPS = (1, 2, 5, 7, 14)  # the last one is the inverse of the first
TWO_WAYS, FURTHER = 3, 1  # this relation leads so many steps further, too
SHARES = (0.3, 0.15, 0.0, 0.3, 0.2, 0.05)  # of the triples, by client
FILES = {
    "train": "training", "valid": "validation", "test": "test",
    "valid_negatives": "validation_negatives", "test_negatives": "test_negatives",
}  # fmt: skip


@lru_cache(maxsize=1)
def graph() -> Dataset:
    """The third client has no triples, the second no validation, the last one nothing held out.

    A few triples are at two clients.
    """
    rng = np.random.default_rng(0)
    steps = np.array(STEPS)
    head, way = np.divmod(rng.permutation(NUM_ENTITIES * (len(steps) + 1)), len(steps) + 1)
    relation = np.where(way < len(steps), way, TWO_WAYS)
    further = FURTHER * (way == len(steps))
    client = rng.choice(NUM_CLIENTS, len(head), p=SHARES)
    part = rng.choice(3, len(head), p=(0.6, 0.15, 0.25))
    part[client == NUM_CLIENTS - 1] = 0
    part[(client == 1) & (part == 1)] = 0
    twice = np.flatnonzero((part == 0) & (client == 0))[:4]
    head, relation, further, part = (
        np.concatenate((column, column[twice])) for column in (head, relation, further, part)
    )
    client = np.concatenate((client, np.full(len(twice), 3)))
    tail = (head + steps[relation] + further) % NUM_ENTITIES
    wrong = (tail + rng.integers(1, NUM_ENTITIES, len(tail))) % NUM_ENTITIES

    def shards(chosen: int, tails: np.ndarray) -> Shards:
        columns = {"head": head, "relation": relation, "tail": tails}
        mine = part == chosen
        return group_by_client({n: c[mine] for n, c in columns.items()}, client[mine], NUM_CLIENTS)

    names = {"entity": [f"e{n:02}" for n in range(NUM_ENTITIES)], "relation": [f"by{n:02}" for n in STEPS]}
    return Dataset(
        train=shards(0, tail),
        vocabularies={entity: Vocabulary.of(words) for entity, words in names.items()},
        held_out={
            "validation": shards(1, tail),
            "test": shards(2, tail),
            "validation_negatives": shards(1, wrong),
            "test_negatives": shards(2, wrong),
        },
        entity_of=dict(ENTITY_OF),
    )


@lru_cache(maxsize=1)
def graph_files() -> Path:
    """A folder with the graph in files, clients in the fourth cell of a line; it lasts as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="fedemb-graph-")
    atexit.register(folder.cleanup)
    dataset = graph()
    for file, part in FILES.items():
        shards = dataset.train if part == "training" else dataset.held_out[part]
        names = {role: dataset.vocabularies[e].to_list() for role, e in ENTITY_OF.items()}
        cells = [[names[role][i] for i in shards.columns[role]] for role in ("head", "relation", "tail")]
        lines = zip(*cells, (f"client {c}" for c in shards.owners()), strict=True)
        (Path(folder.name) / f"{file}.txt").write_text("".join("\t".join(line) + "\n" for line in lines))
    return Path(folder.name)
