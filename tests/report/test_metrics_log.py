"""report/metrics_log.py: what is written can be read, whatever happens between."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedemb.errors import DataError
from fedemb.report.metrics_log import MetricsLog, evaluation_metrics, read_metrics


def test_round_trip(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run")
    log(
        {
            "round": np.int64(1),
            "loss": torch.tensor(0.5),
            "map": float("nan"),
            "rejected": {"7": 'a "reason"\n…'},
        }
    )
    log({"round": 2, "loss": float("inf"), "phase": "federated"})
    assert read_metrics(tmp_path / "run") == [
        {"round": 1, "loss": 0.5, "map": None, "rejected": {"7": 'a "reason"\n…'}},
        {"round": 2, "loss": None, "phase": "federated"},
    ]


def test_every_line_is_there_at_once_and_is_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for number in range(3):
        log({"round": number})
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text.endswith("\n")
        assert json.loads(text.splitlines()[-1]) == {"round": number}
        assert len(text.splitlines()) == number + 1


def test_a_later_log_goes_on(tmp_path: Path) -> None:
    MetricsLog(tmp_path)({"round": 1})
    MetricsLog(tmp_path)({"round": 2})
    assert [line["round"] for line in read_metrics(tmp_path)] == [1, 2]


def test_half_a_line_of_a_killed_run_does_no_harm(tmp_path: Path) -> None:
    MetricsLog(tmp_path)({"round": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "lo')
    assert [line["round"] for line in read_metrics(tmp_path)] == [1]
    MetricsLog(tmp_path)({"round": 2})
    assert [line["round"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n[2]\n')
    with pytest.raises(
        DataError, match=r"metrics.jsonl must hold a JSON object on each line, line 2 is b'\[2\]'"
    ):
        read_metrics(tmp_path)


def test_nothing_logged_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_evaluation_metrics_are_what_is_not_about_the_round() -> None:
    line = {"round": 1, "rounds": 2, "phase": "federated", "loss": 1.0, "seconds": 0.1, "client_updates": 4}
    line |= {"upload_bytes": 1, "download_bytes": 2, "rejected": {"1": "late"}, "ndcg": None}
    assert evaluation_metrics({**line, "map": 0.5, "mean_rank": 3}) == {"map": 0.5, "mean_rank": 3}
