"""evaluate/popularity.py: each ranking against a loop, and the published table of Online Retail."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedemb.data.interactions import Interactions
from fedemb.data.partition import Natural
from fedemb.data.shards import Shards, group_by_client
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import SettingError
from fedemb.evaluate import popularity as rankings
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
from fedemb.evaluate.ranking import Ranking
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
        "popularity", "recent_popularity", "own_repeats", "item_cosine", "leaked_popularity",
    ]  # fmt: skip
    history = (data.train, data.held_out["validation"])
    scores = unlearnt_rankings(data)["own_repeats"]
    task = Unlearnt(scores)
    assert isinstance(task, Recommender)
    again = Ranking(task, history, data.held_out["test"])({}, {}, np.arange(10))
    assert again.metrics == pytest.approx(out["own_repeats"].metrics, nan_ok=True)
    assert list(evaluate_unlearnt(dataset(("item",)), "validation")) == ["popularity", "item_cosine"]
    with pytest.raises(SettingError, match=r"rankings need a column item, got time"):
        evaluate_unlearnt(dataset(("time",)))


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
