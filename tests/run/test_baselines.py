"""Baselines: pooled training is a federation of one; local-only is every client by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedemb.aggregate.plain import Plain
from fedemb.build import Parts, build
from fedemb.config import compose_config
from fedemb.errors import SettingError
from fedemb.evaluate.choose import measurable
from fedemb.evaluate.measure import measured
from fedemb.flower.client_app import PERSONAL, make_client_app
from fedemb.flower.records import unpack
from fedemb.run.baselines import centralized, local_only, participations, passes_of
from fedemb.run.experiment import check_baselines
from fedemb.run.in_process import in_process_grid
from fedemb.run.of_one import centralized_of_one, learns_at_server, local_only_of_one
from fedemb.run.training import Trained, train_on
from fedemb.train.personal import personal_rows, rows_of
from fedemb.train.rows import train_cohort
from tests.flower.test_strategy import CASES, SMALL, run
from tests.graphs import STEPS
from tests.reference import train_client

INTERACTIONS = [
    "data=synthetic", "data.num_clients=9", "data.num_items=40", "data.examples_per_client=8", "data.spread=0.5",
    "task=factorization", "task.dim=6", "rounds=4", "cohort=full", "train.epochs=1", "train.optimizer=sgd",
]  # fmt: skip


def quiet(line: object) -> None:
    """Nobody is told."""


def test_centralized_is_a_federation_of_one_client(tmp_path: Path) -> None:
    one_client = ["data.num_clients=1", "data.examples_per_client=80", "server.optimizer=sgd"]
    overrides = [*SMALL, *one_client, "server.learning_rate=1.0", "aggregate.rows=uniform"]
    parts = build(compose_config([*overrides, "baselines=[]"]))
    federated = run(overrides, tmp_path)
    _, tables = centralized(parts, parts.training, 3, 0, quiet)
    torch.testing.assert_close(tables["node"], federated.tables["node"], rtol=1e-7, atol=1e-10)


GRAPH = [o for o in CASES["knowledge-graph"] if not o.startswith("cohort")]
GRAPH += ["rounds=4", "train.keep_state=false"]  # the slow reference begins anew
PLAIN = ["evaluation.calibrate=[]"]  # metrics that are means over clients


@pytest.mark.parametrize("overrides", [INTERACTIONS, [*GRAPH, *PLAIN]], ids=["interactions", "graph"])
def test_local_only_is_each_client_alone(overrides: list[str]) -> None:
    parts = build(compose_config([*overrides, "baselines=[]"]))
    found = local_only(parts, parts.training, 4, quiet)
    assert found is not None
    assert parts.evaluation is not None
    num_clients, results = parts.dataset.train.num_clients, []
    for client in measurable(parts.evaluation, parts.dataset):
        tables, _ = parts.initial()
        personal = personal_rows(parts.task.tables, 0, num_clients)
        shard = parts.task.examples(parts.dataset.train.take(np.array([client])))
        alone = np.array([client])
        for number in range(1, 5):
            for updates in train_cohort(
                parts.task, tables, {}, personal, shard, alone, parts.training, 0, number
            ):
                for name, rows in updates.tables.items():
                    tables[name][rows.rows] += rows.values
        expected = parts.evaluation(tables, rows_of(personal, alone, 0, tables), alone)
        results.append(expected)
        for name, values in expected.per_client.items():
            np.testing.assert_allclose(found.per_client[name][client], values[0], rtol=1e-5, err_msg=name)
    assert len(results) >= 4
    weights = np.array([1.0 if r.weights is None else r.weights[0] for r in results])
    for name, value in found.metrics.items():
        values = np.array([result.metrics[name] for result in results])
        mine = ~np.isnan(values)
        assert value == pytest.approx(np.average(values[mine], weights=weights[mine]), rel=1e-5), name


def trained_on_nodes(overrides: list[str], num_nodes: int, tmp_path: Path) -> tuple[Parts, Trained, list]:
    """A run with what its nodes keep for their clients."""
    config = compose_config([*overrides, f"runner.num_nodes={num_nodes}"])
    parts = build(config)
    app = make_client_app(
        lambda c: parts.host(int(c.node_config["partition-id"]), num_nodes), lambda c: parts.digest
    )
    grid, trained = in_process_grid(app, num_nodes), Trained(*parts.initial())
    train_on(grid, parts, config, tmp_path, quiet, trained)
    kept = [
        {name: value.clone() for name, value in unpack(context.state[PERSONAL]).items()}
        for context in grid.contexts.values()
    ]
    return parts, trained, kept


SUMS = [o for o in CASES["in-turn"] if o != "rounds=4"] + ["rounds=8"]
WHOLE = [*(o for o in SUMS if not o.startswith("train.share")), "task.drop=0", "task.drop_values=0"]
GAUSSIAN = [o for o in CASES["gaussian-labels"] if not o.startswith(("cohort", "aggregate.rows"))]


@pytest.mark.parametrize("overrides", [WHOLE, GAUSSIAN], ids=["sums", "gaussian"])
def test_pooled_data_and_their_server_are_a_federation_of_one(overrides: list[str], tmp_path: Path) -> None:
    """With full participation, sums over clients are those of one: where every round trains on all examples."""
    parts = build(compose_config([*overrides, "baselines=[]"]))
    assert learns_at_server(parts.training)
    federated = run(overrides, tmp_path)
    lines: list[Mapping[str, Any]] = []
    found = centralized_of_one(parts, parts.training, compose_config(overrides).rounds, 0, lines.append)
    assert found is not None
    assert federated.evaluated is not None
    assert [line["round"] for line in lines] == list(range(1, len(lines) + 1))
    for name, value in federated.evaluated.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=0.02, abs=0.02, nan_ok=True), name


def test_local_only_of_one_is_a_run_of_each_client(tmp_path: Path) -> None:
    parts = build(compose_config([*GAUSSIAN, "baselines=[]"]))
    found = local_only_of_one(parts, parts.training, 3, quiet)
    assert found is not None
    assert parts.evaluation is not None
    for client in measurable(parts.evaluation, parts.dataset)[:2]:
        alone = np.array([client])
        shards = parts.task.examples(parts.dataset.train.take(alone))
        tables, dense = parts.initial()
        optimizer = parts.optimizer_of()
        for round in (1, 2, 3):
            chunks = train_cohort(
                parts.task, tables, dense, {}, shards, alone, parts.training, parts.seed, round
            )
            aggregator = Plain(parts.shared, "sum")
            for updates in chunks:
                aggregator.add(updates, tables)
            optimizer.step(tables, dense, aggregator.finish(tables))
        own = measured(parts.evaluation, {**tables, **dense}, {}, alone)
        assert found.per_client["accuracy"][client] == pytest.approx(own.per_client["accuracy"][0])


def test_the_budget_counts_the_share_of_the_examples() -> None:
    parts = build(compose_config([*SUMS, "baselines=[]"]))
    assert passes_of(parts, parts.training, 8) == 2


def test_fine_tuned_is_every_client_going_on_with_its_own_copy(tmp_path: Path) -> None:
    overrides = [*GRAPH, "train.fine_tune_epochs=3", "baselines=[fine_tuned]"]
    parts, trained, (kept,) = trained_on_nodes(overrides, 1, tmp_path)
    found = trained.fine_tuned
    assert found is not None
    assert trained.evaluated is not None
    assert parts.evaluation is not None
    clients = parts.dataset.train.num_clients
    relations = kept["relation/points"].view(clients, len(STEPS), -1)
    training = replace(parts.training, epochs=3)
    for client in range(clients):
        alone = np.array([client])
        shard = parts.task.examples(parts.dataset.train.take(alone))
        own = {"relation": relations[client]}
        result = train_client(parts.task, trained.tables, {}, own, shard, client, training, parts.seed, 5)
        personal = {"relation": result.personal["relation"][None]}
        expected = measured(parts.evaluation, result.tables, personal, alone)
        assert list(expected.per_client) == list(found.per_client)
        for name, values in expected.per_client.items():
            np.testing.assert_allclose(found.per_client[name][client], values[0], rtol=1e-6, err_msg=name)
    assert found.weights is not None
    assert found.clients.tolist() == list(range(clients))
    sizes = parts.dataset.held_out["test"].sizes
    assert found.weights.tolist() == sizes.tolist()
    micro = np.nansum(found.per_client["mrr"] * sizes) / sizes.sum()
    assert found.metrics["mrr"] == pytest.approx(micro)
    assert found.metrics != trained.evaluated.metrics


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_measuring_fine_tuned_changes_nothing(num_nodes: int, tmp_path: Path) -> None:
    _, plain, rows = trained_on_nodes([*GRAPH, "baselines=[]"], num_nodes, tmp_path)
    _, tuned, rows_after = trained_on_nodes([*GRAPH, "baselines=[fine_tuned]"], num_nodes, tmp_path)
    _, one_node, _ = trained_on_nodes([*GRAPH, "baselines=[fine_tuned]"], 1, tmp_path)
    assert plain.fine_tuned is None
    assert plain.evaluated is not None
    assert tuned.evaluated is not None
    assert tuned.fine_tuned is not None
    assert one_node.fine_tuned is not None
    assert all(torch.equal(table, plain.tables[name]) for name, table in tuned.tables.items())
    for before, after in zip(rows, rows_after, strict=True):
        assert before.keys() == after.keys() == {"relation/points", "relation/known"}
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    np.testing.assert_equal(dict(tuned.evaluated.per_client), dict(plain.evaluated.per_client))
    for name, values in one_node.fine_tuned.per_client.items():
        np.testing.assert_allclose(tuned.fine_tuned.per_client[name], values, rtol=1e-6, err_msg=name)


def test_fine_tuned_needs_something_to_measure_at_clients() -> None:
    config = compose_config([*SMALL, "baselines=[fine_tuned]"])
    with pytest.raises(SettingError, match="baselines=fine_tuned needs data that clients measure a model on"):
        check_baselines(config, build(config))


def test_fine_tuned_needs_clients_that_learn() -> None:
    config = compose_config([*GAUSSIAN, "baselines=[fine_tuned]"])
    with pytest.raises(
        SettingError, match=r"baselines=fine_tuned needs local steps .* train\.reduction=mean"
    ):
        check_baselines(config, build(config))


@pytest.mark.parametrize(
    ("cohort", "expected"),
    [(["cohort=full"], 10), (["cohort=uniform", "cohort.size=3"], 3), (["cohort=poisson"], 1)],
)
def test_the_budget_of_a_baseline_is_a_clients_own(cohort: list[str], expected: int) -> None:
    parts = build(compose_config([*INTERACTIONS, *cohort, "baselines=[]", "data.num_clients=9"]))
    eligible = int((parts.dataset.train.sizes > 0).sum())
    rounds = 10 * eligible // 9 if expected == 3 else 10
    assert participations(parts, rounds) == expected
