"""How far probabilities can be trusted, before calibration and after: what clients add up, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.errors import DataError
from fedemb.evaluate.answers import Answers
from fedemb.evaluate.calibration import MAPS, calibrated, fit
from fedemb.evaluate.fine_bins import FIXED, fixed
from fedemb.evaluate.reliability import curve_of, errors_per_client, reliability_counts
from fedemb.evaluate.selective import risk_at
from fedemb.types import Float, Int64

BEFORE = "before"
PREFIX = "calibration/"  # of the names of fitted numbers, among tables
_COVERAGES = np.arange(1, 101) / 100


@dataclass(frozen=True)
class Calibration:
    """What is wanted of calibration.

    Attributes:
        maps: Names in ``calibration.MAPS``.
        alpha: One minus the coverage of conformal sets.
        bins: Groups of a reliability diagram, and of histogram binning.
        required: Whether it is an error that it is not possible.
    """

    maps: tuple[str, ...]
    alpha: float
    bins: int
    required: bool

    @staticmethod
    def of(calibrate: Any, alpha: float, bins: int) -> Calibration | None:
        """From settings: ``calibrate`` is ``auto``, or a list of maps; nothing is wanted where that is empty.

        Raises:
            ValueError: If one is out of range.
        """
        names = MAPS if calibrate == "auto" else calibrate
        if not isinstance(names, Sequence) or isinstance(names, str) or not set(names) <= set(MAPS):
            raise ValueError(
                f"evaluation.calibrate must be auto, or a list of {', '.join(MAPS)}, got {calibrate!r}"
            )
        if not 0 < alpha < 1:
            raise ValueError(
                f"evaluation.alpha must be in (0, 1), got {alpha}; 0.1 makes sets that hold the label in nine of ten"
            )
        if bins < 1:
            raise ValueError(f"evaluation.bins must be at least 1, got {bins}; 15 is usual")
        maps = tuple(name for name in MAPS if name in names)
        return Calibration(maps, float(alpha), bins, calibrate != "auto") if maps else None


@dataclass(frozen=True)
class Judged:
    """Records' probabilities after a map.

    Attributes:
        log_odds: ``(records,)`` of what is believed.
        nll, brier: ``(records,)``.
    """

    log_odds: Float
    nll: Float
    brier: Float


def fitted_maps(sums: Mapping[str, Int64], wanted: Calibration) -> dict[str, Tensor]:
    """The numbers of every map that is wanted, named to stand among tables."""
    return {PREFIX + name: torch.from_numpy(fit(name, sums, wanted.bins)) for name in wanted.maps}


def numbers_of(tables: Mapping[str, Tensor], name: str) -> Float:
    """What was fitted under this name.

    Raises:
        ValueError: If nothing was.
    """
    if PREFIX + name not in tables:
        raise ValueError(f"{name} must be fitted before it is used: see evaluate.measure.measured")
    return np.asarray(tables[PREFIX + name].cpu().numpy())


def judge(answers: Answers, tables: Mapping[str, Tensor], maps: Sequence[str]) -> dict[str, Judged]:
    """The answers before, and after each map."""
    found = {BEFORE: Judged(answers.log_odds, *answers.losses(answers.log_odds))}
    for name in maps:
        after, log_odds = calibrated(name, numbers_of(tables, name), answers)
        found[name] = Judged(log_odds, *after.losses(log_odds))
    return found


def joined(parts: Sequence[Mapping[str, Judged]]) -> dict[str, Judged]:
    """Records of all parts, one after another."""
    return {
        name: Judged(
            *(
                np.concatenate([getattr(part[name], field) for part in parts])
                for field in ("log_odds", "nll", "brier")
            )
        )
        for name in parts[0]
    }


def judged_sums(judged: Mapping[str, Judged], hit: Int64) -> dict[str, Int64]:
    """What clients add up: reliability by fine bins, and ``(2,)`` losses, ``fixed``."""
    sums = {}
    for name, one in judged.items():
        sums[f"reliability/{name}"] = reliability_counts(one.log_odds, hit)
        sums[f"losses/{name}"] = np.array([fixed(one.nll).sum(), fixed(one.brier).sum()])
    return sums


def judged_metrics(sums: Mapping[str, Int64], bins: int) -> dict[str, float]:
    """``ece``, ``nll`` and ``brier`` over all records, and the same after each map; NaN without records."""
    found: dict[str, dict[str, float]] = {"ece": {}, "nll": {}, "brier": {}}
    for key, counts in sums.items():
        kind, _, name = key.partition("/")
        if kind != "reliability":
            continue
        total = int(counts[0].sum())
        nll, brier = sums[f"losses/{name}"] / (FIXED * total) if total else (np.nan, np.nan)
        for metric, value in (("ece", curve_of(counts, bins).error), ("nll", nll), ("brier", brier)):
            found[metric][named(metric, name)] = float(value)
    return {name: value for values in found.values() for name, value in values.items()}


def judged_per_client(
    judged: Mapping[str, Judged],
    hit: Int64,
    client: Int64,
    num_clients: int,
    bins: int,
    tables: Mapping[str, Tensor],
) -> dict[str, Float]:
    """``ece`` ``(clients,)`` of each client by itself, before and after each map, and the temperature that it has."""
    found = {
        named("ece", name): errors_per_client(one.log_odds, hit, client, num_clients, bins)
        for name, one in judged.items()
    }
    if "temperature" in judged:
        there = np.bincount(client, minlength=num_clients) > 0
        found["temperature"] = np.where(there, float(numbers_of(tables, "temperature")[0]), np.nan)
    return found


def curves(sums: Mapping[str, Int64], bins: int) -> dict[str, Any]:
    """Reliability diagrams by map and risks by uncertainty, as plain lists; what no sums are there for is left out."""
    found: dict[str, dict[str, Any]] = {"reliability": {}, "risk": {}}
    for key, counts in sums.items():
        kind, _, name = key.partition("/")
        if kind == "reliability" and counts[0].any():
            curve = curve_of(counts, bins)
            found["reliability"][name] = {
                "probability": curve.probability.tolist(),
                "frequency": curve.frequency.tolist(),
                "count": curve.count.tolist(),
            }
        if kind == "wrong" and counts.any():
            found["risk"][name] = {
                "coverage": _COVERAGES.tolist(),
                "risk": risk_at(counts, _COVERAGES).tolist(),
            }
    return {kind: of_kind for kind, of_kind in found.items() if of_kind}


def named(metric: str, map_name: str) -> str:
    """What a metric is called after a map."""
    return metric if map_name == BEFORE else f"{metric}_{map_name}"


def check_apart(validation: Sequence[Shards], test: Sequence[Shards], columns: Sequence[str]) -> None:
    """Refuses to fit on what is tested.

    Args:
        validation, test: Held-out shards.
        columns: By which records are the same.

    Raises:
        DataError: If a record stands in both.
    """
    rows = [
        np.unique(
            np.concatenate(
                [
                    np.stack([np.asarray(part.columns[c], dtype=np.int64) for c in columns], 1)
                    for part in parts
                ]
            ),
            axis=0,
        )
        for parts in (validation, test)
    ]
    twice = len(rows[0]) + len(rows[1]) - len(np.unique(np.concatenate(rows), axis=0))
    if twice:
        raise DataError(
            f"validation and test must be apart where probabilities are calibrated, but {twice} records stand in both; "
            "take them out of one, or set evaluation.calibrate=[]"
        )
