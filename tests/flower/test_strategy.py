"""The same run on one node, many nodes, many waves and by value gives the same tables; bad nodes are survived."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message

from fedemb.build import build
from fedemb.config import compose_config
from fedemb.errors import RunError
from fedemb.flower.client_app import make_client_app
from fedemb.flower.records import unpack
from fedemb.flower.strategy import FederatedEmbedding
from fedemb.run import in_process
from fedemb.run.training import Trained, plan_of, train_on, train_with_runner
from tests.gallery import gallery_overrides
from tests.graphs import graph_files

SMALL = [
    "data=synthetic", "data.structure=tree", "data.num_items=90", "data.num_clients=12", "data.examples_per_client=9",
    "rounds=3", "task.dim=4", "task.negatives=5", "evaluate_every=0",
]  # fmt: skip
INTERACTIONS = [
    "data=synthetic",
    "data.num_clients=30",
    "data.num_items=60",
    "data.examples_per_client=12",
    "rounds=3",
]
CASES = {
    "hierarchical": SMALL,
    "lorentz-centroid": [
        *SMALL, "task.manifold=lorentz", "aggregate.rows=ratio", "aggregate.mean=centroid",
        "cohort=uniform", "cohort.size=5",
    ],
    "skipgram": [
        *INTERACTIONS, "task=skipgram", "task.dim=8", "cohort=poisson", "cohort.rate=0.5", "aggregate.rows=heat",
    ],
    "factorization": [*INTERACTIONS, "task=factorization", "task.dim=8", "cohort=uniform", "cohort.size=11"],
    "dynamic": [
        *INTERACTIONS, "task=dynamic", "task.dim=4", "task.slice=2 days", "cohort=uniform", "cohort.size=11",
    ],
    "dynamic-means": [
        *INTERACTIONS, "task=dynamic", "task.dim=4", "task.slice=2 days", "task.state=gated", "aggregate.rows=ratio",
    ],
    "reconstructed": [
        *INTERACTIONS, "task=factorization", "task.dim=8", "cohort=uniform", "cohort.size=11",
        "train.personal=reconstructed", "train.reconstruction_epochs=3", "train.support_share=0.5",
    ],
    "compositional": [
        *gallery_overrides(), "task.dim=8", "task.hidden=4", "cohort=uniform", "cohort.size=3", "rounds=3",
    ],
    "in-turn": [
        *gallery_overrides(), "task.dim=8", "task.hidden=4", "cohort=full", "rounds=4", "train.share=0.25",
        "train.batch_size=0", "train.reduction=sum", "train.learning_rate=1", "aggregate.weights=uniform",
        "train.dense_learning_rate=null", "data.columns.group=medium",
    ],
    "calibrated": [
        *gallery_overrides("category"), "task.dim=8", "task.hidden=4", "cohort=uniform", "cohort.size=3", "rounds=3",
        "data.validation_share=0.3", "data.test_share=0.3",
    ],
    "gaussian-labels": [
        *gallery_overrides("category"), "~data.components.height", "task=probabilistic", "task.dim=8", "rounds=3",
        "cohort=uniform", "cohort.size=3", "aggregate.rows=population", "data.validation_share=0.3",
        "data.test_share=0.3",
    ],
    "gaussian-links": [
        "data=triples", f"data.path={graph_files()}", "partition=natural", "task=probabilistic", "task.dim=8",
        "rounds=3", "task.prior_precision=2", "task.start=3", "task.scale=1",
    ],
    "knowledge-graph": [
        "data=triples", f"data.path={graph_files()}", "partition=natural", "task=knowledge_graph", "task.dim=8",
        "task.relations=personal", "task.init_scale=0.5", "train.learning_rate=1.0", "cohort=uniform", "cohort.size=3",
        "rounds=3",
    ],
}  # fmt: skip
_SEEDED = ["privacy.seeded_noise=true", "privacy.noise_multiplier=0.5"]
CASES |= {
    "example": [*SMALL, *_SEEDED, "privacy=example", "train.batch_size=4", "train.epochs=2"],
    "example-personal": [*CASES["factorization"], *_SEEDED, "privacy=example", "train.batch_size=4"],
    "central": [*CASES["skipgram"][:-1], *_SEEDED, "privacy=client_central"],
    "adaptive": [*SMALL, *_SEEDED, "privacy=client_central", "privacy.adaptive_clip.quantile=0.5"],
    "correlated": [
        *SMALL, *_SEEDED, "privacy=client_central", "privacy.bands=auto", "cohort=turns", "cohort.size=4", "rounds=6",
    ],
    "chosen-rows": [
        *CASES["factorization"], *_SEEDED, "privacy=client_central", "privacy.universe=select",
        "privacy.selection.noise_multiplier=0.2", "privacy.accountant=rdp",
    ],
    "local": [*CASES["compositional"], *_SEEDED, "privacy=local"],
    "distributed": [*SMALL, *_SEEDED, "privacy=client_distributed", "aggregate=secure"],
}  # fmt: skip


def run(overrides: list[str], tmp_path: Path) -> Trained:
    config = compose_config([*overrides, "baselines=[]"])
    parts = build(config)
    trained = Trained(*parts.initial())
    train_with_runner(parts, config, overrides, tmp_path, lambda line: None, trained)
    return trained


def close(first: Trained, second: Trained, tolerance: float = 1e-6) -> None:
    for name, table in first.tables.items():
        error = (table - second.tables[name]).norm() / table.norm()
        assert float(error) <= tolerance, name
    assert first.tally.upload_bytes == second.tally.upload_bytes
    assert first.tally.client_updates == second.tally.client_updates
    assert first.fitted.keys() == second.fitted.keys()
    for name, numbers in first.fitted.items():
        torch.testing.assert_close(numbers, second.fitted[name], rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("change", ["runner.num_nodes=4", "runner.clients_per_wave=3", "train.chunk_bytes=1"])
def test_nodes_waves_and_chunks_do_not_change_results(case: str, change: str, tmp_path: Path) -> None:
    one = run(CASES[case], tmp_path)
    start = build(compose_config([*CASES[case], "baselines=[]"])).initial()[0]
    assert any(float((one.tables[n] - start[n]).norm()) > 1e-3 for n in start), "nothing was learnt"
    other = run([*CASES[case], change], tmp_path)
    close(one, other)
    if one.evaluated is not None:
        assert other.evaluated is not None
        for name, value in one.evaluated.metrics.items():
            assert other.evaluated.metrics[name] == pytest.approx(value, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    "case",
    [
        "hierarchical",
        "factorization",
        "reconstructed",
        "knowledge-graph",
        "dynamic-means",
        "compositional",
        "calibrated",
        "in-turn",
        "gaussian-labels",
        "example",
        "adaptive",
        "chosen-rows",
        "local",
        "distributed",
    ],
)
def test_by_value_equals_by_reference(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(CASES[case], tmp_path)
    config = compose_config([*CASES[case], "baselines=[]", "runner.num_nodes=3"])
    parts = build(config)
    app = make_client_app(lambda c: parts.host(int(c.node_config["partition-id"]), 3), lambda c: parts.digest)
    trained = Trained(*parts.initial())
    config.runner.name = "by value"
    train_on(in_process.in_process_grid(app, 3), parts, config, tmp_path, lambda line: None, trained)
    close(one, trained)


def failing_grid(parts, fault: str) -> in_process.InProcessGrid:
    """Three nodes, of which the middle one misbehaves in training."""
    app = make_client_app(lambda c: parts.host(int(c.node_config["partition-id"]), 3), lambda c: parts.digest)

    def misbehaving(message: Message, context) -> Message:
        middle = context.node_config["partition-id"] == 1 and message.metadata.message_type == "train"
        if middle and fault == "raises":
            raise OSError("disk on fire")
        reply = app(message, context)
        if middle and fault == "nan":
            reply.content["updates"]["values/node"].data[0, 0] = float("nan")
        if middle and fault == "garbage":
            array = reply.content["updates"]["values/node"]
            array.data, array.stype = b"garbage", "pickle"
        if middle and fault == "shape":
            array = reply.content["updates"]["values/node"]
            array.data = array.data[:, :1]
        return reply

    grid = in_process.in_process_grid(app, 3, raise_errors=False)
    grid.app = misbehaving  # type: ignore[assignment]
    return grid


@pytest.mark.parametrize(
    ("fault", "lost", "reason"),
    [
        ("raises", 4, "disk on fire"),
        ("nan", 1, "NaN or infinity"),
        ("garbage", 4, "must be fedemb.raw"),
        ("shape", 4, "wrong shape"),
    ],
)
def test_a_bad_node_is_counted_and_the_run_goes_on(
    fault: str, lost: int, reason: str, tmp_path: Path
) -> None:
    config = compose_config([*SMALL, "rounds=2", "baselines=[]", "runner.num_nodes=3"])
    parts = build(config)
    trained, lines = Trained(*parts.initial()), []
    train_on(failing_grid(parts, fault), parts, config, tmp_path, lines.append, trained)
    assert trained.tally.client_updates == 2 * (12 - lost)
    assert sum(trained.tally.rejected.values()) == 2 * lost
    assert all(reason in text for text in trained.tally.rejected)
    assert set(lines[0]["rejected"]) <= {str(c) for c in range(4, 8)}
    assert all(torch.isfinite(table).all() for table in trained.tables.values())


@pytest.mark.parametrize("fault", ["nan", "raises"])
def test_who_was_refused_is_not_told_where_cohorts_are_secret(fault: str, tmp_path: Path) -> None:
    private = ["privacy=client_central", "privacy.metrics=none", "cohort=poisson", "cohort.rate=0.9"]
    config = compose_config([*SMALL, *private, "rounds=2", "baselines=[]", "runner.num_nodes=3"])
    parts = build(config)
    trained, lines = Trained(*parts.initial()), []
    train_on(failing_grid(parts, fault), parts, config, tmp_path, lines.append, trained)
    assert trained.tally.rejected
    assert all("rejected" not in line and line["client_updates"] is None for line in lines)
    assert all(torch.isfinite(table).all() for table in trained.tables.values())


def test_a_round_without_any_update_ends_the_run(tmp_path: Path) -> None:
    config = compose_config([*SMALL, "baselines=[]"])
    parts = build(config)

    def fail(message: Message, context) -> Message:
        if message.metadata.message_type == "train":
            raise OSError("no power")
        return app(message, context)

    app = make_client_app(lambda c: parts.host(0, 1), lambda c: parts.digest)
    grid = in_process.in_process_grid(app, 1, raise_errors=False)
    grid.app = fail  # type: ignore[assignment]
    with pytest.raises(RunError, match=r"round 1: none of 12 clients sent a usable update.*no power"):
        train_on(grid, parts, config, tmp_path, lambda line: None, Trained(*parts.initial()))


def test_flowers_own_calls_make_the_same_round(tmp_path: Path) -> None:
    config = compose_config([*SMALL, "rounds=1", "baselines=[]", "runner.num_nodes=3"])
    parts = build(config)
    app = make_client_app(lambda c: parts.host(int(c.node_config["partition-id"]), 3), lambda c: parts.digest)
    whole = run([*SMALL, "rounds=1"], tmp_path)
    grid, trained = in_process.in_process_grid(app, 3), Trained(*parts.initial())
    plan = plan_of(parts, config, parts.optimizer_of(), grid)
    strategy = FederatedEmbedding(plan, trained.tables, trained.dense, lambda line: None)
    strategy.prepare(grid)
    messages = strategy.configure_train(1, strategy.model(), ConfigRecord(), grid)
    arrays, metrics = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert arrays is not None
    assert metrics is not None
    assert metrics["loss"] > 0
    assert torch.equal(unpack(arrays)["node"], whole.tables["node"])


def test_nodes_set_up_otherwise_are_refused(tmp_path: Path) -> None:
    config = compose_config([*SMALL, "baselines=[]"])
    parts = build(config)
    app = make_client_app(lambda c: parts.host(0, 1), lambda c: "another digest")
    with pytest.raises(RunError, match="set up for another run: its digest another digest"):
        train_on(
            in_process.in_process_grid(app, 1), parts, config, tmp_path, print, Trained(*parts.initial())
        )


def test_resumed_run_equals_uninterrupted_one(tmp_path: Path) -> None:
    for case in (
        "hierarchical",
        "factorization",
        "reconstructed",
        "knowledge-graph",
        "dynamic-means",
        "compositional",
        "calibrated",
        "in-turn",
        "gaussian-labels",
    ):
        folder = tmp_path / case
        base = [*CASES[case], "server.optimizer=yogi", "checkpoint_every=2"]
        whole = run([*base, "rounds=4"], folder / "whole")
        run([*base, "rounds=2"], folder / "first")
        assert list((folder / "first" / "checkpoint").glob("round-000002.safetensors"))
        rest = run([*base, "rounds=4", f"resume={folder / 'first'}"], folder / "second")
        for name, table in whole.tables.items():
            assert torch.equal(table, rest.tables[name])
        assert rest.tally.client_updates == whole.tally.client_updates
        assert whole.evaluated is not None
        assert rest.evaluated is not None
        np.testing.assert_equal(dict(rest.evaluated.metrics), dict(whole.evaluated.metrics))
