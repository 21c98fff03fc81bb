"""Which way a metric is better."""

from __future__ import annotations

LOWER_IS_BETTER = frozenset(
    {
        *("loss", "mean_rank", "perplexity", "nll", "ece", "brier", "rmse", "mae", "mse", "error", "fpr95"),
        *("aurc", "set_size"),
    }
)
NEITHER = frozenset({"temperature", "coverage", "own_coverage"})  # these very names


def lower_is_better(metric: str) -> bool:
    """Whether less is more: one of ``LOWER_IS_BETTER`` stands in the name as a whole word or words.

    >>> [lower_is_better(name) for name in ("map", "link_mean_rank", "ece_calibrated", "mean_reciprocal_rank")]
    [False, True, True, False]
    """
    words = "_" + metric.lower().replace("/", "_").replace("@", "_") + "_"
    return any(f"_{name}_" in words for name in LOWER_IS_BETTER)
