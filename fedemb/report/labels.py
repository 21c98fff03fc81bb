"""Where to write names so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedemb.report.arcs import Float64
from fedemb.report.canvas import any_letter

_FONT_SIZE = 9
_DISTANCES = (12.0, 18.0, 28.0, 42.0, 60.0, 85.0)  # points
_NUM_DIRECTIONS = 16


@dataclass(frozen=True)
class Label:
    """A node's name, drawn beside it."""

    node: int
    text: str
    colour: str


def place_labels(axes: Any, points: Float64, labels: Sequence[Label]) -> list[tuple[float, float]]:
    """Offset of each label's centre from its node, in points.

    One after another each goes where it covers no label, no labelled node and, if that can be, few nodes,
    near its own node. A label that finds no free place at all overlaps as little as it can.

    Args:
        axes: With final limits, on a figure with an Agg canvas.
        points: ``(nodes, 2)`` in data coordinates.
        labels: The most important first.
    """
    per_point = axes.figure.dpi / 72
    pixels = axes.transData.transform(points)
    anchors = pixels[[label.node for label in labels]]
    frame = axes.get_window_extent()
    taken = [_box(anchor, (8 * per_point, 8 * per_point)) for anchor in anchors]
    offsets = []
    for label, anchor in zip(labels, anchors, strict=True):
        extent = _extent(axes, label.text)
        best = min(
            _candidates(extent / per_point),
            key=lambda o: _cost(o, per_point, anchor, extent, taken, pixels, frame),
        )
        taken.append(_box(anchor + np.array(best) * per_point, extent))
        offsets.append(best)
    return offsets


def _extent(axes: Any, text: str) -> Float64:
    """Width and height in pixels."""
    drawn = axes.text(0, 0, text, fontsize=_FONT_SIZE, parse_math=False)
    with any_letter():
        box = drawn.get_window_extent(axes.figure.canvas.get_renderer())
    drawn.remove()
    return np.array([box.width + 6, box.height + 4])


def _candidates(extent: Float64) -> list[tuple[float, float]]:
    """Offsets in all directions: the label's near edge, not its centre, is at the given distance."""
    angles = np.arange(_NUM_DIRECTIONS) * (2 * np.pi / _NUM_DIRECTIONS)
    return [
        (float(np.cos(a) * (d - 8 + extent[0] / 2)), float(np.sin(a) * (d - 4 + extent[1] / 2)))
        for d in _DISTANCES
        for a in angles
    ]


def _box(centre: Float64, extent: Any) -> Float64:
    half = np.asarray(extent) / 2
    return np.concatenate((centre - half, centre + half))


def _overlap(a: Float64, b: Float64) -> float:
    """Common area."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(sides, 0)))


def _cost(
    offset: tuple[float, float],
    per_point: float,
    anchor: Float64,
    extent: Float64,
    taken: Sequence[Float64],
    pixels: Float64,
    frame: Any,
) -> float:
    box = _box(anchor + np.array(offset) * per_point, extent)
    covered = sum(_overlap(box, other) for other in taken)
    inside = _overlap(box, np.array([frame.x0, frame.y0, frame.x1, frame.y1]))
    outside = float(np.prod(extent)) - inside
    num_nodes = int(((pixels > box[:2]) & (pixels < box[2:])).all(1).sum())
    return 1000 * covered + 1000 * outside + 8 * num_nodes + float(np.hypot(*offset))
