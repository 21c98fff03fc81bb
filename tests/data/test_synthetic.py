"""data/synthetic.py: the data show the truth that they claim, whatever the chunks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedemb.data.held_out import DAY
from fedemb.data.partition import Natural
from fedemb.data.shards import Shards
from fedemb.data.structure import Tree, distinct, zipf_cdf, zipf_ranks
from fedemb.data.synthetic import EPOCH, Synthetic
from fedemb.errors import SettingError
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Dataset


def load(seed: int = 0, **settings: Any) -> Dataset:
    return Synthetic(**settings).load(Natural(), seed)


def parts_of(data: Dataset) -> list[Shards]:
    return [data.train, *data.held_out.values()]


def equal(ours: Dataset, theirs: Dataset) -> None:
    assert ours.held_out.keys() == theirs.held_out.keys()
    assert ours.counts == theirs.counts
    for mine, other in zip(parts_of(ours), parts_of(theirs), strict=True):
        np.testing.assert_array_equal(mine.offsets, other.offsets)
        assert mine.columns.keys() == other.columns.keys()
        for name, column in mine.columns.items():
            np.testing.assert_array_equal(column, other.columns[name])
    for name, value in ours.truth.items():
        np.testing.assert_array_equal(value, theirs.truth[name])
    assert ours.vocabularies == theirs.vocabularies


@pytest.mark.parametrize(
    "settings",
    [
        {"drift": 0.5, "num_parts": 2, "missing": 0.4},
        {"structure": "tree", "num_parts": 1},
        {"held_out": 0.0},
    ],
)
def test_chunks_and_folder_change_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {"num_clients": 50, "num_items": 200, "num_clusters": 8, **settings}
    whole = load(**settings)
    equal(load(**settings, chunk_clients=7), whole)
    equal(load(**settings, chunk_clients=1, folder=str(tmp_path)), whole)
    mapped = load(**settings, folder=str(tmp_path))
    assert isinstance(mapped.train.columns["item"], np.memmap)
    np.testing.assert_array_equal(
        Shards.open(tmp_path / "train").columns["item"], whole.train.columns["item"]
    )
    assert load(1, **settings).train.columns["item"].tolist() != whole.train.columns["item"].tolist()


def test_more_clients_leave_the_first_as_they_are() -> None:
    few, many = load(num_clients=20), load(num_clients=30)
    np.testing.assert_array_equal(many.train.take(np.arange(20)).columns["item"], few.train.columns["item"])


def test_clusters_are_as_the_truth_has_them() -> None:
    data = load(num_clients=300, num_items=103, num_clusters=10, drift=0.6, days=100)
    own, start = data.truth["client_clusters"], data.truth["item_cluster"]
    assert own.shape == (300, 3)
    assert all(len(set(row)) == 3 for row in own.tolist())
    moved = 0
    for shards in parts_of(data):
        item, owner = shards.columns["item"], shards.owners()
        when = (shards.columns["time"] - EPOCH) / (100 * DAY)
        gone = when >= data.truth["item_moves_at"][item]
        cluster = np.where(gone, data.truth["item_cluster_end"][item], start[item])
        near = np.abs(when - data.truth["item_moves_at"][item]) < 1e-6  # times are rounded to seconds
        assert ((own[owner] == cluster[:, None]).any(1) | near).all()
        moved += int(gone.sum())
    assert moved > 100
    assert 0.3 < np.isfinite(data.truth["item_moves_at"]).mean() < 0.9
    for seed in range(5):
        moves = load(seed, num_clients=1, num_items=103, num_clusters=10, drift=1.0).truth["item_moves_at"]
        assert np.isfinite(moves).tolist() == [True] * 100 + [False] * 3  # a last, incomplete rank stays
    still = load(num_clients=300, num_items=103, num_clusters=10)
    assert not np.isfinite(still.truth["item_moves_at"]).any()
    assert set(still.train.columns["item"].tolist()) == set(range(103))


def test_drift_moves_popularity() -> None:
    def overlap(drift: float) -> float:
        data = load(num_clients=2000, num_items=400, num_clusters=4, drift=drift, zipf=1.2)
        item, when = data.train.columns["item"], data.train.columns["time"]
        halves = [item[when < np.median(when)], item[when >= np.median(when)]]
        tops = [set(np.argsort(-np.bincount(half, minlength=400))[:20].tolist()) for half in halves]
        return len(tops[0] & tops[1]) / 20

    assert overlap(0.0) > 0.8 > 0.4 > overlap(0.5)


def test_sizes_and_popularity_have_their_distributions() -> None:
    data = load(
        num_clients=20_000, num_items=50, num_clusters=1, clusters_per_client=1, held_out=0, spread=0.5
    )
    log_sizes = np.log(data.train.sizes)
    assert data.train.sizes.mean() == pytest.approx(20, rel=0.02)
    assert log_sizes.std() == pytest.approx(0.5, rel=0.03)
    counts = np.bincount(data.train.columns["item"], minlength=50)
    expected = 1 / np.arange(1, 51)
    np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), rtol=0.05)
    same = load(num_clients=100, spread=0, held_out=0)
    assert same.train.sizes.tolist() == [20] * 100
    assert load(num_clients=100, examples_per_client=1).train.sizes.min() == 1
    names = data.vocabularies["item"]
    assert names.counts is not None
    assert names.counts.tolist() == counts.tolist()
    assert names.name(3) == "item-03"


def test_held_out_are_the_ends_of_the_span() -> None:
    data = load(num_clients=500, held_out=0.2, days=100)
    train, validation, test = (part.columns["time"] for part in parts_of(data))
    assert train.min() >= EPOCH
    assert test.max() < EPOCH + 100 * DAY
    assert (
        train.max() < EPOCH + 60 * DAY <= validation.min() < validation.max() < EPOCH + 80 * DAY <= test.min()
    )
    assert (data.train.sizes > 0).all()
    for part in parts_of(data):
        steps = np.diff(part.columns["time"])
        assert (steps[np.diff(part.owners()) == 0] >= 0).all()
        key = part.owners() * 1000 + (part.columns["time"] - EPOCH) // DAY
        pairs = set(zip(key.tolist(), part.columns["session"].tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_tree(tmp_path: Path) -> None:
    data = load(structure="tree", num_clients=400, num_items=500, branching=3, num_clusters=7)
    parent, cluster = data.truth["item_parent"].tolist(), data.truth["item_cluster"].tolist()

    def ancestors(node: int) -> list[int]:
        return [] if node == 0 else [parent[node], *ancestors(parent[node])]

    tops = [min(i for i in range(500) if cluster[i] == c) for c in range(7)]
    assert tops == list(range(4, 11))
    for node in range(500):
        expected = [c for c, top in enumerate(tops) if top in (node, *ancestors(node))]
        assert cluster[node] == (expected[0] if expected else -1)
    child, above = data.train.columns["child"], data.train.columns["parent"]
    assert all(a in ancestors(c) for c, a in zip(child.tolist(), above.tolist(), strict=True))
    np.testing.assert_array_equal(child, data.train.columns["item"])
    owner = data.train.owners()
    own = data.truth["client_clusters"][owner]
    assert (own == np.array(cluster)[child][:, None]).any(1).all()
    assert data.taxonomy is not None
    assert len(data.taxonomy.child) == sum(len(ancestors(node)) for node in range(500))
    assert data.entity_of == {"item": "item", "child": "node", "parent": "node"}
    assert data.vocabularies["node"] == data.vocabularies["item"]
    assert len(set(child.tolist())) > 150


def test_ancestors_are_uniform() -> None:
    tree = Tree.build(100, 2, 2, 1.0)
    draws = uniforms(stream_keys(0, "test", np.arange(4000)), 1)[:, 0]
    chosen = tree.ancestors(np.full(4000, 22), draws)  # 22 - 10 - 4 - 1 - 0
    assert stats.chisquare(np.bincount(chosen)[[0, 1, 4, 10]]).pvalue > 1e-3


def test_parts_name_the_cluster_and_go_missing() -> None:
    data = load(num_clients=2000, num_parts=3, missing=0.3, num_clusters=10)
    truth, parts = data.truth["item_parts"], data.train.columns["parts"]
    assert parts.shape == (data.train.num_examples, 3)
    assert parts.dtype == np.int64
    assert (parts < 0).mean() == pytest.approx(0.3, abs=0.01)
    known = truth[data.train.columns["item"]]
    assert ((parts == known) | (parts == -1)).all()
    assert (truth // 10 == np.arange(3)).all()
    assert (truth % 10 == data.truth["item_cluster"][:, None]).mean() == pytest.approx(0.82, abs=0.03)
    assert len(data.vocabularies["part"]) == 30
    assert data.entity_of["parts"] == "part"


def test_distinct_is_uniform() -> None:
    chosen = distinct(uniforms(stream_keys(0, "test", np.arange(6000)), 3), 5)
    assert (np.sort(chosen, axis=1)[:, 1:] > np.sort(chosen, axis=1)[:, :-1]).all()
    ordered = chosen @ np.array([25, 5, 1])
    counts = np.unique(ordered, return_counts=True)[1]
    assert len(counts) == 60
    assert stats.chisquare(counts).pvalue > 1e-3


def test_zipf_ranks_stop_at_their_sizes() -> None:
    cdf = zipf_cdf(5, 1.0)
    draws = np.linspace(0, 1, 1000, endpoint=False)
    for size in (1, 2, 5):
        ranks = zipf_ranks(draws, np.full(1000, size), cdf)
        expected = 1000 * (1 / np.arange(1, size + 1)) / cdf[size - 1]
        np.testing.assert_allclose(np.bincount(ranks), expected, atol=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": "ring"}, "data.structure must be clusters or tree, got 'ring'"),
        ({"num_clients": 0}, "data.num_clients must be at least 1, got 0"),
        ({"zipf": -1}, "data.zipf must be at least 0, got -1"),
        ({"spread": float("nan")}, "data.spread must be at least 0, got nan"),
        ({"drift": 1.5}, r"data.drift must be in \[0, 1\], got 1.5"),
        ({"held_out": 0.5}, r"data.held_out must be in \[0, 0.49\], got 0.5"),
        ({"clusters_per_client": 9, "num_clusters": 8}, "must be at most data.num_clusters, 8, got 9"),
        ({"num_items": 5}, "data.num_clusters must be at most data.num_items, 5, got 20"),
        (
            {"structure": "tree", "num_items": 20},
            "data.num_items must be at least 41 for 20 subtrees .* got 20",
        ),
        ({"chunk_clients": 1 << 21}, "data.chunk_clients must be at most 1,048,576, got 2097152"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Synthetic(**settings)
