"""evaluate/spread.py and direction.py: what the end table says about clients."""

import numpy as np
import pytest

from fedemb.evaluate.direction import lower_is_better
from fedemb.evaluate.spread import spread


def test_ignores_clients_without_a_value() -> None:
    values = np.append(np.arange(40.0), [np.nan] * 7)
    result = spread(values)
    assert result["mean"] == pytest.approx(19.5)
    assert result["std"] == pytest.approx(np.arange(40.0).std())
    assert result["worst_decile"] == pytest.approx(np.mean([0, 1, 2, 3]))


def test_the_worst_are_the_highest_where_lower_is_better() -> None:
    assert spread(np.arange(40.0)[::-1], higher_is_better=False)["worst_decile"] == pytest.approx(37.5)


@pytest.mark.parametrize(("clients", "worst"), [(1, 0.0), (9, 0.0), (19, 0.0), (20, 0.5)])
def test_the_worst_tenth_is_at_least_one_client(clients: int, worst: float) -> None:
    assert spread(np.arange(float(clients)))["worst_decile"] == worst


def test_nothing_known_is_nan_without_a_warning() -> None:
    for values in (np.array([]), np.full(3, np.nan)):
        result = spread(values)
        assert set(result) == {"mean", "std", "worst_decile"}
        assert all(np.isnan(value) for value in result.values())
    assert spread(np.array([1.0, np.inf]))["mean"] == np.inf


def test_one_metric_at_a_time() -> None:
    with pytest.raises(ValueError, match=r"\(clients,\), got shape \(2, 3\)"):
        spread(np.zeros((2, 3)))


@pytest.mark.parametrize("name", ["mean_rank", "test/loss", "log_loss", "ece", "nll_calibrated", "rmse@all"])
def test_lower_is_better(name: str) -> None:
    assert lower_is_better(name)


@pytest.mark.parametrize(
    "name", ["map", "ndcg@10", "mean_reciprocal_rank", "accuracy", "recency", "glossary"]
)
def test_higher_is_better(name: str) -> None:
    assert not lower_is_better(name)
