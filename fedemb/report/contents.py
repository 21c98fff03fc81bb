"""What a summary says, as sheets and lines of text: the terminal and the page only lay it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedemb.evaluate.calibration import MAPS
from fedemb.evaluate.direction import NEITHER, lower_is_better
from fedemb.report.format import NOTHING, duration, number, size

FEDERATED = "federated"
# Metrics of which there is one for each map of probabilities, or for each uncertainty.
_OF_MAPS, _OF_UNCERTAINTIES = ("ece", "nll", "brier"), ("aurc", "r_auroc", "ood_auroc")


@dataclass(frozen=True)
class Cell:
    """A text; ``best`` in its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        header: Column names, that of the rows' names first.
        rows: Name and cells of each row.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def results(summary: Mapping[str, Any]) -> Sheet | None:
    """Metrics of the federated model and of what it stands beside; None where nothing was measured.

    Those that ``calibration`` shows are left out.
    """
    models = _models(summary)
    names = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    names = [name for name in names if _variant(name) is None]
    if not names:
        return None
    best = {name: _best([metrics.get(name) for metrics in models.values()], name) for name in names}
    rows = tuple(
        (spoken(model), tuple(_cell(metrics.get(name), best[name]) for name in names))
        for model, metrics in models.items()
    )
    return Sheet(("", *map(with_arrow, names)), rows)


