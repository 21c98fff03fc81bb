"""evaluate/popularity.py: each ranking against a loop, and the published table of Online Retail."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedemb.data.held_out import TEST, TRAIN, VALIDATION, HoldOut
from fedemb.data.interactions import Interactions
from fedemb.data.partition import Natural
from fedemb.data.shards import Shards, group_by_client, join
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import SettingError
from fedemb.evaluate import popularity as rankings
from fedemb.evaluate.choose import evaluation_for, reference_ranking
from fedemb.evaluate.popularity import (
    DAY,
    Unlearnt,
    evaluate_unlearnt,
    item_cosine,
    own_repeats,
    popularity,
    recent_popularity,
    unlearnt_rankings,
)
from fedemb.evaluate.ranking import Ranking, asked_at, history_before
from fedemb.tasks.factorization import Factorization
from fedemb.types import Dataset, Recommender

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "online_retail" / "online_retail.csv.gz"
NUM_ITEMS = 12


def events(seed: int = 0, num_lines: int = 150, num_clients: int = 9) -> Shards:
    generator = np.random.default_rng(seed)
    items = generator.integers(0, NUM_ITEMS - 2, num_lines)  # two items that nobody took
    time = np.sort(generator.integers(0, 100 * DAY, num_lines))
    return group_by_client({"item": items, "time": time}, generator.integers(0, num_clients, num_lines), 10)


def test_popularity_counts() -> None:
    known = events()
    scores = popularity(known, NUM_ITEMS)(known.take(np.array([3, 4])))
    assert scores.shape == (2, NUM_ITEMS)
    assert scores[0].tolist() == scores[1].tolist()
    assert scores[0].tolist() == [float((known.columns["item"] == i).sum()) for i in range(NUM_ITEMS)]


def test_recent_popularity_ends_where_it_should() -> None:
    known = Shards(
        {"item": np.arange(5), "time": np.array([0, 10 * DAY - 1, 10 * DAY, 40 * DAY - 1, 40 * DAY])},
        np.array([0, 5]),
    )
    assert recent_popularity(known, 5, 30, 40 * DAY)(known)[0].tolist() == [0, 0, 1, 1, 0]
    assert recent_popularity(known, 5, 30)(known)[0].tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(SettingError, match=r"must be above 0, got 0"):
        recent_popularity(known, 5, 0)


def test_own_repeats_count_first_then_the_recent_popularity() -> None:
    known = events()
    scores = own_repeats(known, NUM_ITEMS, 30)(known)
    recent = recent_popularity(known, NUM_ITEMS, 30)(known)[0]
    assert float(recent.max()) > 1
    for client in range(known.num_clients):
        own = np.bincount(known.take(np.array([client])).columns["item"], minlength=NUM_ITEMS)
        expected = sorted(range(NUM_ITEMS), key=lambda i: (-own[i], -recent[i]))
        ours = sorted(range(NUM_ITEMS), key=lambda i: -scores[client, i])
        assert ours == expected


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_item_cosine_equals_dense_matrices(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(rankings, "BLOCK_BYTES", block_bytes)
    known, asked = events(), events(1, 60)
    taken = torch.zeros(2, 10, NUM_ITEMS, dtype=torch.float64)
    for matrix, shards in zip(taken, (known, asked), strict=True):
        matrix[torch.from_numpy(shards.owners()), torch.from_numpy(shards.columns["item"])] = 1
    unit = torch.nn.functional.normalize(taken[0], dim=0)
    similarity = (unit.T @ unit).fill_diagonal_(0)
    torch.testing.assert_close(item_cosine(known, NUM_ITEMS)(asked), taken[1] @ similarity)


def dataset(columns: tuple[str, ...] = ("item", "time")) -> Dataset:
    parts = [events(seed) for seed in range(3)]
    parts = [Shards({name: part.columns[name] for name in columns}, part.offsets) for part in parts]
    if "time" in columns:
        for number, part in enumerate(parts):
            part.columns["time"][:] += 100 * number * DAY
    vocabulary = Vocabulary.of([f"item {i}" for i in range(NUM_ITEMS)])
    return Dataset(parts[0], {"item": vocabulary}, held_out={"validation": parts[1], "test": parts[2]})


def test_all_rankings_run_through_ranking() -> None:
    data = dataset()
    out = evaluate_unlearnt(data, leaked=True)
    assert list(out) == [
        "popularity", "popularity_any_time", "recent_popularity", "own_repeats", "item_cosine", "leaked_popularity",
    ]  # fmt: skip
    history = (data.train, data.held_out["validation"])
    scores = unlearnt_rankings(data)["own_repeats"]
    task = Unlearnt(scores)
    assert isinstance(task, Recommender)
    now = asked_at(data, "test")
    again = Ranking(task, history, data.held_out["test"], now=now)({}, {}, np.arange(10))
    assert again.metrics == pytest.approx(out["own_repeats"].metrics, nan_ok=True)
    assert list(evaluate_unlearnt(dataset(("item",)), "validation")) == ["popularity", "item_cosine"]
    with pytest.raises(SettingError, match=r"rankings need a column item, got time"):
        evaluate_unlearnt(dataset(("time",)))


def leave_last(seed: int = 3) -> Dataset:
    """Each client's last two events held out, one by one."""
    lines = events(seed)
    held = HoldOut(leave_last=1).label(lines, None, np.arange(10), 0)
    splits = []
    for part in (TRAIN, VALIDATION, TEST):
        columns = {name: column[held == part] for name, column in lines.columns.items()}
        splits.append(group_by_client(columns, lines.owners()[held == part], 10))
    vocabulary = Vocabulary.of([f"item {i}" for i in range(NUM_ITEMS)])
    return Dataset(splits[0], {"item": vocabulary}, held_out={"validation": splits[1], "test": splits[2]})


