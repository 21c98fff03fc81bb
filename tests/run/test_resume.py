"""A run taken up with newer data, and with what was served since: rows keep their names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import fedemb
from fedemb.errors import DataError, SettingError
from tests.serve.runs import served

SMALL = [
    "data=interactions",
    "data.min_count=1",
    "task.dim=4",
    "baselines=[]",
    "checkpoint_every=2",
    "evaluate_every=0",
]


def write(path: Path, lines: list[tuple[str, str, int]]) -> str:
    path.write_text("client,item,time\n" + "".join(f"{c},{i},{1_600_000_000 + t}\n" for c, i, t in lines))
    return f"data.path={path}"


@pytest.fixture
def old(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    return write(tmp_path / "old.csv", [(f"c{n % 6}", f"i{random.integers(20):02d}", n) for n in range(300)])


@pytest.fixture
def new(tmp_path: Path) -> str:
    """Another client, without the first one; items that nobody knew before; others that come no more."""
    lines = [(f"c{1 + n % 6}", f"i{n % 9:02d}" if n % 3 else f"new{n % 4}", 1000 + n) for n in range(120)]
    return write(tmp_path / "new.csv", lines)


def rows(run: fedemb.Run) -> dict[str, np.ndarray]:
    ids, matrix = run.table("item")
    return dict(zip(ids, matrix, strict=True))


def test_newer_data_move_the_rows_that_they_name(old: str, new: str, tmp_path: Path) -> None:
    base = [*SMALL, "task=factorization", "server.optimizer=sgd"]
    first = fedemb.train([*base, old, "rounds=2"], tmp_path / "first")
    again = fedemb.train([*base, new, "rounds=4", f"resume={tmp_path / 'first'}"], tmp_path / "second")
    before, after = rows(first), rows(again)
    assert list(before) == list(after)
    assert not np.array_equal(before["i01"], after["i01"])
    assert again.summary["data"]["training_of_new_names"] > 0
    assert [line["round"] for line in again.metrics] == [1, 2, 3, 4]
    assert again.vocabularies["item"].counts is not None
    assert np.array_equal(again.vocabularies["item"].counts, first.vocabularies["item"].counts)


def test_rows_nobody_names_stay(old: str, tmp_path: Path) -> None:
    """Pairs without drawn negatives: only what the new data name may move, and it moves from where it was."""
    base = [*SMALL, "task=skipgram", "task.tied=true", "task.negatives=0"]
    first = fedemb.train([*base, old, "rounds=2"], tmp_path / "first")
    few = write(tmp_path / "few.csv", [("z", f"i{n % 2:02d}", n) for n in range(40)])
    again = fedemb.train([*base, few, "rounds=4", f"resume={tmp_path / 'first'}"], tmp_path / "second")
    before, after = rows(first), rows(again)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"i00", "i01"}


@pytest.mark.parametrize("task", ["factorization", "skipgram"])
def test_training_goes_on_from_what_was_served(task: str, old: str, new: str, tmp_path: Path) -> None:
    base = [*SMALL, f"task={task}"]
    first = fedemb.train([*base, old, "rounds=2"], tmp_path / "first")
    with served(tmp_path / "first", "window=5") as (service, client):
        lines = [{"client": "c2", "item": f"i{n % 3:02d}", "time": 1_700_000_000 + n} for n in range(20)]
        client.post("/interactions", json=lines).raise_for_status()
        assert service.wait_for(20, 20)
        ids = list(rows(first))
        live = np.array(client.post("/vectors", json={"ids": ids}).json()["vectors"], dtype=np.float32)
    tiny = "server.learning_rate=1e-30"
    resumed = [*base, "rounds=3", f"resume={tmp_path / 'first'}"]
    with pytest.raises(SettingError, match=r"server\.learning_rate was .*, is 1e-30"):
        fedemb.train([*resumed, new, tiny], tmp_path / "refused")
    again = fedemb.train([*resumed, new], tmp_path / "second")
    trained, unserved = np.stack(list(rows(again).values())), np.stack(list(rows(first).values()))
    assert not np.array_equal(live, unserved)
    # A round of few clients: where it ended is nearer to what was served than to what had been trained.
    assert np.linalg.norm(trained - live) < np.linalg.norm(trained - unserved)
    assert [line["round"] for line in again.metrics] == [1, 2, 3]


def test_a_served_dynamic_run_goes_on_into_new_slices(old: str, tmp_path: Path) -> None:
    """The slice that was served is the base of those that follow, for items that no newer event names too."""
    base = [*SMALL, "task=dynamic", "task.slice=day", "task.walk=1e-4", "server.learning_rate=1e-3"]
    first = fedemb.train([*base, old, "rounds=2"], tmp_path / "first")
    newer = write(
        tmp_path / "newer.csv", [(f"c{n % 6}", f"i{n % 9:02d}", 2 * 86_400 + n) for n in range(120)]
    )
    lines = [{"client": "c2", "item": f"i{n % 3:02d}", "time": 1_600_000_000 + n} for n in range(20)]
    with served(tmp_path / "first", "window=5") as (service, client):
        client.post("/interactions", json=lines).raise_for_status()
        assert service.wait_for(20, 20)
        live = {name: table.clone() for name, table in service.version.whole.items()}
    resumed = [*base, "rounds=3", f"resume={tmp_path / 'first'}", newer]
    again = fedemb.train(resumed, tmp_path / "second")
    assert [name for name in again.table("bias_slice")[0] if name.startswith("i19@")] == [
        "i19@2020-09-13", "i19@2020-09-14", "i19@2020-09-15",
    ]  # fmt: skip
    served_slice, unserved = live["item_slice"].numpy(), first.table("item_slice")[1]
    trained = again.table("item_slice")[1].reshape(20, 3, 4)
    assert not np.array_equal(served_slice, unserved)
    for number in (0, 2):
        distances = [np.linalg.norm(trained[:, number] - was) for was in (served_slice, unserved)]
        assert distances[0] < distances[1]


def test_served_rows_are_taken_up_without_a_checkpoint(old: str, tmp_path: Path) -> None:
    base = [*SMALL, "task=factorization", "checkpoint_every=0", old]
    fedemb.train([*base, "rounds=2"], tmp_path / "first")
    with pytest.raises(SettingError, match="has none"):
        fedemb.train([*base, "rounds=3", f"resume={tmp_path / 'first'}"], tmp_path / "early")
    with served(tmp_path / "first") as (_, client):
        client.post("/interactions", json=[{"client": "c1", "item": "i01", "time": 0}]).raise_for_status()
    with pytest.raises(SettingError, match="must be more than 2, got 2"):
        fedemb.train([*base, "rounds=2", f"resume={tmp_path / 'first'}"], tmp_path / "none")
    again = fedemb.train([*base, "rounds=3", f"resume={tmp_path / 'first'}"], tmp_path / "second")
    assert again.summary["work"]["rounds"] == 3


def test_clients_vectors_are_found_by_name(old: str, new: str, tmp_path: Path) -> None:
    """What the service learnt of a client is beside the checkpoint of the resumed run, where its node looks."""
    from safetensors.torch import load_file

    from fedemb.serve.state import names_of, newest, read_tensors

    base = [*SMALL, "task=factorization", "cohort=uniform", "cohort.size=1"]
    first = fedemb.train([*base, old, "rounds=2"], tmp_path / "first")
    with served(tmp_path / "first", "window=5") as (_, client):
        lines = [{"client": f"c{3 + n % 2}", "item": "i03", "time": n} for n in range(10)]
        client.post("/interactions", json=lines).raise_for_status()
    path = newest(tmp_path / "first" / "serve", first.name)
    assert path is not None
    state = read_tensors(path)
    slots = dict(names_of(state))
    fedemb.train([*base, new, "rounds=3", f"resume={tmp_path / 'first'}"], tmp_path / "second")
    (kept,) = (tmp_path / "second" / "checkpoint").glob("personal-0-6-2.safetensors")
    carried = load_file(kept)
    assert carried["client/known"].tolist() == [False, False, True, True, False, False]  # c1 .. c6
    for place, name in ((2, "c3"), (3, "c4")):
        assert np.array_equal(carried["client/points"][place], state["personal/client"][slots[name]])


def test_other_differences_are_refused_and_shown(old: str, new: str, tmp_path: Path) -> None:
    base = [*SMALL, "task=factorization"]
    fedemb.train([*base, old, "rounds=2"], tmp_path / "first")
    changed = [*base, new, "rounds=3", "task.negatives=9", f"resume={tmp_path / 'first'}"]
    with pytest.raises(SettingError) as caught:
        fedemb.train(changed, tmp_path / "second")
    assert re.search(
        r"began with \(digest \w{16}\), got \w{16}: task\.negatives was 4, is 9$", str(caught.value)
    )


def killed(overrides: list[str], folder: Path) -> Path:
    """A run of two rounds that left a checkpoint, and no model."""
    fedemb.train([*overrides, "rounds=2"], folder)
    shutil.rmtree(folder / "model")
    (folder / "summary.json").unlink()
    return folder


@pytest.mark.parametrize("items", [20, 23])
def test_rows_of_a_killed_run_are_not_given_other_names(items: int, tmp_path: Path) -> None:
    """As many names as before: the heights fit, and every row would be another's."""
    lines = [(f"c{n % 6}", f"i{n % 20:02d}", n) for n in range(300)]
    base = [*SMALL, "task=factorization", write(tmp_path / "data.csv", lines)]
    folder = killed(base, tmp_path / "run")
    write(tmp_path / "data.csv", [(c, f"j{n % items:02d}" if i == "i03" else i, n) for c, i, n in lines])
    with pytest.raises(DataError, match=r"resume=.*run needs the data .* other names of item$"):
        fedemb.train([*base, "rounds=4", "resume=auto"], folder)
    write(tmp_path / "data.csv", lines)
    assert fedemb.train([*base, "rounds=4", "resume=auto"], folder).summary["work"]["rounds"] == 4


