"""Words whose meaning moves, federated: what the run folder says of a corpus whose truth is known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import fedemb
from fedemb.build import build
from fedemb.config import compose_config
from fedemb.evaluate.context import ContextPrediction
from tests.corpus import MOVING, TOPICS, corpus, write_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("words")
    path = write_csv(corpus(10, 2000, 0), where / "corpus.csv")
    follow = f"task.follow=[{','.join([*MOVING, 'cat'])}]"
    given = ["experiment=dynamic_text", f"data.path={path}", "baselines=[]"]
    fedemb.train([*given, follow], folder=where / "run")
    return where / "run"


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_words_that_moved_most_are_those_that_did(folder: Path) -> None:
    moved = lines(folder / "moved.csv")
    assert {line["name"] for line in moved[: len(MOVING)]} == set(MOVING)
    assert float(moved[len(MOVING) - 1]["moved"]) > 2 * float(moved[len(MOVING)]["moved"])


def test_neighbours_go_from_one_topic_to_the_other(folder: Path) -> None:
    found = lines(folder / "neighbours.csv")
    times = sorted({line["time"] for line in found})
    assert len(times) == 7, "the last of eight years is held out"

    def share(word: str, time: str, topic: str) -> float:
        near = [line["neighbour"] for line in found if line["name"] == word and line["time"] == time]
        return sum(name in TOPICS[topic] for name in near) / len(near)

    for word, (early, late) in MOVING.items():
        assert share(word, times[0], early) >= 0.8, word
        assert share(word, times[-1], late) >= 0.6, word
        assert share(word, times[0], late) == 0.0, word
    assert all(share("cat", time, "animals") >= 0.6 for time in times)


@pytest.mark.parametrize("without", ["task.rows=static", "data.shuffle_times=true"])
def test_words_that_moved_are_named_best_by_where_they_are_now(folder: Path, without: str) -> None:
    """In held-out documents of the last year, against a model in which nothing moves and one that was told wrong times;
    words that stay are most of the vocabulary, and named as well by either.
    """
    path = f"data.path={folder.parent / 'corpus.csv'}"
    other = folder.parent / without
    fedemb.train(["experiment=dynamic_text", path, "baselines=[]", "ablations=null", without], folder=other)
    assert moving_mrr(folder) > 1.25 * moving_mrr(other)


def moving_mrr(folder: Path) -> float:
    """Mean reciprocal rank of the held-out occurrences of the words that move."""
    texts = list(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    parts = build(compose_config(texts))
    assert isinstance(parts.evaluation, ContextPrediction)
    tables, dense = fedemb.load(folder).tensors()
    everybody = np.arange(parts.dataset.train.num_clients)
    examples, rank = parts.evaluation.ranks({**tables, **dense}, everybody)
    moving = np.isin(examples.columns["item"], parts.dataset.vocabularies["item"].index(list(MOVING)))
    assert moving.sum() > 30
    return float((1 / rank[moving]).mean())


def test_the_report_shows_it(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert 'alt="drift"' in page
    assert "through time" in page
    summary = fedemb.load(folder).summary
    assert summary["leak_check"]["examples"] > 10_000
    shuffled = summary["leak_check"]["shuffled_times"]
    assert shuffled["shuffled_mrr"] != shuffled["mrr"] == summary["metrics"]["mrr"]
    assert set(summary["baselines"]) == {"static", "shuffled_times"}
