"""Personal rows that are found anew: algorithm 1 in a slow loop, whoever else is in the cohort, and for new clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fedemb
from fedemb.build import Parts, build
from fedemb.config import compose_config
from fedemb.data.shards import Shards, offsets_of
from fedemb.errors import SettingError
from fedemb.flower.client_app import PERSONAL, make_client_app
from fedemb.manifolds import Lorentz
from fedemb.run.in_process import in_process_grid
from fedemb.run.training import Trained, train_on
from fedemb.train.initial import initial_dense, initial_table
from fedemb.train.optimizers import SGD, Adagrad, Adam
from fedemb.train.personal import PersonalRows, personal_rows, rows_of
from fedemb.train.phases import QUERY, SUPPORT, Phase, in_support
from fedemb.train.reconstruct import Reconstructing, reconstruct, train_clients
from fedemb.train.rows import LocalTraining, concatenate
from fedemb.types import Evaluated, Int64, Table, Task, Updates
from tests.reference import reconstruct_and_train, train_client
from tests.train.test_rows import TASKS, shards

PERSONAL_TASKS = [name for name, (make, _) in TASKS.items() if any(not t.shared for t in make().tables)]
CLIENTS = np.array([0, 2, 3, 6, 8])


def settings_of(share: float = 0.5, batch_size: int = 3, optimizer=SGD(), **others) -> LocalTraining:  # noqa: B008
    return LocalTraining(
        optimizer, 2, batch_size, 0.4, 4, 0.5, personal="reconstructed", support_share=share,
        reconstruction_epochs=3, reconstruction_learning_rate=0.7, **others,
    )  # fmt: skip


def model(task: Task) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tables = {t.name: initial_table(t, 0) for t in task.tables if t.shared}
    return tables, {d.name: initial_dense(d, 0).double() for d in task.dense}


def trained(task: Task, data: Shards, settings: LocalTraining, clients: Int64 = CLIENTS) -> Updates:
    tables, dense = model(task)
    examples = task.examples(data)
    return concatenate(list(train_clients(task, tables, dense, {}, examples, clients, settings, 5, 3)))


@pytest.mark.parametrize("optimizer", [SGD(), Adagrad(), Adam()], ids=["sgd", "adagrad", "adam"])
@pytest.mark.parametrize(
    ("share", "batch_size", "start"), [(0.5, 3, "initial"), (0.3, 0, "origin"), (1.0, 3, "initial")]
)
@pytest.mark.parametrize("name", PERSONAL_TASKS)
def test_equals_algorithm_1_in_a_slow_loop(
    name: str, share: float, batch_size: int, start: str, optimizer
) -> None:
    make, columns = TASKS[name]
    task, data = make(), shards(*columns)
    settings = settings_of(share, batch_size, optimizer, reconstruction_start=start)
    tables, dense = model(task)
    updates = trained(task, data, settings)
    fresh = personal_rows(task.tables, 0, 9)
    assert set(updates.tables) == {table.name for table in task.tables if table.shared}
    for position, client in enumerate(CLIENTS):
        own = {n: rows.of(np.array([client]), 5)[0] for n, rows in fresh.items()}
        if start == "origin":
            own = {
                t.name: t.manifold.origin(t.dim).expand(t.num_rows, -1) for t in task.tables if not t.shared
            }
        shard = task.examples(data).take(np.array([position]))
        expected = reconstruct_and_train(task, tables, dense, own, shard, int(client), settings, 5, 3)
        for table in task.tables:
            if not table.shared:
                continue
            rows = updates.tables[table.name]
            a, b = int(rows.offsets[position]), int(rows.offsets[position + 1])
            touched = torch.tensor(sorted(expected.moved[table.name]), dtype=torch.int64)
            assert torch.equal(rows.rows[a:b], touched), "only rows of the query set are sent"
            torch.testing.assert_close(rows.counts[a:b].float(), expected.counts[table.name][touched])
            received = tables[table.name][touched]
            end = table.manifold.exp(received, table.manifold.from_frame(received, rows.values[a:b]))
            torch.testing.assert_close(end, expected.tables[table.name][touched], rtol=1e-8, atol=1e-9)
        assert updates.metrics["examples"][position] == expected.examples
        assert float(updates.metrics["loss"][position]) == pytest.approx(expected.loss, rel=1e-9)


@pytest.mark.parametrize("name", PERSONAL_TASKS)
def test_chunks_and_company_do_not_matter(name: str) -> None:
    make, columns = TASKS[name]
    task, data = make(), shards(*columns)
    whole = trained(task, data, settings_of())
    chunked = trained(task, data, settings_of(chunk_bytes=1))
    alone = concatenate(
        [trained(task, data.take(np.array([n])), settings_of(), CLIENTS[n : n + 1]) for n in range(5)]
    )
    for other in (chunked, alone):
        assert np.array_equal(whole.clients, other.clients)
        for table, rows in whole.tables.items():
            assert torch.equal(rows.rows, other.tables[table].rows)
            assert torch.equal(rows.offsets, other.tables[table].offsets)
            torch.testing.assert_close(rows.values, other.tables[table].values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_support_and_query_divide_a_clients_examples(share: float) -> None:
    sizes = np.array([0, 1, 2, 3, 10, 400])
    offsets, clients = offsets_of(sizes), np.array([3, 4, 9, 11, 12, 40])
    masks = []
    for round in (1, 2):
        support = Phase(frozenset(), SUPPORT, share).seen(offsets, clients, 0, round)
        query = Phase(frozenset(), QUERY, share).seen(offsets, clients, 0, round)
        assert support is not None
        assert query is not None
        counts = np.add.reduceat(np.append(support, 0), offsets[:-1])[sizes > 0]
        expected = [1, *(min(max(int(n * share + 0.5), 1), n - 1) for n in sizes[2:])]
        assert counts.tolist() == expected
        both = support & query
        assert both.tolist() == [True] + [False] * (len(both) - 1), "a single example serves both"
        assert (support | query).all()
        masks.append(support)
    assert not np.array_equal(*masks), "drawn anew in each round"
    one = in_support(np.array([0, 10]), np.array([12]), share, 0, 2)
    assert np.array_equal(one, masks[1][offsets[4] : offsets[5]])
    assert Phase(frozenset(), SUPPORT, 1.0).seen(offsets, clients, 0, 1) is None


def test_measured_rows_follow_from_everything_that_a_client_knows() -> None:
    """The inner evaluation gets each client's rows, trained on all its examples with the shared part frozen."""
    task, data = TASKS["bpr"][0](), shards("item")
    tables, dense = model(task)
    received: dict[str, Tensor] = {}

    class Inner:
        on_clients = True

        def __call__(self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64):
            received.update(personal)
            return Evaluated({}, {}, clients)

    settings = settings_of(0.5)
    Reconstructing(Inner(), task, task.examples(data), settings, 5)(tables, {}, np.arange(5))
    whole = replace(settings, epochs=3, learning_rate=0.7, burn_in_rounds=0)
    start = rows_of(personal_rows(task.tables, 0, 5), np.arange(5), 5, {})["client"]
    for client in range(5):
        shard = task.examples(data).take(np.array([client]))
        expected = train_client(
            task, tables, dense, {"client": start[client]}, shard, client, whole, 5, 0, frozenset(tables)
        )
        torch.testing.assert_close(received["client"][client], expected.personal["client"])
    assert torch.equal(received["client"][1], start[1]), "who has nothing begins as everybody does"
    nobody = reconstruct(task, tables, dense, data.take(CLIENTS[:0]), CLIENTS[:0], settings, 5, 1)
    assert len(nobody["client"].points) == 0


