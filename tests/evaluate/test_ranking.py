"""evaluate/ranking.py: expected values over the orders of ties, against slow and obvious references."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedemb.data.shards import Shards, offsets_of
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import SettingError
from fedemb.evaluate.ranking import Ranking, history_before, rank_metrics
from fedemb.types import Dataset, Evaluation, Int64, Recommender


def shards_of(items: list[list[int]]) -> Shards:
    sizes = np.array([len(mine) for mine in items], dtype=np.int64)
    return Shards({"item": np.array(list(chain(*items)), dtype=np.int64)}, offsets_of(sizes))


def of_order(order: list[int], relevant: set[int], k: int) -> tuple[float, float, float]:
    """NDCG, recall and reciprocal rank of one ranking, by the book."""
    hits = [item in relevant for item in order]
    gain = sum(hit / np.log2(rank + 2) for rank, hit in enumerate(hits[:k]))
    ideal = sum(1 / np.log2(rank + 2) for rank in range(min(k, len(relevant))))
    return gain / ideal, sum(hits[:k]) / len(relevant), 1 / (hits.index(True) + 1)


def reference(scores: list[float], relevant: set[int], excluded: set[int], k: int) -> list[float]:
    """Mean over all orders that the scores allow."""
    relevant, items = relevant - excluded, [i for i in range(len(scores)) if i not in excluded]
    if not relevant:
        return [np.nan] * 3
    allowed = [p for p in permutations(items) if all(scores[a] >= scores[b] for a, b in zip(p, p[1:]))]  # noqa: B905, RUF007
    return list(np.mean([of_order(list(order), relevant, k) for order in allowed], axis=0))


level = st.sampled_from([0.0, 1.0, 2.0])
some_items = st.lists(st.integers(0, 5), max_size=5)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.lists(level, min_size=6, max_size=6), some_items, some_items), min_size=1, max_size=3
    ),
    st.integers(1, 7),
)
def test_equals_the_mean_over_all_orders(
    clients: list[tuple[list[float], list[int], list[int]]], k: int
) -> None:
    scores = torch.tensor([row for row, _, _ in clients])
    relevant, excluded = shards_of([r for _, r, _ in clients]), shards_of([e for _, _, e in clients])
    for out_of in (None, excluded):
        ours = rank_metrics(scores, relevant, out_of, [k])
        theirs = [reference(row, {*r}, set() if out_of is None else {*e}, k) for row, r, e in clients]
        for name, expected in zip(
            (f"ndcg@{k}", f"recall@{k}", "mrr"), np.array(theirs, dtype=float).T, strict=True
        ):
            np.testing.assert_allclose(ours[name], expected, atol=1e-12, err_msg=name)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 400), st.integers(1, 6))
def test_distinct_scores_equal_a_plain_sort(seed: int, num_items: int, num_clients: int) -> None:
    generator = np.random.default_rng(seed)
    scores = np.stack([generator.permutation(num_items) for _ in range(num_clients)]).astype(np.float64)
    taken = [generator.choice(num_items, generator.integers(0, num_items), False) for _ in range(num_clients)]
    relevant = shards_of([items.tolist() for items in taken])
    ours = rank_metrics(torch.from_numpy(scores), relevant, None, [5])
    for client, items in enumerate(taken):
        expected = (
            of_order(np.argsort(-scores[client]).tolist(), {*items.tolist()}, 5)
            if len(items)
            else [np.nan] * 3
        )
        got = [ours[name][client].item() for name in ("ndcg@5", "recall@5", "mrr")]
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_constant_scores_are_chance() -> None:
    num_items, num_relevant = 1000, 7
    ours = rank_metrics(torch.zeros(1, num_items), shards_of([list(range(num_relevant))]), None, [10])
    discount = 1 / np.log2(np.arange(2, 12))
    ideal = discount[:num_relevant].sum()
    assert ours["recall@10"].item() == pytest.approx(10 / num_items)
    assert ours["ndcg@10"].item() == pytest.approx(discount.sum() * num_relevant / num_items / ideal)
    generator = np.random.default_rng(0)
    draws = [1 / (1 + generator.permutation(num_items)[:num_relevant].min()) for _ in range(20_000)]
    assert ours["mrr"].item() == pytest.approx(np.mean(draws), rel=0.05)


def test_scores_that_are_no_numbers_rank_last() -> None:
    scores = torch.tensor([[torch.nan, -torch.inf, 0.0, torch.inf]])
    metrics = rank_metrics(scores, shards_of([[3]]), shards_of([[1]]), [1])
    assert metrics["mrr"].item() == 1
    metrics = rank_metrics(scores, shards_of([[0]]), None, [1])
    assert metrics["mrr"].item() == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_bad_shapes_and_ids() -> None:
    with pytest.raises(ValueError, match=r"items must be in \[0, 3\), got 1 to 3"):
        rank_metrics(torch.zeros(1, 3), shards_of([[1, 3]]))
    with pytest.raises(ValueError, match=r"must be given for 2 clients, got 1"):
        rank_metrics(torch.zeros(2, 3), shards_of([[1]]))


@dataclass(frozen=True)
class Profile:
    """A small recommender that uses all of its arguments."""

    num_items: int
    blocks: list[int]
    catalogue: str = "item"

    def scores(
        self,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        history: Shards,
        now: Int64 | None = None,
    ) -> Tensor:
        self.blocks.append(history.num_clients)
        assert len(personal["client"]) == history.num_clients
        taken = torch.zeros(history.num_clients, self.num_items)
        taken[torch.from_numpy(history.owners()), torch.from_numpy(history.columns["item"])] = 0.5
        return personal["client"][:, 0] @ tables["item"].T + taken


def case(
    num_clients: int = 40, num_items: int = 30
) -> tuple[Profile, Shards, Shards, Shards, dict[str, Tensor], dict[str, Tensor]]:
    generator = np.random.default_rng(3)

    def draw(most: int) -> Shards:
        sizes = generator.integers(0, most, num_clients)
        sizes[:2] = [0, 3]
        return shards_of([generator.integers(0, num_items, size).tolist() for size in sizes])

    tables = {"item": torch.randn(num_items, 4, generator=torch.Generator().manual_seed(0))}
    personal = {"client": torch.randn(num_clients, 1, 4, generator=torch.Generator().manual_seed(1))}
    return Profile(num_items, []), draw(9), draw(3), draw(6), tables, personal


def test_evaluation_does_not_depend_on_blocks_or_company() -> None:
    task, train, validation, test, tables, personal = case()
    assert isinstance(task, Recommender)
    everyone = np.arange(40)
    small: Evaluation = Ranking(task, (train, validation), test, (3, 10), memory_bytes=32 * 30 * 7)
    assert small.on_clients
    whole = small(tables, personal, everyone)
    assert task.blocks[0] == 1
    assert max(task.blocks) == 7
    assert set(whole.metrics) == {
        f"{new}{m}" for new in ("", "new_") for m in ("ndcg@3", "recall@3", "ndcg@10", "recall@10", "mrr")
    }
    some = np.array([30, 5, 0, 1])
    part = small(tables, {"client": personal["client"][some]}, some)
    for name, values in part.per_client.items():
        np.testing.assert_array_equal(values, whole.per_client[name][some])
        assert whole.metrics[name] == pytest.approx(np.nanmean(whole.per_client[name]))


def test_evaluation_equals_its_definition() -> None:
    task, train, validation, test, tables, personal = case()
    ours = Ranking(task, (train, validation), test, (4,), split="validation")(tables, personal, np.arange(40))
    for client in range(40):
        one = np.array([client])
        known = {i for part in (train, validation) for i in part.take(one).columns["item"].tolist()}
        wanted = set(test.take(one).columns["item"].tolist())
        scores = (tables["item"] @ personal["client"][client, 0]).tolist()
        scores = [s + 0.5 * (i in known) for i, s in enumerate(scores)]
        order = sorted(range(30), key=lambda item: -scores[item])
        counted = bool(known and wanted)
        all_items = of_order(order, wanted, 4) if counted else [np.nan] * 3
        unknown = [item for item in order if item not in known]
        new_items = of_order(unknown, wanted - known, 4) if counted and wanted - known else [np.nan] * 3
        for name, a, b in zip(("ndcg@4", "recall@4", "mrr"), all_items, new_items, strict=True):
            assert ours.per_client[f"validation_{name}"][client] == pytest.approx(a, nan_ok=True)
            assert ours.per_client[f"validation_new_{name}"][client] == pytest.approx(b, nan_ok=True)
    assert np.isnan(ours.per_client["validation_mrr"][0])  # nothing known, nothing to find


def test_nobody_to_rank_and_broken_scores(caplog: pytest.LogCaptureFixture) -> None:
    task, train, _, test, tables, personal = case()
    empty = Ranking(task, train, test)(tables, {"client": personal["client"][:1]}, np.array([0]))
    assert np.isnan(empty.metrics["ndcg@10"])
    assert len(empty.per_client["mrr"]) == 1
    broken = {"client": torch.full_like(personal["client"], torch.nan)}
    ours = Ranking(task, train, test)(tables, broken, np.arange(40))
    assert 0 < ours.metrics["ndcg@10"] < 0.5
    assert "are not numbers" in caplog.text
    with pytest.raises(SettingError, match=r"cut-offs of a ranking must be 1 or more, got \[0\]"):
        Ranking(task, train, test, (0,))
    with pytest.raises(ValueError, match=r"history must have 40 clients like test, got 2"):
        Ranking(task, train.take(np.arange(2)), test)


def test_history_of_a_split() -> None:
    _, train, validation, test, _, _ = case()
    data = Dataset(train, {"item": Vocabulary.of(["a"])}, held_out={"validation": validation, "test": test})
    assert history_before(data, "test") == (train, validation)
    assert history_before(data, "validation") == (train,)
    with pytest.raises(SettingError, match=r"got 'tset'; there are validation, test"):
        history_before(data, "tset")
