"""Flower's simulation engine with real Ray workers gives the tables of the in-process run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flower.test_strategy import CASES, close, run

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedemb[simulation]'")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["hierarchical", "factorization"])
def test_simulation_equals_in_process(case: str, tmp_path: Path) -> None:
    one = run(CASES[case], tmp_path)
    other = run([*CASES[case], "runner=simulation", "runner.num_nodes=3"], tmp_path)
    ray.shutdown()
    close(one, other)
    assert one.evaluated is not None
    assert other.evaluated is not None
    for name, value in one.evaluated.metrics.items():
        assert other.evaluated.metrics[name] == pytest.approx(value, rel=1e-6, nan_ok=True)
