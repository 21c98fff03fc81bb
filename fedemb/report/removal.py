"""Quality against the share of parts that are taken away."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fedemb.report.canvas import INK, MUTED, as_written, axes, figure, save
from fedemb.report.contents import Cell, Sheet, spoken
from fedemb.report.format import number

_NAME = re.compile(r"((?:validation_)?macro_ap)(?:_without_(\d+))?")
Curves = Mapping[str, Mapping[int, float]]


def removal_curves(models: Mapping[str, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    """Per model, macro average precision by the share of parts removed, in percent; models without such are left out.

    >>> removal_curves({"federated": {"macro_ap": 0.5, "macro_ap_without_20": 0.4}, "popular": {"mrr": 1.0}})
    {'federated': {0: 0.5, 20: 0.4}}
    """
    found = {}
    for model, metrics in models.items():
        matches = ((_NAME.fullmatch(name), value) for name, value in metrics.items())
        curve = {int(match[2] or 0): value for match, value in matches if match}
        if len(curve) > 1:
            found[model] = dict(sorted(curve.items()))
    return found


def draw_removal(curves: Curves, colours: Mapping[str, str], path: Path) -> None:
    """Draws a curve for each model."""
    made = figure(6.4, 3.6)
    panel = axes(made, 1, 1, 1)
    for model, curve in curves.items():
        colour = colours.get(model, MUTED)
        panel.plot(
            list(curve),
            list(curve.values()),
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=3.5,
            label=spoken(model),
        )
    panel.set_title("macro average precision", loc="left", fontsize=10.5, color=INK)
    panel.set_xlabel("% of parts removed at test time", color=MUTED, fontsize=9)
    as_written(panel.legend(frameon=False, fontsize=9, labelcolor=INK))
    save(made, path)


def removal_sheet(curves: Curves) -> Sheet:
    """A row for each model, a column for each share."""
    shares = sorted({share for curve in curves.values() for share in curve})
    rows = tuple(
        (spoken(model), tuple(Cell(number(curve.get(share))) for share in shares))
        for model, curve in curves.items()
    )
    return Sheet(("macro AP, parts removed", *(f"{share} %" for share in shares)), rows)
