"""Windows applied one after another, in one process: what they do, and that they do it again alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedemb.errors import RunError
from fedemb.model import Run
from fedemb.serve.queue import Entry, Window
from fedemb.serve.rows import Rows, Version
from fedemb.serve.run import settings_of
from fedemb.serve.settings import Settings
from fedemb.serve.state import State, load_state, newest, save_state
from fedemb.serve.update import Updater
from fedemb.serve.worker import prepared
from tests.serve.runs import train_tree, trained

TASKS = {
    "factorization": ["task=factorization"],
    "skipgram": ["task=skipgram"],
    "dynamic": ["task=dynamic", "task.slice=2 days"],
}
NAMES = [*TASKS, "hierarchical"]
Prepared = Callable[..., tuple[Updater, State]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    made = {name: trained(place / name, *overrides) for name, overrides in TASKS.items()}
    return {**made, "hierarchical": train_tree(place / "hierarchical")}


def settings(**changes: object) -> Settings:
    return settings_of([f"{name}={value}" for name, value in {"window": 5, **changes}.items()])


def entries(updater: Updater, number: int, count: int = 5) -> list[Entry]:
    random = np.random.default_rng(number)
    values = {"time": 1_600_000_000 + number, "session": 18_000}
    return [
        (f"c{random.integers(7)}", [values.get(name, int(random.integers(1, 39))) for name in updater.dtypes])
        for _ in range(count)
    ]


def window(number: int, count: int = 5) -> Window:
    return Window(number, (number - 1) * count + 1, number * count)


def equal(one: State, other: State) -> bool:
    tensors = [(one.tables[n], other.tables[n]) for n in one.tables]
    tensors += [(one.dense[n], other.dense[n]) for n in one.dense]
    tensors += [(one.personal[n].points, other.personal[n].points) for n in one.personal]
    same = all(torch.equal(a, b) for a, b in tensors)
    return same and list(one.clients.slots.items()) == list(other.clients.slots.items())


@pytest.mark.parametrize("task", NAMES)
def test_a_state_that_was_written_goes_on_as_if_it_had_not_been(
    task: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Ten windows in one go, and five, a state on disk, a new process' memory, and five: bit for bit the same."""
    run = Run(folders[task])
    updater, whole = prepared(run, settings())
    _, half = prepared(run, settings())
    for number in range(1, 11):
        updater.apply(whole, window(number), entries(updater, number))
    for number in range(1, 6):
        updater.apply(half, window(number), entries(updater, number))
    save_state(tmp_path, half, run.name)
    again, rest = prepared(run, settings())
    path = newest(tmp_path, run.name)
    assert path is not None
    load_state(path, rest)
    assert (rest.number, rest.sequence) == (5, 25)
    for number in range(6, 11):
        again.apply(rest, window(number), entries(updater, number))
    assert equal(whole, rest)
    assert not equal(whole, half)


@pytest.mark.parametrize("task", NAMES)
def test_a_change_is_all_that_a_window_did(task: str, folders: dict[str, Path]) -> None:
    updater, state = prepared(Run(folders[task]), settings())
    start = {name: table.clone() for name, table in state.tables.items()}
    version = Version(
        0, 0, {name: Rows.of(table.clone()) for name, table in start.items()}, dict(state.dense)
    )
    moved = False
    for number in range(1, 6):
        change = updater.apply(state, window(number), entries(updater, number))
        version = change.applied(version)
        for name, table in state.tables.items():
            assert torch.equal(version.tables[name].whole(), table)
            assert len(change.rows[name]) <= len(table)
            moved |= not torch.equal(table, start[name])
    assert moved


def test_only_rows_of_the_window_move(folders: dict[str, Path]) -> None:
    """Taken and drawn items: five interactions with four negatives each are at most 25 of sixty."""
    updater, state = prepared(Run(folders["factorization"]), settings())
    before = state.tables["item"].clone()
    given: list[Entry] = [("a", [3, 1_600_000_000, 0])]
    change = updater.apply(state, Window(1, 1, 1), given)
    moved = torch.nonzero((state.tables["item"] != before).any(1)).flatten()
    assert 3 in moved
    assert set(moved.tolist()) <= set(change.rows["item"].tolist())
    assert len(change.rows["item"]) <= 5


def test_windows_learn_what_they_say(folders: dict[str, Path]) -> None:
    """Somebody who takes item 3 again and again comes to score it above all others."""
    updater, state = prepared(Run(folders["factorization"]), settings())
    for number in range(1, 60):
        updater.apply(state, window(number), [("fan", [3, 1_600_000_000, 0])] * 5)
    slot = state.clients.slots["fan"]
    own = state.personal["client"].points[slot]
    scores = state.tables["item"] @ own + state.tables["bias"][:, 0]
    assert int(scores.argmax()) == 3