def test_rows_at_the_origin_of_a_curved_space() -> None:
    """No task has personal rows there yet; a Lorentz origin is not zero."""
    table = Table("own", 2, 3, Lorentz(), 0.5, shared=False)
    rows = PersonalRows.at_origin(table, 4, 3)
    expected = Lorentz().origin(3).expand(2, 2, -1)
    assert torch.equal(rows.of(np.array([4, 6]), 0), expected)
    assert expected.any()


SYNTHETIC = [
    "data=synthetic", "data.num_clients=300", "data.num_items=120", "data.num_clusters=6",
    "data.clusters_per_client=1", "data.examples_per_client=15", "data.spread=0.3", "task=factorization", "task.dim=8",
    "train.batch_size=0", "cohort=uniform", "cohort.size=10", "rounds=25", "baselines=[]",
]  # fmt: skip
RECONSTRUCTED = ["train.personal=reconstructed", "train.reconstruction_epochs=10"]


def federated(overrides: list[str], folder: Path) -> tuple[Parts, Trained, list[bool]]:
    """A run, and whether its nodes keep personal rows."""
    config = compose_config(overrides)
    parts = build(config)
    app = make_client_app(lambda c: parts.host(0, 1), lambda c: parts.digest)
    grid, result = in_process_grid(app, 1), Trained(*parts.initial())
    train_on(grid, parts, config, folder, lambda line: None, result)
    return parts, result, [PERSONAL in context.state for context in grid.contexts.values()]


