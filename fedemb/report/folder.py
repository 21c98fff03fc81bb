"""The pictures of a run folder and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedemb.evaluate.drift import Drift
from fedemb.report.branches import branches
from fedemb.report.clients import compared, gains
from fedemb.report.contents import FEDERATED
from fedemb.report.disk import poincare_disk
from fedemb.report.drift import draw_drift, neighbour_sheet, write_moved, write_neighbours
from fedemb.report.html import write_report
from fedemb.report.metrics_log import read_metrics
from fedemb.report.phases import phase_colours
from fedemb.report.plots import convergence
from fedemb.report.projection import to_disk
from fedemb.report.reliability import draw_reliability, draw_risk
from fedemb.report.removal import draw_removal, removal_curves, removal_sheet
from fedemb.types import Dataset, Evaluated, Table

_MOST_NODES = 100_000


def draw(
    folder: Path,
    summary: Mapping[str, Any],
    dataset: Dataset,
    tables: tuple[Table, ...],
    points: Mapping[str, Tensor],
    models: Mapping[str, Evaluated],
    config: str,
    drift: Drift | None = None,
) -> None:
    """Writes ``convergence.png``, ``clients.png`` where clients were measured, ``disk.png`` for a hyperbolic
    taxonomy that can be drawn, ``drift.png``, ``neighbours.csv`` and ``moved.csv`` where rows moved through time,
    ``removal.png`` where parts of records were removed, ``reliability.png`` where probabilities were calibrated,
    ``risk.png`` where there are uncertainties, and ``report.html``.

    Pictures that an earlier part of the run left go.

    Args:
        folder: The run folder, with its metrics.
        summary: As in ``summary.json``.
        dataset: What was learnt from.
        tables: The shared tables.
        points: Their rows.
        models: The federated model and what stands beside it, measured.
        config: The composed configuration as YAML.
        drift: How rows of the main table moved through time.
    """
    plots = [
        folder / f"{name}.png"
        for name in ("convergence", "clients", "disk", "drift", "removal", "reliability", "risk")
    ]
    for plot in plots:
        plot.unlink(missing_ok=True)
    metrics = read_metrics(folder)
    convergence(metrics, plots[0])
    colours = phase_colours([*(str(line.get("phase", FEDERATED)) for line in metrics), *models])
    if found := compared(models):
        gains(found, colours, dataset.train.sizes, dataset.clients, plots[1])
    main = tables[0]
    taxonomy = dataset.taxonomy
    if taxonomy is not None and main.manifold.curvature < 0 and main.num_rows <= _MOST_NODES:
        ball = main.manifold.to_ball(points[main.name].detach().cpu()).numpy()
        if np.isfinite(ball).all():
            shown = to_disk(ball)
            labels, roots = branches(taxonomy)
            vocabulary = dataset.vocabularies[main.entity]
            names = vocabulary.to_list()
            edges = np.stack([taxonomy.child[taxonomy.direct], taxonomy.parent[taxonomy.direct]], axis=1)
            poincare_disk(
                shown.points, edges, names, labels, [names[root] for root in roots], plots[2], shown.note
            )
    more = []
    if drift is not None:
        vocabulary = dataset.vocabularies[main.entity]
        draw_drift(drift, vocabulary, plots[3])
        write_neighbours(drift, vocabulary, folder / "neighbours.csv")
        write_moved(drift, vocabulary, folder / "moved.csv")
        more.append(neighbour_sheet(drift, vocabulary))
    curves = removal_curves({name: model.metrics for name, model in models.items()})
    if curves:
        draw_removal(curves, colours, plots[4])
        more.append(removal_sheet(curves))
    found_curves = summary.get("calibration") or {}
    draw_reliability(found_curves, plots[5])
    draw_risk(found_curves, colours, plots[6])
    write_report(folder, summary, config, plots, more)
