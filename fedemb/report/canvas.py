"""How all pictures look, without matplotlib's global state."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

INK, MUTED, FAINT = "#1f2328", "#6e7781", "#d8dee4"
# Okabe and Ito's colours, told apart by colour-blind readers; then their darker and lighter cousins.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#8c564b", "#7a5195", "#b5bd00", "#4d4d4d", "#17becf", "#a50026"),
)


def figure(width: float, height: float) -> Figure:
    """An empty white figure of so many inches that draws itself to memory."""
    made = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(made)
    return made


def axes(made: Figure, *position: int, **settings: Any) -> Any:
    """Axes with two thin spines and faint horizontal lines."""
    made_axes = made.add_subplot(*position, **settings)
    for side in ("top", "right"):
        made_axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        made_axes.spines[side].set_color(MUTED)
    made_axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    made_axes.grid(axis="y", color=FAINT, linewidth=0.6)
    made_axes.set_axisbelow(True)
    return made_axes


def as_written(legend: Legend) -> None:
    """Takes names in a legend as they are: a dollar sign in one begins no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


@contextmanager
def any_letter() -> Iterator[None]:
    """Draws a letter that the font lacks as a box, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def save(made: Figure, path: Path) -> None:
    """Writes a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with any_letter():
        made.savefig(path, format="png", bbox_inches="tight", pad_inches=0.08)
