"""What moved, as a picture and as tables."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fedemb.data.cells import show_time
from fedemb.data.vocabulary import Vocabulary
from fedemb.evaluate.drift import Drift
from fedemb.report.canvas import COLOURS, INK, MUTED, as_written, axes, figure, save
from fedemb.report.contents import Cell, Sheet

_MOST_CURVES = 10
_IN_REPORT = 10


def draw_drift(drift: Drift, names: Vocabulary, path: Path) -> None:
    """Draws how far each row is, in every slice of time, from where it was in the first."""
    made = figure(7.2, 3.6)
    panel = axes(made, 1, 1, 1)
    dates = drift.times.astype("datetime64[s]")
    for row, moved, colour in zip(drift.rows[:_MOST_CURVES], drift.moved, COLOURS, strict=False):
        marker = "o" if len(dates) <= 30 else None
        panel.plot(
            dates, moved, color=colour, linewidth=1.6, marker=marker, markersize=3, label=names.name(int(row))
        )
    panel.set_title("distance from the first slice (1 - cosine)", loc="left", fontsize=10.5, color=INK)
    panel.tick_params(axis="x", labelsize=8, rotation=30)
    panel.set_xlabel("time", color=MUTED, fontsize=9)
    as_written(
        panel.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    )
    save(made, path)


def write_neighbours(drift: Drift, names: Vocabulary, path: Path) -> None:
    """Writes a line for each followed row, slice of time and neighbour."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["name", "time", "moved", "rank", "neighbour", "cosine"])
        for i, row in enumerate(drift.rows):
            for s, time in enumerate(drift.times):
                for rank in range(drift.neighbours.shape[2]):
                    near, cosine = drift.neighbours[i, s, rank], drift.cosines[i, s, rank]
                    line = [names.name(int(row)), show_time(int(time))[:10], f"{drift.moved[i, s]:.4f}"]
                    out.writerow([*line, rank + 1, names.name(int(near)), f"{cosine:.4f}"])


def write_moved(drift: Drift, names: Vocabulary, path: Path) -> None:
    """Writes the common rows and how far they moved, furthest first."""
    counts = names.counts if names.counts is not None else np.zeros(len(names), dtype=np.int64)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["name", "count", "moved"])
        for row, far in zip(drift.ranked, drift.distances, strict=True):
            out.writerow([names.name(int(row)), int(counts[row]), f"{far:.4f}"])


def neighbour_sheet(drift: Drift, names: Vocabulary) -> Sheet:
    """The followed rows with their neighbours in the first slice, one in the middle, and the last."""
    chosen = sorted({0, len(drift.times) // 2, len(drift.times) - 1})
    header = ("through time", "moved", *(show_time(int(drift.times[s]))[:10] for s in chosen))
    rows = []
    for i, row in enumerate(drift.rows[:_IN_REPORT]):
        near = (", ".join(names.name(int(n)) for n in drift.neighbours[i, s]) for s in chosen)
        cells = (Cell(f"{drift.moved[i, -1]:.2f}"), *map(Cell, near))
        rows.append((names.name(int(row)), cells))
    return Sheet(header, tuple(rows))
