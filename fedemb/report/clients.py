"""Who gains from the federation: every client's metric under every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fedemb.data.vocabulary import Vocabulary
from fedemb.evaluate.direction import lower_is_better
from fedemb.report.arcs import Float64
from fedemb.report.canvas import FAINT, INK, MUTED, as_written, axes, figure, save
from fedemb.report.contents import FEDERATED, spoken, with_arrow
from fedemb.types import Evaluated, Int64

_ALONE = "local_only"
_MOST_ROWS = 40  # clients that are named; more are a distribution
_NAME_LENGTH = 24
_NUM_QUANTILES = 401
_WIDTH, _ROW_HEIGHT = 5.6, 0.19  # inches
_DOT_POINTS = 5.0
_COUNT_POINTS = 60  # from the axis to the names: room for the column of counts


@dataclass(frozen=True)
class Compared:
    """A metric of the clients that the federated model was measured on, the best first.

    Attributes:
        metric: Its name.
        clients: ``(clients,)`` ids.
        values: ``(clients,)`` per model that has any; NaN where it has none.
    """

    metric: str
    clients: Int64
    values: Mapping[str, Float64]


def compared(models: Mapping[str, Evaluated]) -> Compared | None:
    """The first metric that the federated model has per client; None where fewer than two clients have it.

    Args:
        models: Measured models by name; their clients may differ. What is not finite counts as no value.
    """
    federated = models.get(FEDERATED)
    measured = federated.per_client.items() if federated else ()
    metric = next((name for name, values in measured if np.isfinite(values).any()), None)
    if federated is None or metric is None:
        return None
    own = np.asarray(federated.per_client[metric], dtype=np.float64)
    known = np.flatnonzero(np.isfinite(own))
    if len(known) < 2:
        return None
    sign = 1 if lower_is_better(metric) else -1
    clients = federated.clients[known]
    clients = clients[np.lexsort((clients, sign * own[known]))]
    values = {name: _values(model, metric, clients) for name, model in models.items()}
    return Compared(
        metric, clients, {name: found for name, found in values.items() if np.isfinite(found).any()}
    )


def _values(model: Evaluated, metric: str, clients: Int64) -> Float64:
    """Of these clients; NaN where the model was not measured or the value is not finite."""
    found = np.full(len(clients), np.nan)
    if metric not in model.per_client or not len(model.clients):
        return found
    order = np.argsort(model.clients, kind="stable")
    place = order[np.minimum(np.searchsorted(model.clients, clients, sorter=order), len(order) - 1)]
    values = np.asarray(model.per_client[metric], dtype=np.float64)[place]
    known = (model.clients[place] == clients) & np.isfinite(values)
    found[known] = values[known]
    return found


def gains(
    found: Compared, colours: Mapping[str, str], sizes: Int64, names: Vocabulary | None, path: Path
) -> None:
    """Draws a row of dots per client, or a curve per model where there are many clients.

    Args:
        found: What to compare.
        colours: Per model, in the order of the legend; those of ``phase_colours``.
        sizes: ``(clients,)`` training examples of every client.
        names: Of all clients; None where they have none.
        path: Of the PNG.
    """
    save(gains_figure(found, colours, sizes, names), path)


def gains_figure(
    found: Compared, colours: Mapping[str, str], sizes: Int64, names: Vocabulary | None
) -> Figure:
    """The picture of ``gains``, not yet written."""
    few = len(found.clients) <= _MOST_ROWS
    made = figure(_WIDTH, _ROW_HEIGHT * (len(found.clients) + 1.5) if few else 3.4)
    made.subplots_adjust(0, 0, 1, 1)  # labels stand outside: what is written has room for them
    panel = axes(made, 1, 1, 1)
    colours = {model: colour for model, colour in colours.items() if model in found.values}
    if few:
        _draw_rows(panel, found, colours)
        _name_rows(panel, found.clients, sizes, names)
    else:
        _draw_curves(panel, found, colours)
    title = f"{found.metric.replace('_', ' ')} at each client"
    outcome = _outcome(found)
    panel.set_title(title, loc="left", fontsize=10.5, color=INK, pad=20 if outcome else 6, parse_math=False)
    _write(panel, outcome, (0, 1), "axes fraction", (0, 7), ha="left", va="baseline", color=MUTED)
    legend = panel.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, labelcolor=INK
    )
    if few:
        for dot in legend.legend_handles:
            dot.set_sizes([_DOT_POINTS**2])
    as_written(legend)
    return made


def _outcome(found: Compared) -> str:
    """How many clients the federation is good for; empty where nobody trained alone."""
    if _ALONE not in found.values:
        return ""
    gain = _gain(found, found.values[_ALONE])
    gain = gain[np.isfinite(gain)]
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    parts = [f"federated beats local-only at {better:,} of {len(gain):,} clients"]
    parts += [f"loses at {worse:,}"] if worse else []
    parts += [f"ties at {len(gain) - better - worse:,}"] if better + worse < len(gain) else []
    return ", ".join(parts)


def _gain(found: Compared, start: Float64) -> Float64:
    """How much better the federated model is, whichever way that is."""
    difference = found.values[FEDERATED] - start
    return -difference if lower_is_better(found.metric) else difference


def _draw_rows(panel: Any, found: Compared, colours: Mapping[str, str]) -> None:
    """A dot per model; the line to the federated one has the colour of its better end."""
    rows = np.arange(len(found.clients))
    federated = found.values[FEDERATED]
    start = _start(found)
    ends = np.stack((np.stack((start, rows), axis=1), np.stack((federated, rows), axis=1)), axis=1)
    better = np.where(_gain(found, start) >= 0, colours[FEDERATED], colours.get(_ALONE, MUTED))
    panel.add_collection(LineCollection(list(ends), colors=better, linewidths=1.2, alpha=0.5, zorder=2))
    sizes = _dot_sizes([found.values[model] for model in colours])
    for number, ((model, colour), size) in enumerate(zip(colours.items(), sizes, strict=True)):
        values = found.values[model]
        known = np.isfinite(values)
        panel.scatter(
            *(values[known], rows[known]),
            s=size[known],
            color=colour,
            linewidths=0,
            zorder=3 + 1 / (1 + number),  # the federated dot above all
            label=spoken(model),
        )
    panel.grid(visible=False)
    panel.grid(axis="x", color=FAINT, linewidth=0.6)
    panel.spines["left"].set_visible(False)
    panel.margins(x=0.03)
    panel.set_ylim(len(rows) - 0.35, -1.6)
    panel.set_yticks([])
    panel.set_xlabel(with_arrow(found.metric), color=MUTED, fontsize=9, parse_math=False)


def _start(found: Compared) -> Float64:
    """Where each client's line begins: at local-only, or at the worst model where there is none."""
    everything = np.stack(list(found.values.values()))
    worst = np.nanmax(everything, axis=0) if lower_is_better(found.metric) else np.nanmin(everything, axis=0)
    alone = found.values.get(_ALONE, np.full_like(worst, np.nan))
    start: Float64 = np.where(np.isfinite(alone), alone, worst)
    return start


