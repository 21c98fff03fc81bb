"""What a summary says, as sheets and lines of text: the terminal and the page only lay it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedemb.evaluate.direction import lower_is_better
from fedemb.report.format import NOTHING, duration, number, size

FEDERATED = "federated"


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
    """Metrics of the federated model and of what it stands beside; None where nothing was measured."""
    models = {FEDERATED: summary.get("metrics") or {}, **(summary.get("baselines") or {})}
    models = {name: metrics for name, metrics in models.items() if metrics}
    names = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    if not names:
        return None
    best = {name: _best([metrics.get(name) for metrics in models.values()], name) for name in names}
    rows = tuple(
        (spoken(model), tuple(_cell(metrics.get(name), best[name]) for name in names))
        for model, metrics in models.items()
    )
    return Sheet(("", *map(with_arrow, names)), rows)


def spreads(summary: Mapping[str, Any]) -> Sheet | None:
    """Mean, standard deviation and worst decile over clients; None where nothing was measured per client."""
    models = {FEDERATED: summary.get("per_client") or {}, **(summary.get("baselines_per_client") or {})}
    names = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    rows = []
    for name in names:
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
    parts = [f"{spoken} {privacy[name]}" for name, spoken in names.items() if privacy.get(name) is not None]
    if privacy.get("private") is False:
        parts.append("NOT PRIVATE: the noise is reproducible from the seed")
    return ", ".join([text, *parts])


def _best(values: Sequence[float | None], metric: str) -> float | None:
    """The best of several values; None where there is nothing to compare."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return min(known) if lower_is_better(metric) else max(known)


def _cell(value: float | None, best: float | None) -> Cell:
    return Cell(NOTHING if value is None else number(value), value is not None and value == best)


def spoken(model: str) -> str:
    """What to call a model."""
    return "local-only" if model == "local_only" else model.replace("_", " ")


def with_arrow(metric: str) -> str:
    """A metric's name, and which way it is better.

    >>> with_arrow("map"), with_arrow("mean_rank")
    ('map ↑', 'mean_rank ↓')
    """
    return f"{metric} {'↓' if lower_is_better(metric) else '↑'}"