@pytest.mark.parametrize("split", ["validation", "test"])
def test_leave_last_counts_nothing_from_a_clients_future(split: str) -> None:
    """In a loop over clients and events: what anybody took before this client's own held-out event."""
    data = leave_last()
    now, known = asked_at(data, split), join(history_before(data, split))
    assert now is not None
    rankings = unlearnt_rankings(data, split)
    scored = {name: score(known, now) for name, score in rankings.items()}
    everything = list(zip(known.columns["item"].tolist(), known.columns["time"].tolist(), strict=True))
    asked = np.flatnonzero(data.held_out[split].sizes > 0)
    assert len({int(now[client]) for client in asked}) > 5
    for client in asked:
        own = data.held_out[split].take(np.array([client])).columns["time"].min()
        assert now[client] == own
        before = [item for item, time in everything if time < own]
        recent = [item for item, time in everything if own - 30 * DAY <= time < own]
        counts = np.bincount(before, minlength=NUM_ITEMS)
        assert scored["popularity"][client].tolist() == counts.tolist()
        lately = np.bincount(recent, minlength=NUM_ITEMS)
        assert scored["recent_popularity"][client].tolist() == lately.tolist()
        mine = np.bincount(known.take(np.array([client])).columns["item"], minlength=NUM_ITEMS)
        expected = torch.from_numpy(mine + lately / (lately.max() + 1))
        torch.testing.assert_close(scored["own_repeats"][client], expected)
    assert (
        scored["popularity_any_time"][0].tolist()
        == np.bincount(known.columns["item"], minlength=NUM_ITEMS).tolist()
    )
    assert (scored["popularity_any_time"] > scored["popularity"]).any()


def test_popularity_in_the_table_is_asked_at_each_clients_time() -> None:
    """A fad after most clients were asked helps whoever counts at any time, and nobody who counts before."""
    num = 20  # client c takes item c at day c, then item 20; the last ten are asked after nobody else took it
    items = np.array([[client % 4, 20] for client in range(num)]).ravel()
    time = np.array([[client * DAY, client * DAY + 1] for client in range(num)]).ravel()
    fad = group_by_client(
        {"item": np.full(50, 20), "time": np.full(50, 100 * DAY)}, np.full(50, num), num + 1
    )
    known = Shards({"item": items[::2], "time": time[::2]}, np.r_[0 : num + 1, num])
    test = Shards({"item": items[1::2], "time": time[1::2]}, np.r_[0 : num + 1, num])
    vocabulary = Vocabulary.of([f"item {i}" for i in range(25)])
    data = Dataset(join([known, fad]), {"item": vocabulary}, held_out={"test": test})
    task = Factorization.build(data, 2, 1, "bpr", False, 0.0, 0.1)
    evaluation, clients = evaluation_for(task, data), np.arange(num + 1)
    found = {}
    for name in ("popularity", "popularity_any_time"):
        reference = reference_ranking(name, evaluation, data)
        assert reference is not None
        found[name] = reference({}, {}, clients).metrics["ndcg@10"]
    assert found["popularity_any_time"] == 1
    assert found["popularity"] < 0.5


@pytest.mark.skipif(not SHARED.is_file(), reason=f"SKIPPED LOUDLY: {SHARED} is missing")
def test_published_table_of_online_retail(tmp_path: Path) -> None:
    """NDCG@10 for all events and for items new to the customer: shared/data/README.md."""
    everything = Interactions(str(SHARED), test_from="2012-01-01").load(Natural(), 0)
    names = everything.vocabularies["item"].to_list()
    assert len(names) == 3665
    declared = tmp_path / "items.txt"
    declared.write_text("\n".join(names))
    data = Interactions(
        str(SHARED),
        validation_from="2011-10-01",
        test_from="2011-11-01",
        deduplicate="day",
        keep_cold_clients=True,
        vocabulary=str(declared),
    ).load(Natural(), 0)
    out = evaluate_unlearnt(data, leaked=True)
    expected = {
        "popularity": (0.094, 0.035),
        "recent_popularity": (0.134, 0.077),
        "own_repeats": (0.369, None),
        "item_cosine": (0.183, 0.072),
        "leaked_popularity": (0.155, 0.109),  # new: ours is .110, without customers that nobody knows
    }
    for name, (everywhere, new) in expected.items():
        assert out[name].metrics["ndcg@10"] == pytest.approx(everywhere, abs=6e-4), name
        if new is not None:
            assert out[name].metrics["new_ndcg@10"] == pytest.approx(new, abs=1.1e-3), name
    ranked = ~np.isnan(out["popularity"].per_client["ndcg@10"])
    assert ranked.sum() == 1544
