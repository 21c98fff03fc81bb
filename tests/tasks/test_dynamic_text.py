"""Words whose meaning moves, federated: what the run folder says of a corpus whose truth is known."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import fedemb
from tests.corpus import MOVING, TOPICS, corpus, write_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("words")
    path = write_csv(corpus(10, 2000, 0), where / "corpus.csv")
    follow = f"task.follow=[{','.join([*MOVING, 'cat'])}]"
    fedemb.train(["experiment=dynamic_text", f"data.path={path}", follow], folder=where / "run")
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


def test_the_report_shows_it(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert 'alt="drift"' in page
    assert "through time" in page
    assert fedemb.load(folder).summary["leak_check"]["examples"] > 10_000
