"""The service over HTTP: what comes in is checked, what goes out is of one version, what was accepted is applied."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fedemb
from fedemb.manifolds import Poincare
from fedemb.model import Run
from fedemb.serve.queue import Window
from fedemb.serve.service import Service
from fedemb.serve.worker import prepared
from fedemb.tasks.dynamic import Dynamic
from tests.flower.test_strategy import CASES
from tests.serve.runs import interaction, served, train_tree, trained

Served = tuple[Service, httpx.Client]


@pytest.fixture(scope="module")
def factorization(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("factorization") / "run", "task=factorization")


@pytest.fixture(scope="module")
def trained_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tree(tmp_path_factory.mktemp("tree") / "run")


@pytest.fixture
def tree(trained_tree: Path, tmp_path: Path) -> Path:
    return never_served(trained_tree, tmp_path)


def never_served(run: Path, folder: Path) -> Path:
    """The same run without what a service of another test taught it."""
    (folder / "run").mkdir()
    for name in ("model", ".hydra"):
        (folder / "run" / name).symlink_to(run / name)
    return folder / "run"


@pytest.fixture(scope="module")
def both(factorization: Path) -> Iterator[Served]:
    """One service for all tests that look up and refuse; what it learns belongs to the tests below."""
    with served(
        factorization, "token='a long secret'", headers={"authorization": "Bearer a long secret"}
    ) as found:
        yield found


def wrong(answer: httpx.Response, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["detail"])


# --- looking up -----------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_run(both: Served, factorization: Path) -> None:
    names, matrix = fedemb.load(factorization).table("item")
    ids = [names[5], names[0], names[5]]
    for answer in (
        both[1].get("/vectors", params={"id": ids}),
        both[1].post("/vectors", json={"ids": ids, "table": "item"}),
    ):
        found = answer.raise_for_status().json()
        assert found["ids"] == ids
        assert (found["table"], found["version"], found["sequence"]) == ("item", 0, 0)
        assert np.array_equal(np.array(found["vectors"], dtype=np.float32), matrix[[5, 0, 5]])


def test_neighbours_are_near_by_cosine(both: Served, factorization: Path) -> None:
    names, matrix = fedemb.load(factorization).table("item")
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    expected = [names[at] for at in np.argsort(-(unit @ unit[3])) if at != 3][:7]
    found = both[1].get("/neighbours", params={"id": names[3], "k": 7}).raise_for_status().json()
    assert [one["id"] for one in found["neighbours"]] == expected
    assert found["measure"] == "cosine"
    assert both[1].get("/neighbours", params={"id": names[3], "k": 1000}).json()["neighbours"][58]


def test_neighbours_in_curved_space_are_near_by_distance(tree: Path) -> None:
    names, matrix = fedemb.load(tree).table("node")
    distance = Poincare().distance(torch.from_numpy(matrix[4]), torch.from_numpy(matrix))
    with served(tree) as (_, client):
        found = client.get("/neighbours", params={"id": names[4], "k": 5}).raise_for_status().json()
        assert found["measure"] == "distance"
        near = [at for at in np.argsort(distance.numpy()) if at != 4][:5]
        assert [one["id"] for one in found["neighbours"]] == [names[at] for at in near]
        assert [one["score"] for one in found["neighbours"]] == pytest.approx(distance[near].tolist())


def test_gaussian_rows_have_precisions_and_neighbours_have_bounds(tmp_path: Path) -> None:
    run = fedemb.train([*CASES["gaussian-links"], "baselines=[]"], tmp_path / "links")
    names, means = run.table("entity")
    with served(run.folder) as (_, client):
        found = client.get("/vectors", params={"id": names[1]}).raise_for_status().json()
        assert found["vectors"][0] == pytest.approx(means[1].tolist())
        assert found["precisions"][0] == pytest.approx(run.precision("entity")[1].tolist())
        near = client.get("/neighbours", params={"id": names[1], "k": 3}).raise_for_status().json()
    others = [one["id"] for one in near["neighbours"]]
    cosine = means @ means[1] / np.linalg.norm(means, axis=1) / np.linalg.norm(means[1])
    assert others == [names[at] for at in np.argsort(-cosine) if at != 1][:3]
    _, low, high = run.similarity("entity", [names[1]] * 3, others)
    assert [one["low"] for one in near["neighbours"]] == pytest.approx(low.tolist())
    assert [one["high"] for one in near["neighbours"]] == pytest.approx(high.tolist())


def test_what_is_not_there_is_said(both: Served) -> None:
    _, client = both
    assert "'<script>' is no item that the run knows" in wrong(client.get("/vectors?id=<script>"), 404)
    assert "'../a b' is no item" in wrong(client.get("/neighbours", params={"id": "../a b"}), 404)
    assert "table must be one of item, bias, got 'word'" in wrong(
        client.get("/vectors?id=item-01&table=word")
    )
    assert "do not depend on time" in wrong(client.get("/vectors?id=item-01&time=2020-01-01"))
    assert "do not depend on time" in wrong(client.post("/vectors", json={"ids": ["item-01"], "time": 5}))
    assert "less than or equal to 1000" in wrong(client.get("/neighbours?id=item-01&k=1001"))
    assert "at most 1000 ids (request_limit)" in wrong(
        client.post("/vectors", json={"ids": ["item-01"] * 1001})
    )
    assert "at least 1" in wrong(client.post("/vectors", json={"ids": []}))
    assert "Extra inputs" in wrong(client.post("/vectors", json={"ids": ["item-01"], "tabel": "item"}))


@pytest.fixture
def dynamic(trained_dynamic: Path, tmp_path: Path) -> Path:
    return never_served(trained_dynamic, tmp_path)


@pytest.fixture(scope="module")
def trained_dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("dynamic") / "run", "task=dynamic", "task.slice=2 days")


def test_vectors_of_a_time(dynamic: Path) -> None:
    """Rows in slices of time: a look-up sees its slice, or the last one where no time is asked for."""
    tables = load_file(dynamic / "model" / "tables.safetensors")
    whole = tables["item"][:, None] + tables["item_slice"].view(60, -1, 4)
    names, _ = fedemb.load(dynamic).table("item")
    with served(dynamic) as (service, client):
        assert isinstance(service.task, Dynamic)
        bounds = [int(time) for time in service.task.slices]
        for number, time in enumerate(bounds[:-1]):
            answer = client.get("/vectors", params={"id": names[3], "time": time}).json()
            assert (answer["time"], answer["version"]) == (time, 0)
            assert np.allclose(answer["vectors"][0], whole[3, number].numpy())
        answer = client.get("/vectors", params={"id": names[3]}).json()
        assert answer["time"] == bounds[-1] - 1, "without a time, as things are now"
        assert np.allclose(answer["vectors"][0], whole[3, -1].numpy())
        found = client.get("/neighbours", params={"id": names[3], "time": bounds[0]}).json()
        assert len(found["neighbours"]) == 10
        assert "ISO 8601 or epoch seconds, got 'noon'" in wrong(
            client.get(f"/vectors?id={names[3]}&time=noon")
        )
        assert "only the main table" in wrong(client.get(f"/vectors?id={names[3]}&time=5&table=context"))
        told = client.get("/tables").json()
        assert told["depends_on_time"] is True
        assert [table["name"] for table in told["tables"]] == ["item", "context", "repeat"]
        for table in ("item_slice", "bias_slice"):
            for path in ("vectors", "neighbours"):
                message = wrong(client.get(f"/{path}?id={names[3]}&table={table}"))
                assert "table must be one of item, context, repeat" in message


def test_a_dynamic_run_learns_with_histories_over_windows(dynamic: Path) -> None:
    """Interactions move their own slice of their item, and by the second window the rows of what was taken before."""
    names, _ = fedemb.load(dynamic).table("item")
    with served(dynamic, "window=1") as (service, client):
        assert isinstance(service.task, Dynamic)
        before, now = service.version.whole, int(service.task.slices[-2])
        item, first = before["item_slice"].view(60, -1, 4), before["context"]
        for place, (name, time) in enumerate([(names[3], now), (names[7], now + 90_000)], start=1):
            line = {"client": "one", "item": name, "time": time}
            assert client.post("/interactions", json=[line]).status_code == 202
            assert service.wait_for(place, 20)
            after = service.version.whole
            moved = {int(row) for row in torch.nonzero((after["context"] != first).any(1))}
            assert moved == ({3} if place == 2 else set()), "the context of the second is the first"
        slices = torch.nonzero((after["item_slice"].view(60, -1, 4) != item).any(2).any(0))[:, 0].tolist()
        assert slices == [item.shape[1] - 1], "no other slice of time moves"
        assert (after["item_slice"].view(60, -1, 4)[[3, 7], -1] != item[[3, 7], -1]).any(1).all()


def test_times_that_run_backwards_lose_nothing(dynamic: Path) -> None:
    names, _ = fedemb.load(dynamic).table("item")
    lines = [
        ("bad", names[1], "2020-09-01"),
        ("bad", names[2], "1970-01-02"),
        ("good", names[3], "2020-09-01"),
    ]
    with served(dynamic, "window=3") as (service, client):
        body = [{"client": who, "item": item, "time": time} for who, item, time in lines]
        assert client.post("/interactions", json=body).status_code == 202
        assert service.wait_for(3, 20)
        assert "fedemb_interactions_rejected 0.0" in client.get("/metrics").text
        assert all(table.isfinite().all() for table in service.version.whole.values())


# --- what a request must be -----------------------------------------------------------------------------

BAD: dict[str, tuple[Any, str]] = {
    "unknown item": ([interaction(0, item="nothing")], "'nothing' is no item that the run knows"),
    "second one": ([interaction(0), interaction(1, item="x")], "'body', 1, 'item'"),
    "no time": (
        [interaction(0, time="yesterday")],
        "a time must be ISO 8601 or epoch seconds, got 'yesterday'",
    ),
    "wrong type": ([interaction(0, client=5)], "valid string"),
    "null": ([interaction(0, item=None)], "valid string"),
    "true for a time": ([interaction(0, time=True)], "time"),
    "missing": ([{"client": "a", "item": "item-01"}], "'time'], 'msg': 'Field required'"),
    "extra": ([interaction(0, wieght=1)], "'wieght'], 'msg': 'Extra inputs are not permitted'"),
    "no client": ([interaction(0, client="")], "at least 1 character"),
    "long name": ([interaction(0, client="c" * 1025)], "at most 1024 characters"),
    "empty": ([], "at least 1 item"),
    "too many": ([interaction(0)] * 1001, "at most 1000 items"),
    "no list": (interaction(0), "valid list"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_interactions_are_refused_whole(both: Served, name: str) -> None:
    service, client = both
    body, message = BAD[name]
    before = service.queue.last  # type: ignore[union-attr]
    assert message in wrong(client.post("/interactions", json=body))
    assert service.queue.last == before  # type: ignore[union-attr]


def test_bodies_that_are_no_json_are_refused(both: Served) -> None:
    headers = {"content-type": "application/json"}
    assert "JSON" in wrong(both[1].post("/interactions", content=b'[{"client": ', headers=headers))
    nan = b'[{"client": "a", "item": "item-01", "time": NaN}]'
    assert "got nan" in wrong(both[1].post("/interactions", content=nan, headers=headers))


def test_a_large_body_is_refused(both: Served) -> None:
    """Whether or not it says how long it is."""

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 65_536

    for body in (b" " * (1 << 20) + b"[]", chunks()):
        answer = both[1].post("/interactions", content=body, headers={"content-type": "application/json"})
        assert "at most 1048576 bytes" in wrong(answer, 413)


def test_without_the_token_nothing_but_health(both: Served) -> None:
    for headers in (
        {"authorization": ""},
        {"authorization": "Bearer a long secre"},
        {"authorization": "Bearer é"},
    ):
        encoded = {name: value.encode() for name, value in headers.items()}
        for path in ("/vectors?id=item-01", "/metrics", "/docs", "/openapi.json"):
            answer = both[1].get(path, headers=encoded)  # type: ignore[arg-type]
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert both[1].get("/healthz", headers=encoded).json() == {"status": "alive"}  # type: ignore[arg-type]
        assert both[1].get("/readyz", headers=encoded).status_code == 200  # type: ignore[arg-type]


def test_the_schema_says_what_an_interaction_is(both: Served, tree: Path) -> None:
    schema = both[1].get("/openapi.json").raise_for_status().json()
    assert sorted(schema["components"]["schemas"]["Interaction"]["properties"]) == ["client", "item", "time"]
    assert {"/vectors", "/neighbours", "/interactions", "/tables", "/snapshot"} <= set(schema["paths"])
    with served(tree) as (_, client):
        schema = client.get("/openapi.json").json()
        assert sorted(schema["components"]["schemas"]["Interaction"]["properties"]) == [
            "child",
            "client",
            "parent",
        ]


# --- learning -------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(factorization: Path, tmp_path: Path) -> Path:
    return never_served(factorization, tmp_path)


def posted(client: httpx.Client, first: int, count: int, **headers: str) -> dict[str, Any]:
    lines = [interaction(number) for number in range(first, first + count)]
    answer: dict[str, Any] = (
        client.post("/interactions", json=lines, headers=headers).raise_for_status().json()
    )
    return answer


def test_interactions_are_applied_in_windows(fresh: Path) -> None:
    with served(fresh) as (service, client):
        assert posted(client, 0, 10) == {"first": 1, "last": 10, "repeated": False}
        assert service.wait_for(8, 20)
        found = client.get("/vectors?id=item-00&id=item-07").json()
        assert (found["version"], found["sequence"]) == (2, 8)
        assert service.queue.depth == 2  # type: ignore[union-attr]
        text = client.get("/metrics").text
        for line in (
            "fedemb_interactions_accepted_total 10.0", "fedemb_interactions_applied_total 8.0",
            "fedemb_version 2.0", "fedemb_queue_depth 2.0",
            'fedemb_requests_total{method="POST",route="/interactions",status="202"} 1.0',
        ):  # fmt: skip
            assert line in text
        assert client.get("/nowhere/<x>").status_code == 404
        assert 'route="other",status="404"' in client.get("/metrics").text


def test_served_rows_are_those_of_windows_applied_by_hand(fresh: Path) -> None:
    with served(fresh) as (service, client):
        updater, state = prepared(Run(fresh), service.settings)
        posted(client, 0, 8)
        assert service.wait_for(8, 20)
        for number in (0, 1):
            lines = [interaction(n) for n in range(4 * number, 4 * number + 4)]
            given = [
                (str(i["client"]), [int(str(i["item"])[5:]), i["time"], int(str(i["time"])) // 86_400])
                for i in lines
            ]
            updater.apply(state, Window(number + 1, 4 * number + 1, 4 * number + 4), given)
        found = client.post("/vectors", json={"ids": fedemb.load(fresh).table("item")[0]}).json()
        assert torch.equal(torch.tensor(found["vectors"]), state.tables["item"])
        assert not np.array_equal(fedemb.load(fresh).table("item")[1], state.tables["item"].numpy())


def test_a_service_goes_on_where_it_ended(fresh: Path) -> None:
    """What was open is applied at the end; the next service begins with it."""
    with served(fresh) as (_, client):
        posted(client, 0, 10)
        posted(client, 10, 1, **{"idempotency-key": "k"})
    with served(fresh) as (service, client):
        assert (service.version.number, service.version.sequence) == (3, 11)
        assert posted(client, 10, 1, **{"idempotency-key": "k"}) == {
            "first": 11,
            "last": 11,
            "repeated": True,
        }
        assert "other interactions" in wrong(
            client.post("/interactions", json=[interaction(3)], headers={"idempotency-key": "k"})
        )
        assert posted(client, 11, 4) == {"first": 12, "last": 15, "repeated": False}
        assert service.wait_for(15, 20)


def test_a_state_is_written_when_asked_for(fresh: Path) -> None:
    with served(fresh) as (service, client):
        posted(client, 0, 4)
        assert service.wait_for(4, 20)
        assert client.post("/snapshot").raise_for_status().json() == {"version": 1, "sequence": 4}
        assert [path.name for path in (fresh / "serve").glob("state-*")] == ["state-000000000001.safetensors"]


def test_a_service_that_learnt_nothing_leaves_no_state(fresh: Path) -> None:
    with served(fresh) as (_, client):
        assert client.get("/readyz").status_code == 200
    assert not list((fresh / "serve").glob("state-*"))


def test_a_full_queue_answers_429(fresh: Path) -> None:
    with served(fresh, "queue_limit=6", "window=6") as (service, client):
        posted(client, 0, 4)
        answer = client.post("/interactions", json=[interaction(n) for n in range(3)])
        assert "4 interactions wait" in wrong(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
        assert "at most 6 interactions fit" in wrong(
            client.post("/interactions", json=[interaction(0)] * 7), 413
        )
        posted(client, 4, 2)
        assert service.wait_for(6, 20)
        posted(client, 6, 6)
        assert "fedemb_interactions_refused_total 3.0" in client.get("/metrics").text


def test_answers_are_of_one_version_while_it_changes(fresh: Path) -> None:
    """Readers in threads of their own: a version has one vector for a name, and all names in an answer are of it."""
    seen: dict[tuple[int, str], list[float]] = {}
    torn, done = [], threading.Event()

    def read(address: httpx.URL) -> None:
        with httpx.Client(base_url=address, trust_env=False) as client:
            while not done.is_set():
                found = client.get(
                    "/vectors", params={"id": [f"item-{n:02d}" for n in range(0, 60, 7)]}
                ).json()
                for name, vector in zip(found["ids"], found["vectors"], strict=True):
                    if seen.setdefault((found["version"], name), vector) != vector:
                        torn.append((found["version"], name))

    with served(fresh) as (service, client):
        threads = [threading.Thread(target=read, args=(client.base_url,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(60):
            posted(client, 4 * number, 4)
        assert service.wait_for(240, 60)
        time.sleep(0.1)
        done.set()
        for thread in threads:
            thread.join()
    assert not torn
    assert len({version for version, _ in seen}) > 3


def test_skipgram_pairs_reach_across_windows(tmp_path: Path) -> None:
    """One interaction a window: a pair has its two sides in two of them."""
    folder = trained(tmp_path / "run", "task=skipgram")
    with served(folder, "window=1") as (service, client):
        before = service.version.whole["context"].clone()
        client.post("/interactions", json=[interaction(0, client="a")]).raise_for_status()
        assert service.wait_for(1, 20)
        assert torch.equal(service.version.whole["context"], before)
        client.post("/interactions", json=[interaction(1, client="a")]).raise_for_status()
        assert service.wait_for(2, 20)
        assert not torch.equal(service.version.whole["context"], before)


def test_a_taxonomy_learns_new_links(tree: Path) -> None:
    with served(tree, "window=1") as (service, client):
        before = service.version.whole["node"].clone()
        client.post("/interactions", json=[{"client": "a", "child": "n9", "parent": "n2"}]).raise_for_status()
        assert service.wait_for(1, 20)
        assert not torch.equal(service.version.whole["node"], before)


def test_a_run_that_cannot_learn_is_served_all_the_same(tmp_path: Path) -> None:
    """A tree of items: the run keeps the names of its nodes only."""
    options = ["data.structure=tree", "task=hierarchical", "task.negatives=4"]
    folder = trained(tmp_path / "run", *options)
    with served(folder) as (_, client):
        name = fedemb.load(folder).table("node")[0][0]
        assert client.get("/vectors", params={"id": name}).status_code == 200
        assert client.get("/readyz").status_code == 200
        found = client.get("/tables").json()
        assert found["learns"] is False
        assert "holds no names of item" in found["why_not"]
        assert "takes no interactions" in wrong(client.post("/interactions", json=[{}]), 409)
        assert "takes no interactions" in wrong(client.post("/snapshot"), 409)


def test_without_a_worker_nothing_is_taken(fresh: Path) -> None:
    with served(fresh) as (service, client):
        service.on_lost()
        assert client.get("/readyz").status_code == 503
        assert "does not learn" in wrong(client.post("/interactions", json=[interaction(0)]), 503)
        assert client.get("/vectors?id=item-01").status_code == 200
