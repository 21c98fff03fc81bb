"""Words that move, in a real catalogue with a known truth: two words are made one, which goes from one to the other.

    python experiments/dynamic_text/run.py ARTWORKS_JSONL SUBJECTS_CSV [--seeds 3]

An entry of Tate's catalogue is a work's title and the names of its subjects, by its artist (the client) and year.
A word of ``MOVING`` stands where the first word of its pair stood in early years, and where the second stood in late
ones (made-up words: Rosenfeld, Erk, NAACL 2018). A word of ``STILL`` stands half of the time for either in all years.
Entries from 1990 on are held out, and their words named by their neighbours. Writes results.csv beside this file, a
line for each model and seed; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.functional import cosine_similarity

import fedemb
from fedemb.build import build
from fedemb.config import compose_config
from fedemb.data.vocabulary import Vocabulary
from fedemb.evaluate.context import ContextPrediction
from fedemb.tasks.dynamic import Dynamic

HERE = Path(__file__).resolve().parent
MOVING = [
    ("boat", "chair"), ("horse", "book"), ("river", "window"), ("tree", "table"), ("dog", "sculpture"),
    ("church", "hat"), ("mountain", "music"), ("cloud", "hand"), ("castle", "poster"), ("coast", "flower"),
]  # fmt: skip
STILL = [
    ("house", "arm"), ("street", "child"), ("soldier", "garden"), ("bridge", "dress"), ("interior", "death"),
    ("tower", "bird"), ("field", "room"), ("road", "shadow"), ("hill", "face"), ("sea", "war"),
]  # fmt: skip
# Years: of the oldest entry, and of the curve by which a meaning moves.
FIRST, MIDDLE, WIDTH = 1760, 1920, 15.0
MADE = 2 / 3  # of a pair's words: the others stay what they are, so that all are seen at all times
TEST_FROM = 1990
SETTINGS = [
    "experiment=dynamic_text", "data.columns.client=artist", "data.columns.time=year", "data.time_format=%Y",
    f"data.test_from={TEST_FROM}-01-01", "task.slice=decade", "cohort=uniform", "cohort.size=400", "rounds=60",
    "baselines=[]", "ablations=null",
]  # fmt: skip
MODELS = {
    "slices": [],
    "static": ["task.rows=static"],
    "slices, times shuffled": ["data.shuffle_times=true"],
    "continuous": ["task.rows=continuous"],
    "slices, walk=0": ["task.walk=0"],
    "slices, walk=1": ["task.walk=1"],
}
FIELDS = ["model", "seed", "mrr", "moving_mrr", "moved_auc", "turned", "still_turned"]


def one(pair: tuple[str, str]) -> str:
    """The word that a pair is made."""
    return "-".join(pair)


def entries(artworks: Path, subjects: Path, seed: int) -> list[dict[str, str]]:
    """Artist, text and year of each work that has a year, with the words made one."""
    with subjects.open(newline="", encoding="utf-8") as file:
        names = {int(line["id"]): line["name"] for line in csv.DictReader(file)}
    draw, found = np.random.Generator(np.random.PCG64(seed)), []
    with gzip.open(artworks, "rt", encoding="utf-8") as file:
        for work in map(json.loads, file):
            if not isinstance(work["year"], int) or work["year"] < FIRST:
                continue
            text = " ; ".join([work["title"], *(names[i] for i in work["subjects"] if i in names)]).casefold()
            late = 1 / (1 + np.exp(-(work["year"] - MIDDLE) / WIDTH))
            for pairs, share in ((MOVING, late), (STILL, 0.5)):
                for pair in pairs:
                    for word, chance in zip(pair, (1 - share, share), strict=True):
                        if draw.random() < MADE * chance:
                            text = re.sub(rf"\b{word}\b", one(pair), text)
            found.append({"artist": work["artist"], "text": text, "year": str(work["year"])})
    return found


def figures(path: Path, changes: list[str], seed: int) -> dict[str, float]:
    """A federated run: how well held-out words are named, and what is seen of those that moved."""
    with tempfile.TemporaryDirectory() as folder:
        run = fedemb.train(
            [*SETTINGS, f"data.path={path}", f"seed={seed}", *changes], folder=Path(folder) / "run"
        )
        parts = build(compose_config(list(OmegaConf.load(run.folder / ".hydra" / "overrides.yaml"))))
        assert isinstance(parts.evaluation, ContextPrediction)
        assert isinstance(parts.task, Dynamic)
        tables, dense = run.tensors()
        model = {**tables, **dense}
        examples, rank = parts.evaluation.ranks(model, np.arange(parts.dataset.train.num_clients))
        words = parts.dataset.vocabularies["item"]
        moving = np.isin(examples.columns["item"], words.index([one(pair) for pair in MOVING]))
        return {
            "mrr": float((1 / rank).mean()),
            "moving_mrr": float((1 / rank[moving]).mean()),
            "moved_auc": told_apart(run.folder / "moved.csv"),
            "turned": turned(parts.task, model, words, MOVING),
            "still_turned": turned(parts.task, model, words, STILL),
        }


def told_apart(path: Path) -> float:
    """Chance that a word that moves moved further than another; .5 where nothing does."""
    if not path.is_file():
        return 0.5
    with path.open(newline="", encoding="utf-8") as file:
        moved = {line["name"]: float(line["moved"]) for line in csv.DictReader(file)}
    truth = {one(pair) for pair in MOVING}
    those: npt.NDArray[np.float64] = np.array([far for word, far in moved.items() if word in truth])
    others: npt.NDArray[np.float64] = np.array([far for word, far in moved.items() if word not in truth])
    return float((those[:, None] > others).mean() + (those[:, None] == others).mean() / 2)


def turned(
    task: Dynamic, tables: Mapping[str, Tensor], words: Vocabulary, pairs: list[tuple[str, str]]
) -> float:
    """Share of the words of these pairs that stand nearer to the second of the two than before they moved."""
    vectors = [task.vectors_at(tables, seconds(year)) for year in (MIDDLE - 30, TEST_FROM - 1)]
    count = 0.0
    for pair in pairs:
        word, *both = words.index([one(pair), *pair])
        early, late = (cosine_similarity(own[word][None], own[both]) for own in vectors)
        towards = float((late[1] - late[0]) - (early[1] - early[0]))
        count += 0.5 if towards == 0 else float(towards > 0)
    return count / len(pairs)


def seconds(year: int) -> int:
    """The middle of a year as epoch seconds."""
    return int(datetime(year, 7, 1, tzinfo=UTC).timestamp())


def main() -> None:
    """Prints and writes line by line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artworks", metavar="ARTWORKS_JSONL", type=Path)
    parser.add_argument("subjects", metavar="SUBJECTS_CSV", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results, done = HERE / "results.csv", set()
    if results.is_file():
        with results.open(newline="", encoding="utf-8") as file:
            done = {(line["model"], line["seed"]) for line in csv.DictReader(file)}
    with results.open("a", newline="", encoding="utf-8") as file, tempfile.TemporaryDirectory() as folder:
        out = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not done:
            out.writeheader()
        for seed in range(arguments.seeds):
            path = Path(folder) / f"entries-{seed}.jsonl"
            lines = entries(arguments.artworks, arguments.subjects, seed)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            for name, changes in MODELS.items():
                if (name, str(seed)) not in done:
                    line = {key: f"{value:.4f}" for key, value in figures(path, changes, seed).items()}
                    print(name, seed, *line.values(), flush=True)
                    out.writerow({"model": name, "seed": seed, **line})
                    file.flush()


if __name__ == "__main__":
    main()
