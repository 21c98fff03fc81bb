"""Which pairs of a taxonomy are held out: never direct ones, exactly so many, at every client."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedemb.data.held_out import TEST, TRAIN, VALIDATION
from fedemb.data.links import label_pairs
from fedemb.data.partition import IID, ByColumn, Natural, Subtree
from fedemb.data.shards import Shards
from fedemb.data.taxonomy import TaxonomyFile
from fedemb.data.wordnet import Mammals, WordNet
from fedemb.errors import SettingError
from fedemb.types import Dataset, Partition, Taxonomy
from tests.evaluate.test_hierarchy import random_taxonomy

COLUMNS = {"child": "child", "parent": "parent", "client": None}
OWNED = {**COLUMNS, "client": "owner"}
Pairs = list[tuple[int, int]]


def written(folder: Path) -> str:
    """Forty nodes in three branches, each edge at one or two of four owners."""
    generator = np.random.default_rng(0)
    lines = ["child,parent,owner"]
    for node in range(1, 40):
        for parent in {int(generator.integers(0, node)), max(0, node - 3)}:
            owners = generator.choice(4, generator.integers(1, 3), replace=False)
            lines += [f"n{node:02},n{parent:02},{owner}" for owner in owners]
    path = folder / "edges.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def pairs_of(shards: Shards) -> list[Pairs]:
    """Pairs of each client, in order."""
    lines = list(zip(shards.columns["child"].tolist(), shards.columns["parent"].tolist(), strict=True))
    return [lines[start:end] for start, end in zip(shards.offsets[:-1], shards.offsets[1:], strict=True)]


def distinct(shards: Shards) -> set[tuple[int, int]]:
    return {pair for pairs in pairs_of(shards) for pair in pairs}


def direct_pairs(data: Dataset) -> set[tuple[int, int]]:
    """Edges that no way over a third node replaces."""
    assert data.taxonomy is not None
    pairs = set(zip(data.taxonomy.child.tolist(), data.taxonomy.parent.tolist(), strict=True))
    above: dict[int, set[int]] = {}
    for child, parent in pairs:
        above.setdefault(child, set()).add(parent)
    return {(c, p) for c, p in pairs if not any(p in above.get(between, ()) for between in above[c])}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_edges=st.integers(0, 60),
    validation=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    test=st.sampled_from([0.0, 0.2, 0.49, 1 / 3]),
)
def test_exactly_so_many_and_never_direct(seed: int, num_edges: int, validation: float, test: float) -> None:
    taxonomy = random_taxonomy(np.random.default_rng(seed), 30, num_edges)
    label = label_pairs(taxonomy, validation, test, seed)
    num_far = int((~taxonomy.direct).sum())
    assert (label[taxonomy.direct] == TRAIN).all()
    assert (label == TEST).sum() == round(test * num_far)
    assert (label == VALIDATION).sum() == round(validation * num_far)
    order = np.random.default_rng(seed).permutation(len(taxonomy.child))
    shuffled = Taxonomy(taxonomy.child[order], taxonomy.parent[order], taxonomy.depth, taxonomy.direct[order])
    np.testing.assert_array_equal(label_pairs(shuffled, validation, test, seed), label[order])
    alone = label_pairs(taxonomy, 0.0, test, seed)
    np.testing.assert_array_equal(alone == TEST, label == TEST, "validation takes nothing from testing")


def test_every_pair_is_as_likely() -> None:
    taxonomy = random_taxonomy(np.random.default_rng(1), 12, 20)
    times = sum((label_pairs(taxonomy, 0.0, 0.25, seed) == TEST).astype(int) for seed in range(2000))
    far = times[~taxonomy.direct] / 2000
    expected = round(0.25 * len(far)) / len(far)
    assert len(far) > 15
    assert np.abs(far - expected).max() < 5 * (expected * (1 - expected) / 2000) ** 0.5


@pytest.mark.parametrize("partition", [IID(5), Subtree(6), ByColumn("parent"), Subtree(1)], ids=repr)
def test_clients_are_those_of_all_pairs(tmp_path: Path, partition: Partition) -> None:
    path = written(tmp_path)
    whole = TaxonomyFile(path, COLUMNS).load(partition, 3)
    data = TaxonomyFile(path, COLUMNS, validation_share=0.1, test_share=0.3).load(partition, 3)
    assert list(data.held_out) == ["validation", "test"]
    assert (data.clients is None) == (whole.clients is None)
    if data.clients is not None and whole.clients is not None:
        assert data.clients.to_list() == whole.clients.to_list()
    parts = [data.train, *data.held_out.values()]
    together = [sorted(chain(*pairs)) for pairs in zip(*(pairs_of(part) for part in parts), strict=True)]
    assert together == [sorted(pairs) for pairs in pairs_of(whole.train)]
    train, validation, test = (distinct(part) for part in parts)
    assert not train & validation
    assert not train & test
    assert not validation & test
    direct = direct_pairs(data)
    assert direct <= train
    assert data.taxonomy is not None
    num_far = len(data.taxonomy.child) - len(direct)
    assert data.counts["test_pairs"] == len(test) == round(0.3 * num_far) > 10
    assert data.counts["validation_pairs"] == len(validation) == round(0.1 * num_far)
    for part in parts:
        assert set(part.columns) == {"child", "parent"}
        assert part.num_clients == whole.train.num_clients
        for name in part.columns:
            assert part.columns[name].dtype == np.int64
    alone = TaxonomyFile(path, COLUMNS, test_share=0.3).load(IID(1), 3)
    assert distinct(alone.held_out["test"]) == test, "the same whatever the partition"
    other = TaxonomyFile(path, COLUMNS, test_share=0.3).load(partition, 4)
    assert distinct(other.held_out["test"]) != test


def test_a_client_may_be_left_without_training(tmp_path: Path) -> None:
    path = tmp_path / "edges.csv"
    path.write_text("child,parent\n" + "".join(f"n{n + 1:02},n{n:02}\n" for n in range(12)))
    data = TaxonomyFile(str(path), COLUMNS, test_share=0.99).load(IID(70), 0)
    assert data.train.num_clients == data.held_out["test"].num_clients == 70
    assert (data.train.sizes == 0).any()
    assert (data.train.sizes + data.held_out["test"].sizes > 0).all()
    assert list(data.held_out) == ["test"]


def test_a_pair_is_held_out_at_all_its_holders(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = TaxonomyFile(path, OWNED).load(Natural(), 0)
    data = TaxonomyFile(path, OWNED, test_share=0.3).load(Natural(), 0)
    test = distinct(data.held_out["test"])
    assert data.held_out["test"].num_examples > len(test) == data.counts["test_pairs"], "some at several"
    assert not test & distinct(data.train)
    for held, kept, everything in zip(
        pairs_of(data.held_out["test"]), pairs_of(data.train), pairs_of(whole.train), strict=True
    ):
        assert held == [pair for pair in everything if pair in test]
        assert kept == [pair for pair in everything if pair not in test]
    unowned = TaxonomyFile(path, COLUMNS, test_share=0.3).load(IID(2), 0)
    assert distinct(unowned.held_out["test"]) == test


def test_within_a_part_of_the_taxonomy(tmp_path: Path) -> None:
    """Direct is what is direct among the nodes that are kept."""
    source = TaxonomyFile(written(tmp_path), OWNED, root="n00", exclude=["n03", "n05"], test_share=0.5)
    data = source.load(Natural(), 0)
    direct = direct_pairs(data)
    assert data.taxonomy is not None
    test = distinct(data.held_out["test"])
    assert len(test) == round(0.5 * (len(data.taxonomy.child) - len(direct)))
    assert direct <= distinct(data.train)


def test_nothing_is_held_out_by_default(tmp_path: Path) -> None:
    data = TaxonomyFile(written(tmp_path), COLUMNS).load(IID(2), 0)
    assert data.held_out == {}
    assert not {"validation_pairs", "test_pairs"} & set(data.counts)
    star = tmp_path / "star.csv"
    star.write_text("child,parent\na,root\nb,root\n")
    data = TaxonomyFile(str(star), COLUMNS, test_share=0.5).load(IID(2), 0)
    assert data.held_out == {}, "all pairs are direct"
    assert (data.counts["validation_pairs"], data.counts["test_pairs"]) == (0, 0)
    assert data.train.num_examples == 2


def test_the_mammals() -> None:
    data = Mammals(validation_share=0.05, test_share=0.2).load(Subtree(40), 0)
    assert (data.counts["validation_pairs"], data.counts["test_pairs"]) == (268, 1072)
    assert data.train.num_examples == 6_540 - 268 - 1_072
    assert data.held_out["test"].num_clients == 40


SOURCES = {
    "taxonomy": lambda **settings: TaxonomyFile("edges.csv", COLUMNS, **settings),
    "wordnet": lambda **settings: WordNet("dict", **settings),
    "mammals": lambda **settings: Mammals(**settings),
}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"test_share": 1.0}, r"data\.test_share must be in \[0, 1\), got 1\.0"),
        ({"validation_share": -0.1}, r"data\.validation_share must be in \[0, 1\), got -0\.1"),
        ({"test_share": float("nan")}, r"data\.test_share must be in \[0, 1\), got nan"),
        ({"test_share": 0.5, "validation_share": 0.5}, r"must stay below 1, got 1\.0"),
        ({"test_share": 0.1, "closure": False}, r"data\.test_share must be 0 where data\.closure is false"),
        ({"validation_share": 0.1, "closure": False}, r"got 0\.1; .* so set data\.closure=true"),
    ],
)
def test_wrong_shares_are_refused(settings: dict[str, Any], said: str) -> None:
    for name, source in SOURCES.items():
        if name != "mammals" or "closure" not in settings:
            with pytest.raises(SettingError, match=said) as caught:
                source(**settings)
            assert "\n" not in str(caught.value)
