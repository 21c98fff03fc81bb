"""A taxonomy in the Poincaré disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke

from fedemb.report.arcs import Float64, geodesics
from fedemb.report.canvas import COLOURS, FAINT, INK, MUTED, as_written, figure, save
from fedemb.report.labels import Label, place_labels
from fedemb.types import Int64

_OTHER = "#9aa4ae"
_MAX_ROOTS = 3
_SMOOTH_EDGES = 10_000  # so many are drawn with twice the points


def poincare_disk(
    points: Float64,
    edges: Int64,
    names: Sequence[str],
    branch: Int64,
    branch_names: Sequence[str],
    path: Path,
    note: str = "",
) -> None:
    """Draws nodes in the colour of their branch, and direct edges as geodesics.

    Nodes that are not finite are left out. Labelled are the roots, and the nodes after which branches
    are named.

    Args:
        points: ``(nodes, 2)`` in the open unit disk; see ``projection.to_disk`` for more dimensions.
        edges: ``(edges, 2)`` ids of child and parent.
        names: Of the nodes.
        branch: ``(nodes,)`` position in ``branch_names``, -1 for none.
        branch_names: Of the branches.
        path: Of the PNG.
        note: Text below the picture.

    Raises:
        ValueError: If a point is outside the disk.
    """
    points = np.asarray(points, dtype=np.float64)
    known: Any = np.isfinite(points).all(axis=1)
    norm = np.linalg.norm(points[known], axis=1)
    if not (norm < 1).all():
        raise ValueError(
            f"points must be inside the unit disk, got a norm of {norm.max()}; project them first"
        )
    edges = edges[known[edges[:, 0]] & known[edges[:, 1]]]
    palette = np.array([_OTHER, *(COLOURS[index % len(COLOURS)] for index in range(len(branch_names)))])
    made = figure(9.2, 8.4)
    axes: Any = made.add_axes((0.0, 0.03, 0.86, 0.97))
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_xlim(-1.03, 1.03)
    axes.set_ylim(-1.03, 1.03)
    axes.add_patch(Circle((0, 0), 1, facecolor="#fbfcfd", edgecolor=MUTED, linewidth=0.9))
    _draw_edges(axes, points, edges, branch, palette)
    size = float(np.clip(9000 / max(1, len(points)), 0.6, 30))
    order = np.flatnonzero(known)
    order = order[np.argsort(branch[order] >= 0, kind="stable")]  # the colourless ones below
    axes.scatter(
        points[order, 0], points[order, 1], c=palette[branch[order] + 1], s=size, linewidths=0, zorder=3
    )
    _draw_labels(axes, points, _labels(edges, names, branch_names, palette, known))
    _draw_legend(made, branch, branch_names, palette)
    if note:
        made.text(0.43, 0.02, note, ha="center", va="top", fontsize=8, color=MUTED, parse_math=False)
    save(made, path)


def _draw_edges(axes: Any, points: Float64, edges: Int64, branch: Int64, palette: Any) -> None:
    """An edge has the colour of its child."""
    if not len(edges):
        return
    edges = edges[np.argsort(branch[edges[:, 0]] >= 0, kind="stable")]
    curves: Any = geodesics(
        points[edges[:, 0]], points[edges[:, 1]], 32 if len(edges) < _SMOOTH_EDGES else 16
    )
    colours = np.where(branch[edges[:, 0]] < 0, FAINT, palette[branch[edges[:, 0]] + 1])
    thin = float(np.clip(1000 / len(edges), 0.1, 1))
    axes.add_collection(
        LineCollection(curves, colors=colours, linewidths=0.3 + 0.3 * thin, alpha=0.15 + 0.35 * thin)
    )


def _labels(
    edges: Int64, names: Sequence[str], branch_names: Sequence[str], palette: Any, known: Any
) -> list[Label]:
    colour_of = dict(zip(branch_names, palette[1:], strict=True))
    found = [Label(node, name, colour_of[name]) for node, name in enumerate(names) if name in colour_of]
    num_children = np.bincount(edges[:, 1], minlength=len(names))
    num_children[edges[:, 0]] = 0  # a root is nobody's child
    roots = np.argsort(-num_children, kind="stable")[:_MAX_ROOTS]
    found = [
        Label(int(n), names[n], INK) for n in roots if num_children[n] and names[n] not in colour_of
    ] + found
    return [label for label in found if known[label.node]]


def _draw_labels(axes: Any, points: Float64, labels: Sequence[Label]) -> None:
    halo = [withStroke(linewidth=2.6, foreground="white")]
    for label in labels:
        axes.scatter(
            *points[label.node], s=34, facecolor=label.colour, edgecolor="white", linewidths=1.1, zorder=5
        )
    for label, offset in zip(labels, place_labels(axes, points, labels), strict=True):
        arrow = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3}
        axes.annotate(
            label.text,
            points[label.node],
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            color=_darker(label.colour),
            path_effects=halo,
            arrowprops=arrow if np.hypot(*offset) > 26 else None,
            zorder=6,
            parse_math=False,
        )


def _darker(colour: str) -> tuple[float, ...]:
    """A colour in which letters can be read on white."""
    red, green, blue = to_rgb(colour)
    shade = min(1.0, 0.42 / (0.3 * red + 0.59 * green + 0.11 * blue + 1e-9))
    return tuple(shade * part for part in (red, green, blue))


def _draw_legend(made: Any, branch: Int64, branch_names: Sequence[str], palette: Any) -> None:
    sizes = np.bincount(branch + 1, minlength=len(branch_names) + 1)
    entries = [(f"{name} ({sizes[i + 1]:,})", palette[i + 1]) for i, name in enumerate(branch_names)]
    if sizes[0]:
        entries.append((f"other ({sizes[0]:,})", _OTHER))
    handles = [Line2D([], [], marker="o", linestyle="", markersize=5, color=colour) for _, colour in entries]
    legend = made.legend(
        handles,
        [text for text, _ in entries],
        loc="center left",
        bbox_to_anchor=(0.86, 0.5),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handletextpad=0.3,
    )
    as_written(legend)
