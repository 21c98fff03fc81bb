"""evaluate/sampled.py: a slow loop by the protocol's words, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedemb.build import build
from fedemb.config import compose_config, digest
from fedemb.data.shards import Shards, offsets_of
from fedemb.errors import SettingError
from fedemb.evaluate.ranking import Ranking
from fedemb.evaluate.sampled import sampled_metrics
from fedemb.seeds import bits, stream_keys
from fedemb.train.personal import personal_rows, rows_of

NUM_CLIENTS, NUM_ITEMS = 12, 60


def shards(seed: int, most: int) -> Shards:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(0, most, NUM_CLIENTS)
    sizes[3] = 0
    return Shards({"item": generator.integers(0, NUM_ITEMS, int(sizes.sum()))}, offsets_of(sizes))


def case() -> tuple[torch.Tensor, Shards, Shards, np.ndarray]:
    generator = np.random.default_rng(2)
    scores = torch.from_numpy(generator.integers(0, 12, (NUM_CLIENTS, NUM_ITEMS)).astype(np.float32))  # ties
    return scores, shards(0, 4), shards(1, 9), np.arange(NUM_CLIENTS) * 3 + 5


@pytest.mark.parametrize("num_sampled", [7, 99])
def test_equals_an_obvious_loop(num_sampled: int) -> None:
    scores, relevant, taken, clients = case()
    found = sampled_metrics(scores, relevant, taken, clients, num_sampled, 4, (3,))
    assert list(found) == [f"sampled{num_sampled}_hr@3", f"sampled{num_sampled}_ndcg@3"]
    for at, client in enumerate(clients):
        mine = {*relevant.take(np.array([at])).columns["item"].tolist()}
        out = mine | {*taken.take(np.array([at])).columns["item"].tolist()}
        numbers = bits(stream_keys(4, "sampled items", client), NUM_ITEMS)[0].tolist()
        free = sorted((item for item in range(NUM_ITEMS) if item not in out), key=lambda i: numbers[i])
        sample = free[:num_sampled]
        assert len(sample) == min(num_sampled, len(free))
        hits, gains = [], []
        for item in mine:
            above = sum(float(scores[at, other] > scores[at, item]) for other in sample)
            level = 1 + sum(float(scores[at, other] == scores[at, item]) for other in sample)
            ranks = [above + place for place in range(1, int(level) + 1)]  # equally likely
            hits.append(np.mean([rank <= 3 for rank in ranks]))
            gains.append(np.mean([1 / np.log2(rank + 1) if rank <= 3 else 0 for rank in ranks]))
        for values, name in ((hits, "hr"), (gains, "ndcg")):
            expected = np.mean(values) if values else np.nan
            got = float(found[f"sampled{num_sampled}_{name}@3"][at])
            assert got == pytest.approx(expected, nan_ok=True), (name, at)


def test_the_sample_is_a_clients_own_whoever_is_asked_with_it() -> None:
    scores, relevant, taken, clients = case()
    whole = sampled_metrics(scores, relevant, taken, clients, 9, 4)
    some = np.array([8, 2, 5])
    part = sampled_metrics(scores[some], relevant.take(some), taken.take(some), clients[some], 9, 4)
    for name, values in part.items():
        torch.testing.assert_close(values, whole[name][some], equal_nan=True)
    other = sampled_metrics(scores, relevant, taken, clients, 9, 5)
    assert not torch.equal(
        torch.nan_to_num(other["sampled9_ndcg@10"]), torch.nan_to_num(whole["sampled9_ndcg@10"])
    )


def test_every_free_item_is_drawn_equally_often_and_no_taken_one() -> None:
    """Hits of an item that is above exactly one other tell whether that one was drawn."""
    clients = np.arange(4000)
    taken = Shards({"item": np.tile([1, 2], 4000)}, np.arange(4001) * 2)
    relevant = Shards({"item": np.zeros(4000, dtype=np.int64)}, np.arange(4001))
    for other in range(1, 8):
        scores = torch.zeros(4000, 8)
        scores[:, 0], scores[:, other] = 1, 2
        hit = sampled_metrics(scores, relevant, taken, clients, 2, 0, (1,))["sampled2_hr@1"].mean()
        assert float(hit) == pytest.approx(1 if other in (1, 2) else 1 - 2 / 5, abs=0.03), other


SMALL = ["data=synthetic", "data.num_clients=40", "data.num_items=150", "task=factorization", "task.dim=4"]


def test_stands_beside_the_full_ranking_and_changes_nothing_else() -> None:
    plain, asked = (build(compose_config([*SMALL, *more])) for more in ([], ["evaluation.sampled=99"]))
    assert isinstance(asked.evaluation, Ranking)
    everybody = np.arange(40)
    personal = rows_of(personal_rows(plain.task.tables, 0, 40), everybody, 0, {})
    results = [parts.evaluation(parts.initial()[0], personal, everybody).metrics for parts in (plain, asked)]  # type: ignore[misc]
    assert set(results[1]) - set(results[0]) == {"sampled99_hr@10", "sampled99_ndcg@10"}
    assert all(results[1][name] == value for name, value in results[0].items())
    assert results[1]["sampled99_hr@10"] > results[1]["recall@10"]
    assert digest(compose_config([*SMALL, "evaluation.sampled=99"])) == digest(compose_config(SMALL))


def test_what_cannot_be_sampled_is_refused() -> None:
    for overrides, message in (
        ([*SMALL, "evaluation.sampled=150"], r"evaluation.sampled must be in \[0, 150\), the catalogue, got 150"),
        ([*SMALL, "evaluation.sampled=-1"], r"evaluation.sampled must be in \[0, 150\)"),
        ([*SMALL, "evaluation.sampled=few"], "evaluation.sampled must be a whole number, got 'few'"),
        ([*SMALL, "+evaluation.foo=1"], "evaluation.foo is not a setting"),
        ([*SMALL, "data.held_out=0", "evaluation.sampled=9"], "must be 0 where no held-out items are ranked"),
        (["evaluation.sampled=9"], "must be 0 where no held-out items are ranked, got 9"),
        ([*SMALL, "evaluation=3"], "evaluation must be sampled, calibrate, alpha and bins, got 3"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=message):
            build(compose_config(overrides))