def _dot_sizes(values: list[Float64]) -> list[npt.NDArray[Any]]:
    """Areas of the dots, the uppermost model first: one that others would hide is a ring around them."""
    spread = np.nanmax(values) - np.nanmin(values)
    sizes = []
    for number, own in enumerate(values):
        hidden = sum((np.abs(own - above) <= 0.003 * spread for above in values[:number]), np.zeros(len(own)))
        sizes.append(np.minimum(_DOT_POINTS + 1.6 * hidden, 11) ** 2)
    return sizes


def _name_rows(panel: Any, clients: Int64, sizes: Int64, names: Vocabulary | None) -> None:
    """Name and, in grey, number of training examples at the left of each row."""
    rows = [(_name(int(client), names), f"{sizes[client]:,}", INK) for client in clients]
    for row, (name, count, colour) in enumerate([("client", "examples", MUTED), *rows], start=-1):
        for text, shade, offset in ((name, colour, _COUNT_POINTS), (count, MUTED, 6)):
            place = {"ha": "right", "va": "center_baseline", "color": shade}
            _write(panel, text, (0, row), panel.get_yaxis_transform(), (-offset, 0), **place)


def _name(client: int, names: Vocabulary | None) -> str:
    """On one line, and not too long."""
    name = " ".join(names.name(client).split()) if names else f"client {client:,}"
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1].rstrip() + "…"


def _write(
    panel: Any, text: str, at: tuple[float, float], of: Any, offset: tuple[float, float], **how: Any
) -> None:
    """A small text as it is, so many points from a place."""
    panel.annotate(
        text,
        at,
        xycoords=of,
        xytext=offset,
        textcoords="offset points",
        fontsize=8.5,
        parse_math=False,
        annotation_clip=False,
        **how,
    )


def _draw_curves(panel: Any, found: Compared, colours: Mapping[str, str]) -> None:
    """Quantiles of each model, the worst clients at the left."""
    share = np.linspace(0, 1, _NUM_QUANTILES)
    for number, (model, colour) in enumerate(colours.items()):
        values = found.values[model]
        curve = np.quantile(values[np.isfinite(values)], share)
        curve = curve[::-1] if lower_is_better(found.metric) else curve
        panel.plot(
            share, curve, color=colour, linewidth=1.8, zorder=2 + 1 / (1 + number), label=spoken(model)
        )
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(PercentFormatter(1))
    panel.set_xlabel(
        f"{len(found.clients):,} clients, each curve from its worst to its best", color=MUTED, fontsize=9
    )
    panel.set_ylabel(with_arrow(found.metric), color=MUTED, fontsize=9, parse_math=False)