def months(path: Path, first: int, last: int) -> str:
    lines = [
        f"c{n % 6},i{n % 9},2020-{first + n % (last - first + 1):02d}-{1 + n % 27:02d}\n" for n in range(400)
    ]
    path.write_text("client,item,time\n" + "".join(lines))
    return f"data.path={path}"


@pytest.mark.parametrize(
    ("rows", "first", "last", "fits"),
    [("slices", 2, 4, False), ("slices", 1, 4, True), ("continuous", 1, 4, False), ("static", 2, 4, True)],
)
def test_slices_of_a_killed_run_are_not_given_other_months(
    rows: str, first: int, last: int, fits: bool, tmp_path: Path
) -> None:
    path, whole = tmp_path / "data.csv", ["data.validation_share=0", "data.test_share=0.01"]
    base = [*SMALL, *whole, "task=dynamic", "task.slice=month", f"task.rows={rows}", months(path, 1, 3)]
    folder = killed(base, tmp_path / "run")
    months(path, first, last)
    if fits:
        fedemb.train([*base, "rounds=3", "resume=auto"], folder)
    else:
        with pytest.raises(DataError, match=r"other slices of time$"):
            fedemb.train([*base, "rounds=3", "resume=auto"], folder)


def test_a_file_that_gained_a_client_is_gone_on_with(old: str, tmp_path: Path) -> None:
    """Clients' own vectors stand by number: those of others begin anew."""
    base = [*SMALL, "task=factorization", old]
    fedemb.train([*base, "rounds=2"], tmp_path / "first")
    with (tmp_path / "old.csv").open("a") as file:
        file.writelines(f"another,i{n:02d},{1_600_000_000 + n}\n" for n in range(20))
    again = fedemb.train([*base, "rounds=4", f"resume={tmp_path / 'first'}"], tmp_path / "second")
    assert again.summary["work"]["rounds"] == 4
