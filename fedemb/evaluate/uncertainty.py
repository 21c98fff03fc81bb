"""What uncertainties tell apart: wrong answers, wrong neighbours, and what does not belong; from sums of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedemb.evaluate.fine_bins import counted
from fedemb.evaluate.selective import area_under_risk, auroc
from fedemb.types import Float, Int64

Scores = Mapping[str, Float]


def joined_scores(parts: Sequence[Scores]) -> dict[str, Float]:
    """Records of all parts, one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def uncertainty_sums(scores: Scores, hit: Int64, truth: Int64, nearest: Int64) -> dict[str, Int64]:
    """Counts ``(2, NUM_BINS)`` by name: right and wrong answers, and neighbours of the same and of another label.

    Args:
        scores: ``(records,)`` by name, higher for what is less to be trusted.
        hit: ``(records,)`` 1 where the answer is right, else 0.
        truth: ``(records,)`` labels.
        nearest: ``(records,)`` the nearest record; -1 for none.
    """
    found, has = {}, nearest >= 0
    missed = (truth[nearest] != truth)[has]
    for name, values in scores.items():
        found[f"wrong/{name}"] = counted(values, 1 - hit)
        found[f"neighbour/{name}"] = counted(values[has], missed)
    return found


def out_sums(scores: Scores) -> dict[str, Int64]:
    """Counts ``(NUM_BINS,)`` by name of records that do not belong."""
    return {
        f"out/{name}": counted(values, np.zeros(len(values), dtype=np.int64), 1)[0]
        for name, values in scores.items()
    }


def uncertainty_metrics(sums: Mapping[str, Int64]) -> dict[str, float]:
    """``aurc_*``, ``r_auroc_*`` and, where there are records that do not belong, ``ood_auroc_*`` by uncertainty."""
    found: dict[str, dict[str, float]] = {"aurc": {}, "r_auroc": {}, "ood_auroc": {}}
    for key, counts in sums.items():
        kind, _, name = key.partition("/")
        if kind == "wrong":
            found["aurc"][name] = area_under_risk(counts)
        if kind == "neighbour":
            found["r_auroc"][name] = auroc(counts)
        if kind == "out":
            found["ood_auroc"][name] = auroc(np.stack((sums[f"wrong/{name}"].sum(0), counts)))
    return {f"{metric}_{name}": value for metric, values in found.items() for name, value in values.items()}
