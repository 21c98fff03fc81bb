"""What probabilities say against how often it is so, and what is gained by leaving the uncertain to others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedemb.evaluate.calibration import MAPS
from fedemb.evaluate.confidence import BEFORE
from fedemb.report.canvas import COLOURS, INK, MUTED, as_written, axes, figure, save
from fedemb.report.contents import spoken

Curves = Mapping[str, Mapping[str, Any]]
_PER_ROW = 3
_TICKS = (0, 0.25, 0.5, 0.75, 1)
_MAP_COLOURS = {BEFORE: INK, **dict(zip(MAPS, COLOURS, strict=False))}


def draw_reliability(curves: Curves, path: Path) -> bool:
    """Draws a reliability diagram for each model, before and after each map; returns whether there is anything.

    Args:
        curves: ``confidence.curves`` by model.
        path: Of the PNG.
    """
    models = {model: found["reliability"] for model, found in curves.items() if "reliability" in found}
    if not models:
        return False
    rows, columns = -(-len(models) // _PER_ROW), min(len(models), _PER_ROW)
    made = figure(3.4 * columns, 3.5 * rows)
    for number, (model, maps) in enumerate(models.items(), start=1):
        panel = axes(made, rows, columns, number)
        panel.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        for name, curve in maps.items():
            panel.plot(
                curve["probability"],
                curve["frequency"],
                color=_MAP_COLOURS[name],
                linewidth=2.2 if name == BEFORE else 1.3,
                marker="o",
                markersize=3,
                label=name,
            )
        panel.set_title(spoken(model), loc="left", fontsize=10.5, color=INK, parse_math=False)
        panel.set_xlabel("probability", color=MUTED, fontsize=9)
        panel.set_xticks(_TICKS)
        panel.set_yticks(_TICKS)
        if number % _PER_ROW == 1 or columns == 1:
            panel.set_ylabel("share of records where it is so", color=MUTED, fontsize=9)
        if number == 1:
            as_written(panel.legend(frameon=False, fontsize=8, labelcolor=INK))
    made.subplots_adjust(hspace=0.4, wspace=0.3)
    save(made, path)
    return True


def draw_risk(curves: Curves, colours: Mapping[str, str], path: Path) -> bool:
    """Draws risk against coverage, a panel for each uncertainty; returns whether there is anything to draw.

    Args:
        curves: ``confidence.curves`` by model.
        colours: Of the models.
        path: Of the PNG.
    """
    models = {model: found["risk"] for model, found in curves.items() if "risk" in found}
    names = list(dict.fromkeys(name for found in models.values() for name in found))
    if not names:
        return False
    rows, columns = -(-len(names) // _PER_ROW), min(len(names), _PER_ROW)
    made = figure(3.4 * columns, 3.2 * rows)
    for number, name in enumerate(names, start=1):
        panel = axes(made, rows, columns, number)
        for model, found in models.items():
            if name in found:
                panel.plot(
                    [100 * share for share in found[name]["coverage"]],
                    found[name]["risk"],
                    color=colours.get(model, MUTED),
                    linewidth=1.8,
                    label=spoken(model),
                )
        panel.set_title(f"share of errors, by {name}", loc="left", fontsize=10.5, color=INK, parse_math=False)
        panel.set_xlabel("% answered, the least uncertain first", color=MUTED, fontsize=9)
        panel.set_ylim(bottom=0)
        if number == 1:
            as_written(panel.legend(frameon=False, fontsize=8, labelcolor=INK))
    made.subplots_adjust(hspace=0.4, wspace=0.25)
    save(made, path)
    return True