def test_a_client_that_never_took_part_is_served_at_once(tmp_path: Path) -> None:
    """Stateful, it has a vector that nobody trained; reconstructed, it ranks as those do that took part."""
    found = {}
    for name, more in (("stateful", []), ("reconstructed", RECONSTRUCTED)):
        parts, result, keeps = federated([*SYNTHETIC, *more], tmp_path / name)
        assert keeps == [name == "stateful"]
        eligible = np.flatnonzero(parts.dataset.train.sizes > 0)
        seen = np.unique(np.concatenate([parts.sampler(0, round, eligible) for round in range(1, 26)]))
        new = np.setdiff1d(eligible, seen)
        assert len(new) > 100
        assert result.evaluated is not None
        values = result.evaluated.per_client["new_ndcg@10"]
        found[name] = float(np.nanmean(values[new])), float(np.nanmean(values[seen]))
    new, taken_part = found["reconstructed"]
    assert new > 2 * found["stateful"][0], found
    assert new == pytest.approx(taken_part, rel=0.25), found


def test_what_cannot_be_is_refused() -> None:
    for overrides, message in (
        (["task=skipgram"], "train.personal=reconstructed needs a task with personal tables"),
        (["task=factorization", "train.keep_state=true"], "train.keep_state must be false with train.personal"),
        (["task=factorization", "train.personal=forgotten"], "train.personal must be stateful or reconstr"),
        (["task=factorization", "train.reconstruction_start=here"], "start must be initial or origin, got 'here'"),
        (["task=factorization", "train.support_share=0"], r"train.support_share must be in \(0, 1\], got 0"),
        (["task=factorization", "train.reconstruction_learning_rate=0"], "train.reconstruction_learning_rate must be"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=message):
            build(compose_config(["data=synthetic", "train.personal=reconstructed", *overrides]))


def test_pooled_and_lonely_clients_keep_their_rows(tmp_path: Path) -> None:
    """They have nobody to hide a state from: both baselines are those of the stateful run; a fine-tuned copy is not."""
    small = [
        *SYNTHETIC,
        "data.num_clients=30",
        "cohort.size=8",
        "rounds=4",
        "baselines=[fine_tuned,centralized,local_only]",
    ]
    stateful = fedemb.train(small, tmp_path / "stateful").summary
    found = fedemb.train([*small, *RECONSTRUCTED], tmp_path / "reconstructed").summary
    for name in ("centralized", "local_only"):
        assert found["baselines"][name] == stateful["baselines"][name]
    assert found["baselines"]["fine_tuned"] != stateful["baselines"]["fine_tuned"]
    assert found["baselines"]["fine_tuned"] != found["metrics"] != stateful["metrics"]
    assert not list((tmp_path / "reconstructed").rglob("personal-*"))
