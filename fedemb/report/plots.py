"""Curves over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from fedemb.report.canvas import INK, MUTED, as_written, axes, figure, save
from fedemb.report.contents import FEDERATED, spoken
from fedemb.report.metrics_log import evaluation_metrics
from fedemb.report.phases import phase_colours

_MARKED_POINTS = 40


def convergence(metrics: Sequence[Mapping[str, Any]], path: Path, metric: str | None = None) -> bool:
    """Draws a metric, and the loss, against the round; returns whether there was anything to draw.

    What was measured along the way is a curve, what was measured only at its end a dashed line.
    Phases with another number of rounds (the passes of centralized training, say) are drawn at the share
    of their own way, on the axis of the federated rounds.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        path: Of the PNG.
        metric: Which metric; None: the first one that was measured.
    """
    names = [name for line in metrics for name in evaluation_metrics(line)]
    metric = metric or (names[0] if names else None)
    rounds = _rounds(metrics)
    colours = phase_colours(str(line.get("phase", FEDERATED)) for line in metrics)
    panels = [
        name for name in (metric, "loss") if name and any(_points(metrics, p, name, 1) for p in colours)
    ]
    if not panels:
        return False
    made = figure(7.2, 2.9 * len(panels) + 0.4)
    first = None
    for number, name in enumerate(panels, start=1):
        panel = axes(made, len(panels), 1, number, sharex=first)
        first = first or panel
        for phase, colour in colours.items():
            _draw(panel, _points(metrics, phase, name, rounds), colour, spoken(phase), rounds)
        panel.set_title(name.replace("_", " "), loc="left", fontsize=10.5, color=INK, parse_math=False)
        panel.set_xlim(0, rounds)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelbottom=number == len(panels))
        as_written(panel.legend(frameon=False, fontsize=9, labelcolor=INK))
    stretched = any(line.get("rounds", rounds) != rounds for line in metrics if line.get("loss") is not None)
    note = " (others: the same share of their own passes)" if stretched else ""
    panel.set_xlabel(f"round{note}", color=MUTED, fontsize=9)
    made.subplots_adjust(hspace=0.25)
    save(made, path)
    return True


def _rounds(metrics: Sequence[Mapping[str, Any]]) -> int:
    own = [line for line in metrics if line.get("phase", FEDERATED) == FEDERATED] or metrics
    return max([int(line.get("rounds") or line.get("round") or 1) for line in own], default=1)


def _points(
    metrics: Sequence[Mapping[str, Any]], phase: str, name: str, rounds: int
) -> list[tuple[float, float]]:
    """Round and value; a line without a round is a result at the end."""
    found = []
    for line in metrics:
        value = line.get(name)
        if str(line.get("phase", FEDERATED)) != phase or value is None:
            continue
        total = line.get("rounds") or rounds
        found.append((line["round"] * rounds / total if "round" in line else rounds, float(value)))
    return found


def _draw(panel: Any, points: Sequence[tuple[float, float]], colour: str, label: str, rounds: int) -> None:
    if not points:
        return
    x, y = zip(*points, strict=True)
    if len(set(x)) == 1 and x[0] == rounds:
        panel.axhline(y[-1], color=colour, linewidth=1.4, linestyle=(0, (5, 3)), label=label)
        return
    marker = "o" if len(x) <= _MARKED_POINTS else None
    panel.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=label, clip_on=False)
