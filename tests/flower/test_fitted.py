"""Evaluations in two exchanges, over messages: rows that are reconstructed, nodes set up otherwise, later rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedemb.build import build
from fedemb.config import compose_config
from fedemb.errors import RunError
from fedemb.flower.client_app import make_client_app
from fedemb.flower.strategy import FederatedEmbedding
from fedemb.run.in_process import in_process_grid
from fedemb.run.training import Trained, plan_of, train_on
from tests.flower.test_strategy import CASES, close, run

CALIBRATED = CASES["calibrated"]


def test_reconstructed_rows_are_calibrated_too(tmp_path: Path) -> None:
    settings = [*CASES["knowledge-graph"], "train.personal=reconstructed", "train.keep_state=false"]
    one = run(settings, tmp_path)
    assert "calibration/platt" in one.fitted
    close(one, run([*settings, "runner.num_nodes=3"], tmp_path))


@pytest.mark.parametrize(
    ("others", "complaint"),
    [([0, 1], r"the server's evaluation\.calibrate"), ([1], r"the same settings of evaluation\.\*")],
)
def test_nodes_without_calibration_are_refused(others: list[int], complaint: str, tmp_path: Path) -> None:
    config = compose_config([*CALIBRATED, "baselines=[]", "runner.num_nodes=2"])
    parts, plain = build(config), build(compose_config([*CALIBRATED, "evaluation.calibrate=[]"]))

    def host(context):
        node = int(context.node_config["partition-id"])
        return (plain if node in others else parts).host(node, 2)

    app = make_client_app(host, lambda c: parts.digest)
    with pytest.raises(RunError, match=complaint):
        train_on(
            in_process_grid(app, 2), parts, config, tmp_path, lambda line: None, Trained(*parts.initial())
        )


def test_what_was_fitted_goes_with_the_next_round() -> None:
    config = compose_config([*CALIBRATED, "baselines=[]"])
    parts = build(config)
    app = make_client_app(lambda c: parts.host(0, 1), lambda c: parts.digest)
    grid, optimizer = in_process_grid(app, 1), parts.optimizer_of()
    strategy = FederatedEmbedding(
        plan_of(parts, config, optimizer, grid), *parts.initial(), lambda line: None
    )
    strategy.prepare(grid)
    strategy.train_round(grid, 1)
    strategy.evaluate(grid, 1)
    first = strategy.fitted
    assert sorted(first)[0] == "calibration/conformal"
    strategy.train_round(grid, 2)
    assert strategy.fitted == {}
    strategy.evaluate(grid, 2)
    assert not torch.equal(strategy.fitted["calibration/isotonic"], first["calibration/isotonic"])


def test_a_plain_evaluation_is_not_asked_to_fit(tmp_path: Path) -> None:
    config = compose_config([*CALIBRATED, "baselines=[]", "evaluation.calibrate=[]"])
    parts = build(config)
    app = make_client_app(lambda c: parts.host(0, 1), lambda c: parts.digest)
    kinds = []

    def heard(message, context):
        kinds.append(message.metadata.message_type)
        return app(message, context)

    grid, trained = in_process_grid(app, 1), Trained(*parts.initial())
    grid.app = heard  # type: ignore[assignment]
    train_on(grid, parts, config, tmp_path, lambda line: None, trained)
    assert trained.fitted == {}
    assert "query.fit" not in kinds
    assert trained.evaluated is not None
    assert "accuracy" in trained.evaluated.metrics