def _models(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    models = {FEDERATED: summary.get("metrics") or {}, **(summary.get("baselines") or {})}
    return {name: metrics for name, metrics in models.items() if metrics}


def _variant(metric: str) -> tuple[str, str] | None:
    """The metric and the map or uncertainty that it is of; None for any other.

    >>> _variant("ece"), _variant("nll_platt"), _variant("r_auroc_shift"), _variant("ece_of_something")
    (('ece', 'before'), ('nll', 'platt'), ('r_auroc', 'shift'), None)
    """
    for name in _OF_MAPS:
        after = metric.removeprefix(f"{name}_")
        if metric == name or (after != metric and after in MAPS):
            return name, "before" if metric == name else after
    for name in _OF_UNCERTAINTIES:
        if metric.startswith(f"{name}_"):
            return name, metric.removeprefix(f"{name}_")
    return None


def calibration(summary: Mapping[str, Any]) -> list[Sheet]:
    """How true probabilities are before and after each map, and what each uncertainty is worth.

    ``best`` is the best map or uncertainty of a model.
    """
    models = _models(summary)
    sheets = []
    for title, metrics in (("probabilities", _OF_MAPS), ("uncertainty", _OF_UNCERTAINTIES)):
        found: dict[tuple[str, str], dict[str, float | None]] = {}
        for model, values in models.items():
            for name, value in values.items():
                metric, kind = _variant(name) or ("", "")
                if metric in metrics:
                    found.setdefault((metric, model), {})[kind] = value
        kinds = list(dict.fromkeys(kind for row in found.values() for kind in row))
        rows = []
        for metric, model in sorted(found, key=lambda key: metrics.index(key[0])):
            row = found[metric, model]
            best = _best([row.get(kind) for kind in kinds], metric)
            rows.append(
                (
                    f"{with_arrow(metric)}, {spoken(model)}",
                    tuple(_cell(row.get(kind), best) for kind in kinds),
                )
            )
        if rows:
            sheets.append(Sheet((title, *kinds), tuple(rows)))
    return sheets


def spreads(summary: Mapping[str, Any]) -> Sheet | None:
    """Mean, standard deviation and worst decile over clients; None where nothing was measured per client."""
    models = {FEDERATED: summary.get("per_client") or {}, **(summary.get("baselines_per_client") or {})}
    names = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    rows = []
    for name in names:
        if name not in _OF_MAPS and _variant(name):  # one line for each map would drown the rest
            continue
        of_models = {model: metrics[name] for model, metrics in models.items() if name in metrics}
        means = _best([values["mean"] for values in of_models.values()], name)
        worst = _best([values["worst_decile"] for values in of_models.values()], name)
        for model, values in of_models.items():
            mean = Cell(f"{number(values['mean'])} ± {number(values['std'])}", values["mean"] == means)
            rows.append((f"{name}, {spoken(model)}", (mean, _cell(values["worst_decile"], worst))))
    return Sheet(("per client", "mean ± std", "worst decile"), tuple(rows)) if rows else None


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and text of what else there is to say: bytes, work, privacy, mishaps."""
    lines = []
    if summary.get("interrupted"):
        lines.append(("interrupted", f"after {summary.get('work', {}).get('rounds', 0):,} rounds"))
    if communication := summary.get("communication"):
        lines.append(("upload", _upload(communication)))
        lines.append(("download", size(communication["download_bytes"])))
    if work := summary.get("work"):
        lines.append(("work", _work(work)))
    if privacy := summary.get("privacy"):
        lines.append(("privacy", _privacy(privacy)))
    if rejected := summary.get("rejected"):
        reasons = ", ".join(f"{count:,} ({reason})" for reason, count in rejected.items())
        lines.append(("rejected updates", reasons))
    return lines


def _upload(communication: Mapping[str, Any]) -> str:
    upload, dense = communication["upload_bytes"], communication.get("upload_bytes_dense")
    if not dense:
        return size(upload)
    ratio = f", {dense / upload:,.1f} times as much" if upload else ""
    return f"{size(upload)} (whole tables: {size(dense)}{ratio})"


def _work(work: Mapping[str, Any]) -> str:
    parts = [f"{work['rounds']:,} rounds", f"{work['client_updates']:,} client updates"]
    rate = work.get("client_updates_per_second")
    speed = f" ({number(rate)} client updates per second)" if rate else ""
    parts.append(f"{duration(work.get('seconds') or 0.0)} of federated training{speed}")
    if work.get("total_seconds"):
        parts.append(f"{duration(work['total_seconds'])} in all")
    if work.get("peak_rss_bytes"):
        parts.append(f"peak memory {size(work['peak_rss_bytes'])}")
    return ", ".join(parts)


def _privacy(privacy: Mapping[str, Any]) -> str:
    text = (
        f"epsilon {number(privacy.get('epsilon'))} at delta {privacy.get('delta')} per {privacy.get('unit')}"
    )
    names = {"accountant": "accountant", "noise_multiplier": "noise multiplier", "clip_norm": "clip norm"}
    known = {spoken: privacy[name] for name, spoken in names.items() if privacy.get(name) is not None}
    parts = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in known.items()
    ]
    if privacy.get("stopped_before_round"):
        parts.append(f"stopped before round {privacy['stopped_before_round']}, which would exceed the budget")
    if privacy.get("private") is False:
        reasons = privacy.get("not_private_because") or ["it says nothing of the reasons"]
        parts.append(f"NOT PRIVATE as a whole: {'; '.join(reasons)}")
    return ", ".join([text, *parts])


def _best(values: Sequence[float | None], metric: str) -> float | None:
    """The best of several values; None where there is nothing to compare, or none is better than another."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or metric in NEITHER:
        return None
    return min(known) if lower_is_better(metric) else max(known)


def _cell(value: float | None, best: float | None) -> Cell:
    return Cell(NOTHING if value is None else number(value), value is not None and value == best)


def spoken(model: str) -> str:
    """What to call a model."""
    return "local-only" if model == "local_only" else model.replace("_", " ")


def with_arrow(metric: str) -> str:
    """A metric's name, and which way it is better.

    >>> with_arrow("map"), with_arrow("mean_rank"), with_arrow("temperature")
    ('map ↑', 'mean_rank ↓', 'temperature')
    """
    if metric in NEITHER:
        return metric
    return f"{metric} {'↓' if lower_is_better(metric) else '↑'}"
