"""evaluate/drift.py and report/drift.py: what moved, and towards whom."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from fedemb.data.vocabulary import Vocabulary
from fedemb.evaluate.drift import drift_of
from fedemb.report.drift import draw_drift, neighbour_sheet, write_moved, write_neighbours


class Turning:
    """Row 0 turns from row 1 to row 2; all others stay. Row 3 turns as well, but nobody ever saw it."""

    slices = np.array([0, 10, 20, 30]) * 86_400
    moves, follow = True, ()

    def vectors_at(self, tables: object, time: int) -> torch.Tensor:
        angle = torch.tensor(time / (30 * 86_400) * torch.pi / 2)
        turning = torch.stack((torch.cos(angle), torch.sin(angle), torch.zeros(())))
        fixed = torch.tensor([[1.0, 0, 0.1], [0, 1.0, 0.1]])
        return torch.stack((turning, *fixed, turning, torch.tensor([0.0, 0.0, 2.0])))


COUNTS = np.array([5, 9, 8, 0, 1])
NAMES = Vocabulary.of(["turns", "early", "$late$", "unseen", "<b>far</b>"], COUNTS)


def test_what_turns_is_found_with_its_neighbours() -> None:
    drift = drift_of(Turning(), {}, COUNTS, num_rows=2)
    assert drift.ranked[0] == 0
    assert 3 not in drift.ranked
    assert drift.rows[0] == 0
    assert drift.neighbours[0, 0, 0] == 1
    assert drift.neighbours[0, -1, 0] == 2
    angles = (np.array([5, 15, 25]) / 30) * np.pi / 2
    np.testing.assert_allclose(drift.moved[0], 1 - np.cos(angles - angles[0]), atol=1e-6)
    np.testing.assert_allclose(drift.moved[1], 0, atol=1e-6)
    assert not (drift.neighbours[0] == 0).any(), "nobody is its own neighbour"


def test_rare_rows_are_not_ranked_where_enough_are_common() -> None:
    class Many:
        """Row 0, which is rare, turns round; row 1 turns a little; all others stay."""

        slices, moves, follow = np.array([0, 10, 20]) * 86_400, True, ()

        def vectors_at(self, tables: object, time: int) -> torch.Tensor:
            late = time > 10 * 86_400
            rows = torch.eye(12)
            rows[0] = torch.eye(12)[0] * (-1 if late else 1)
            rows[1, 2] = 1.0 if late else 0.0
            return rows

    counts = np.full(12, 20)
    counts[0] = 19
    assert drift_of(Many(), {}, counts).ranked[0] == 1
    assert 0 not in drift_of(Many(), {}, counts).ranked
    counts[3] = 19  # nine are left, which is too few
    counts[4] = 19
    assert drift_of(Many(), {}, counts).ranked[0] == 0


def test_followed_rows_and_their_files(tmp_path: Path) -> None:
    drift = drift_of(Turning(), {}, COUNTS, follow=np.array([4, 0]))
    assert drift.rows.tolist() == [4, 0]
    draw_drift(drift, NAMES, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").stat().st_size > 5_000
    write_neighbours(drift, NAMES, tmp_path / "neighbours.csv")
    write_moved(drift, NAMES, tmp_path / "moved.csv")
    with (tmp_path / "neighbours.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3 * 3
    last = [line for line in lines if line["name"] == "turns" and line["time"] == "1970-01-26"]
    assert last[0]["neighbour"] == "$late$"
    with (tmp_path / "moved.csv").open(encoding="utf-8", newline="") as file:
        moved = list(csv.DictReader(file))
    assert moved[0]["name"] == "turns"
    assert moved[0]["count"] == "5"
    sheet = neighbour_sheet(drift, NAMES)
    assert [name for name, _ in sheet.rows] == ["<b>far</b>", "turns"]
    assert len(sheet.header) == 5
