"""report/reliability.py and the sheets of calibration: curves from sums, rows for metrics, columns for maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedemb.evaluate.confidence import curves
from fedemb.evaluate.fine_bins import counted
from fedemb.evaluate.reliability import reliability_counts
from fedemb.report.contents import calibration, results, spreads
from fedemb.report.reliability import draw_reliability, draw_risk

SUMMARY = {
    "metrics": {"macro_ap": 0.5, "ece": 0.2, "ece_platt": 0.1, "nll": 1.0, "aurc_confidence": 0.3, "temperature": 2.0},
    "baselines": {"local_only": {"macro_ap": 0.4, "ece": 0.3, "aurc_confidence": 0.4, "r_auroc_a_b": 0.7}},
    "per_client": {
        name: {"mean": 0.1, "std": 0.0, "worst_decile": 0.2} for name in ("ece", "ece_platt", "own_coverage")
    },
}  # fmt: skip


def test_curves_and_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    odds, hit = rng.normal(size=400), rng.integers(0, 2, 400)
    sums = {
        "reliability/before": reliability_counts(odds, hit),
        "reliability/platt": reliability_counts(odds / 3, hit),
        "wrong/confidence": counted(-odds, 1 - hit),
        "scores": np.zeros((2, 2), dtype=np.int64),
    }
    found = curves(sums, 8)
    assert [len(found["reliability"][name]["count"]) for name in ("before", "platt")] == [8, 8]
    assert sum(found["reliability"]["before"]["count"]) == 400
    assert found["risk"]["confidence"]["risk"][-1] == pytest.approx(1 - hit.mean())
    models = {"federated": found, "local_only": {"reliability": found["reliability"]}, "mean": {}}
    assert draw_reliability(models, tmp_path / "reliability.png")
    assert draw_risk(models, {}, tmp_path / "risk.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("reliability", "risk"))
    assert curves({"scores": sums["scores"], "wrong/confidence": 0 * sums["wrong/confidence"]}, 8) == {}
    assert not draw_reliability({"mean": {}}, tmp_path / "none.png")
    assert not draw_risk({}, {}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_sheets() -> None:
    maps, uncertainties = calibration(SUMMARY)
    assert maps.header == ("probabilities", "before", "platt")
    assert [name for name, _ in maps.rows] == ["ece ↓, federated", "ece ↓, local-only", "nll ↓, federated"]
    assert [(cell.text, cell.best) for cell in maps.rows[0][1]] == [("0.2000", False), ("0.1000", True)]
    assert [cell.text for cell in maps.rows[2][1]] == ["1.000", "–"]
    assert uncertainties.header == ("uncertainty", "confidence", "a_b")
    table = results(SUMMARY)
    assert table is not None
    assert table.header == ("", "macro_ap ↑", "temperature")
    clients = spreads(SUMMARY)
    assert clients is not None
    assert [name for name, _ in clients.rows] == ["ece, federated", "own_coverage, federated"]
    assert calibration({"metrics": {"mrr": 0.5}}) == []
