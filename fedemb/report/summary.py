"""``summary.json``: what came out of a run, in one place, with a part for everything that was used."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedemb.evaluate.direction import lower_is_better
from fedemb.evaluate.spread import spread
from fedemb.types import Evaluated

_PACKAGES = ("fedemb", "flwr", "torch", "numpy", "hydra-core", "pyarrow", "safetensors")


def plain(value: Any) -> Any:
    """Numbers that JSON knows: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Versions of what a result may depend on."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "source tree"
    return found


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def per_client(evaluated: Evaluated) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and worst decile of every metric over clients."""
    return {
        name: spread(values, higher_is_better=not lower_is_better(name))
        for name, values in evaluated.per_client.items()
    }


def make_summary(
    evaluated: Evaluated | None,
    baselines: Mapping[str, Evaluated],
    communication: Mapping[str, int],
    work: Mapping[str, Any],
    config_digest: str,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The summary; a part that was not used is absent.

    Args:
        evaluated: The federated model, measured; None where there is nothing to measure it on.
        baselines: By name: what stands beside it.
        communication: ``upload_bytes``, ``download_bytes``, ``upload_bytes_dense``.
        work: ``rounds``, ``client_updates``, ``examples``, ``seconds``...
        config_digest: Of the configuration.
        extra: Parts beyond DESIGN.md's, such as ``data`` (counts of what was read and dropped).
    """
    summary: dict[str, Any] = {}
    if evaluated:
        summary["metrics"] = dict(evaluated.metrics)
    if baselines:
        summary["baselines"] = {name: dict(result.metrics) for name, result in baselines.items()}
    if evaluated and evaluated.per_client:
        summary["per_client"] = per_client(evaluated)
        spreads = {name: per_client(result) for name, result in baselines.items() if result.per_client}
        if spreads:
            summary["baselines_per_client"] = spreads
    seconds = work.get("seconds") or 0.0
    rate = work["client_updates"] / seconds if seconds else 0.0
    summary["communication"] = dict(communication)
    summary["work"] = {**work, "client_updates_per_second": rate, "peak_rss_bytes": peak_rss_bytes()}
    summary |= extra
    summary |= {"versions": versions(), "config_digest": config_digest}
    return dict(plain(summary))
