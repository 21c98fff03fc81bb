"""How a metric differs from client to client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedemb.types import Evaluation, Float, Int64, Pooled


def over_clients(per_client: Mapping[str, Float], weights: Float | None = None) -> dict[str, float]:
    """Weighted mean of every metric over the clients that have it; NaN where none does.

    Args:
        per_client: ``(clients,)`` per name; NaN where a client has nothing to evaluate.
        weights: ``(clients,)``; None: all alike.

    >>> over_clients({"mrr": np.array([0.5, 1.0, np.nan])}, np.array([3.0, 1.0, 9.0]))
    {'mrr': 0.625}
    """
    means = {}
    for name, values in per_client.items():
        known = ~np.isnan(values) if weights is None else ~np.isnan(values) & (weights > 0)
        own = None if weights is None else weights[known]
        means[name] = float(np.average(values[known], weights=own)) if known.any() else float("nan")
    return means


def mean_of_each(values: npt.NDArray[Any], group: Int64, num_groups: int) -> npt.NDArray[np.float64]:
    """Mean ``(groups,)`` of each group's values, such as a client's; NaN for a group without any.

    Args:
        values: ``(values,)``.
        group: ``(values,)``, in any order.
        num_groups: How many there are.

    >>> mean_of_each(np.array([4.0, 1.0, 2.0]), np.array([2, 0, 2]), 3).tolist()
    [1.0, nan, 3.0]
    """
    sums, sizes = (np.bincount(group, weights, minlength=num_groups) for weights in (values, None))
    return np.asarray(np.divide(sums, sizes, out=np.full(num_groups, np.nan), where=sizes > 0))


def overall(
    evaluation: Evaluation | None,
    per_client: Mapping[str, Float],
    weights: Float | None,
    sums: Sequence[Mapping[str, Int64]],
) -> dict[str, float]:
    """Metrics over clients that were measured apart: what follows from their sums, and means.

    Args:
        evaluation: That measured.
        per_client: ``(clients,)`` per name.
        weights: ``(clients,)``; None: all alike.
        sums: ``Evaluated.sums`` of every group of clients.
    """
    means = over_clients(per_client, weights)
    if not sums or not sums[0] or not isinstance(evaluation, Pooled):
        return means
    pooled = evaluation.pooled(added(sums))
    return {**pooled, **means, **pooled} if evaluation.pooled_first else {**means, **pooled}


def added(sums: Sequence[Mapping[str, Int64]]) -> dict[str, Int64]:
    """The sum of counts, by name."""
    return {name: np.sum([one[name] for one in sums], axis=0) for name in sums[0]}


def spread(values: Float, higher_is_better: bool = True) -> dict[str, float]:
    """Mean, standard deviation and mean of the worst tenth of the clients.

    Args:
        values: ``(clients,)``; NaN where a client has nothing to evaluate, which is left out.
        higher_is_better: Which end is the worst.

    Returns:
        ``mean``; ``std``, that of these very clients (divided by their number); ``worst_decile``, over a
        tenth of the clients, rounded down but at least one. All are NaN where there is no value.

    Raises:
        ValueError: If there is more than one value per client.

    >>> spread(np.array([0.25, 0.75, np.nan]))
    {'mean': 0.5, 'std': 0.25, 'worst_decile': 0.25}
    """
    if np.ndim(values) != 1:
        raise ValueError(
            f"values must be (clients,), got shape {np.shape(values)}; pass one metric at a time"
        )
    known = np.sort(np.asarray(values, dtype=np.float64)[~np.isnan(values)])
    if not len(known):
        return dict.fromkeys(("mean", "std", "worst_decile"), float("nan"))
    num_worst = max(1, len(known) // 10)
    worst = known[:num_worst] if higher_is_better else known[-num_worst:]
    with np.errstate(invalid="ignore"):  # an infinite value has no standard deviation
        std = float(known.std())
    return {"mean": float(known.mean()), "std": std, "worst_decile": float(worst.mean())}