def test_an_example_counts_as_in_a_full_batch(folders: dict[str, Path]) -> None:
    """The rate is per example: one alone moves a row by a batch's share, not by a whole step."""
    updater, state = prepared(Run(folders["factorization"]), settings())
    _, other = prepared(
        Run(folders["factorization"]), settings(learning_rate=updater.training.learning_rate * 2)
    )
    twice, _ = prepared(
        Run(folders["factorization"]), settings(learning_rate=updater.training.learning_rate * 2)
    )
    before = state.tables["bias"].clone()
    one: list[Entry] = [("a", [3, 1_600_000_000, 0])]
    updater.apply(state, Window(1, 1, 1), one)
    twice.apply(other, Window(1, 1, 1), one)
    step = float((state.tables["bias"] - before)[3])
    assert 0 < step < updater.training.learning_rate / updater.batch_size
    assert float((other.tables["bias"] - before)[3]) == pytest.approx(2 * step, rel=1e-4)


def test_numbers_that_are_none_leave_everything_as_it_was(folders: dict[str, Path]) -> None:
    updater, state = prepared(Run(folders["factorization"]), settings())
    updater.apply(state, Window(1, 1, 1), [("a", [3, 1_600_000_000, 0])])
    state.tables["item"][7] = float("nan")
    tables = {name: table.clone() for name, table in state.tables.items()}
    own = state.personal["client"].points[0].clone()
    change = updater.apply(state, Window(2, 2, 2), [("a", [7, 1_600_000_000, 0])])
    assert (state.rejected, state.sequence, change.sequence) == (1, 2, 2)
    assert not change.rows
    assert torch.equal(state.personal["client"].points[0], own)
    for name, table in state.tables.items():
        assert torch.equal(table.nan_to_num(99), tables[name].nan_to_num(99))


def test_one_bad_client_takes_no_other_with_it(folders: dict[str, Path]) -> None:
    """A window of two: one looks a broken row up, and the other's rows move as if it had come alone."""
    updater, state = prepared(Run(folders["factorization"]), settings())
    again, alone = prepared(Run(folders["factorization"]), settings())
    for own in (state, alone):
        updater.apply(own, Window(1, 1, 2), [("a", [3, 1_600_000_000, 0]), ("b", [4, 1_600_000_000, 0])])
        own.tables["item"][7] = float("nan")
    bad, good = ("a", [7, 1_600_000_000, 0]), ("b", [12, 1_600_000_000, 0])
    change = updater.apply(state, Window(2, 3, 4), [bad, good])
    expected = again.apply(alone, Window(2, 3, 4), [good])
    assert state.rejected == 1
    assert alone.rejected == 0
    assert 12 in change.rows["item"].tolist()
    for name, rows in change.rows.items():
        assert torch.equal(rows, expected.rows[name])
        assert torch.equal(change.values[name], expected.values[name])
    assert torch.equal(state.personal["client"].points, alone.personal["client"].points)


def test_memory_for_clients_is_bounded(folders: dict[str, Path]) -> None:
    updater, state = prepared(Run(folders["factorization"]), settings(max_clients=5))
    for number in range(1, 8):
        line: list[Entry] = [(f"c{number}-{place}", [3, 0, 0]) for place in range(3)]
        updater.apply(state, window(number, 3), line)
    assert len(state.clients.slots) == 5
    assert len(state.personal["client"].points) == 5
    assert "c7-2" in state.clients.slots


def test_a_corrupt_state_is_passed_over(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(folders["factorization"])
    updater, state = prepared(run, settings())
    assert save_state(tmp_path, state, run.name) == (0, 0)
    for number in (1, 2):
        updater.apply(state, window(number), entries(updater, number))
        kept = save_state(tmp_path, state, run.name)
    assert kept == (5, 1)
    older, newer = sorted(tmp_path.glob("state-*"))
    newer.write_bytes(newer.read_bytes()[:100])
    assert newest(tmp_path, run.name) == older
    assert "trying the one before" in caplog.text
    with pytest.raises(RunError, match=r"began with .* after 2 rounds"):
        newest(tmp_path, "another")
    older.write_bytes(b"")
    with pytest.raises(RunError, match=r"no state in .* can be read"):
        newest(tmp_path, run.name)


def test_a_state_with_more_clients_than_allowed_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    run = Run(folders["skipgram"])
    updater, state = prepared(run, settings())
    updater.apply(state, Window(1, 1, 6), [(f"c{n}", [n, 0, 0]) for n in range(6)])
    save_state(tmp_path, state, run.name)
    path = newest(tmp_path, run.name)
    assert path is not None
    with pytest.raises(RunError, match="max_clients must be at least 6"):
        load_state(path, prepared(run, settings(max_clients=5))[1])
    with pytest.raises(RunError, match="history must be 64"):
        load_state(path, prepared(run, settings(history=7))[1])
