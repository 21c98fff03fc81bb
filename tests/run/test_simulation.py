"""Flower's simulation engine with real Ray workers gives the tables of the in-process run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedemb.errors import SettingError
from fedemb.run.simulation import run_on_simulation
from tests.flower.test_strategy import CASES, close, run

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedemb[simulation]'")


def test_a_path_that_ray_cannot_start_from_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/a b/python")
    with pytest.raises(SettingError, match="path with a space"):
        run_on_simulation(lambda grid: None, [], 1, 1, 0, False)


@pytest.mark.slow
@pytest.mark.skipif(
    " " in sys.executable, reason="Ray NOT TESTED: it starts no workers from a path with a space"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case",
    [
        "hierarchical",
        "factorization",
        "reconstructed",
        "knowledge-graph",
        "dynamic",
        "compositional",
        "calibrated",
        "in-turn",
        "gaussian-labels",
        "gaussian-links",
    ],
)
def test_simulation_equals_in_process(case: str, tmp_path: Path) -> None:
    one = run(CASES[case], tmp_path)
    other = run([*CASES[case], "runner=simulation", "runner.num_nodes=3"], tmp_path)
    ray.shutdown()
    close(one, other)
    assert one.evaluated is not None
    assert other.evaluated is not None
    for name, value in one.evaluated.metrics.items():
        assert other.evaluated.metrics[name] == pytest.approx(value, rel=1e-6, nan_ok=True)
