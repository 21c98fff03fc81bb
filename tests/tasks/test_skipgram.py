"""tasks/skipgram.py and tasks/noise.py: which pairs, which noise, which loss, which ranking."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from fedemb.data.shards import Shards, group_by_client, offsets_of
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import SettingError
from fedemb.seeds import stream_keys, uniforms
from fedemb.tasks.noise import ids_from_cdf, keep_probability, noise_cdf, uniform_ids
from fedemb.tasks.skipgram import Skipgram, windows
from fedemb.train.optimizers import SGD
from fedemb.train.rows import LocalTraining, train_cohort
from fedemb.types import Dataset

DEFAULTS = {
    "dim": 4, "negatives": 3, "tied": False, "window": 2, "noise_power": 0.75, "subsample": 0.0, "recent": 0,
}  # fmt: skip
COUNTS = np.array([40, 20, 10, 5, 0, 25])


def vocabulary(counts: Any = COUNTS, prefix: str = "i") -> Vocabulary:
    return Vocabulary.of([f"{prefix}{i}" for i in range(len(counts))], np.asarray(counts))


def sequences(counts: Any = COUNTS) -> Dataset:
    train = Shards({"item": np.array([0, 1, 2, 1])}, np.array([0, 3, 4]))
    return Dataset(train, {"item": vocabulary(counts)}, entity_of={"item": "item"})


def pairs(tied: bool) -> Dataset:
    columns = {
        "left": np.array([0, 1]),
        "right": np.array([1, 2]),
        "label": np.array([1, 0], dtype=np.float32),
    }
    train = Shards(columns, np.array([0, 2]))
    if tied:
        return Dataset(train, {"item": vocabulary()}, entity_of={"left": "item", "right": "item"})
    names = {"left": vocabulary(), "right": vocabulary([1, 2, 3], "r")}
    return Dataset(train, names, entity_of={"left": "left", "right": "right"})


def built(dataset: Dataset | None = None, **changes: Any) -> Skipgram:
    return Skipgram.build(dataset or sequences(), **{**DEFAULTS, **changes})


def draws_of(lines: int, numbers: int) -> torch.Tensor:
    keys = stream_keys(0, "test", np.arange(lines))
    return torch.from_numpy(uniforms(keys, numbers))


def obvious_windows(
    items: list[int], clients: list[int], sessions: list[int] | None, distances: list[int]
) -> list[Counter]:
    """Every ordered pair of positions, looked at one by one."""
    found = [Counter() for _ in range(max(clients, default=-1) + 1)]
    for i in range(len(items)):
        for j in range(len(items)):
            together = clients[i] == clients[j] and (sessions is None or sessions[i] == sessions[j])
            if together and abs(i - j) in distances:
                found[clients[i]][items[i], items[j]] += 1
    return found


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 5)), max_size=30),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from(["session", "history"]),
)
def test_windows_equal_an_obvious_loop(
    lines: list[tuple[int, int, int]], window: int, has_sessions: bool, within: str
) -> None:
    lines = sorted(lines, key=lambda line: line[:2])
    clients, sessions, items = ([line[i] for line in lines] for i in range(3))
    columns = {"item": np.array(items, dtype=np.int64)}
    if has_sessions:
        columns["session"] = np.array(sessions, dtype=np.int64)
    shards = Shards(columns, offsets_of(np.bincount(clients or [0], minlength=4)[:4] * bool(lines)))
    made = windows(shards, window, within)
    near = [d + 1 for d in range(window)] if within == "session" else [2**d for d in range(window)]
    bounded = sessions if has_sessions and within == "session" else None
    expected = obvious_windows(items, clients, bounded, near)
    for client in range(4):
        own = made.take(np.array([client]))
        got = Counter(zip(own.columns["left"].tolist(), own.columns["right"].tolist(), strict=True))
        assert got == (expected[client] if client < len(expected) else Counter())
        assert (own.columns["label"] == 1).all()


def test_windows_of_pooled_data_do_not_join_owners() -> None:
    shards = Shards({"item": np.arange(6)}, np.array([0, 2, 6]))
    apart, pooled = windows(shards, 3), windows(shards.pooled(), 3)
    assert pooled.num_clients == 1
    both = [
        sorted(zip(s.columns["left"].tolist(), s.columns["right"].tolist(), strict=True))
        for s in (apart, pooled)
    ]
    assert both[0] == both[1]


def test_noise_follows_counts_to_the_power() -> None:
    for power in (0.0, 0.75, 1.0):
        weights = np.where(COUNTS > 0, COUNTS.astype(float), 0.0) ** power
        task = built(negatives=200, noise_power=power)
        batch = {"left": torch.zeros(1000, dtype=torch.int64), "right": torch.zeros(1000, dtype=torch.int64)}
        drawn = task.sample(batch, draws_of(1000, task.num_draws))["negatives"]
        assert drawn.shape == (1000, 200)
        share = np.bincount(drawn.numpy().ravel(), minlength=6) / drawn.numel()
        np.testing.assert_allclose(share, weights / weights.sum(), atol=0.005)


def test_ends_of_the_noise_distribution() -> None:
    cdf = noise_cdf(vocabulary([0, 3, 1, 0]), 1.0)
    numbers = torch.tensor([[0.0, 0.7499, 0.75, 1 - 2**-53]], dtype=torch.float64)
    assert ids_from_cdf(numbers, cdf).tolist() == [[1, 1, 2, 2]]
    assert uniform_ids(numbers, 4).tolist() == [[0, 2, 3, 3]]
    nothing = noise_cdf(vocabulary([0, 0]), 0.75)
    assert nothing.tolist() == [0.5, 1.0], "without counts all are alike"
    uncounted = noise_cdf(Vocabulary.of(["a", "b", "c", "d"]), 0.75)
    assert uncounted.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_subsampling_keeps_what_word2vec_keeps() -> None:
    threshold = 0.05
    frequency = np.maximum(COUNTS / COUNTS.sum(), 1e-12)
    expected = np.minimum(1, np.sqrt(threshold / frequency) + threshold / frequency)
    keep = keep_probability(vocabulary(), threshold)
    assert keep is not None
    np.testing.assert_allclose(keep, expected)
    assert keep[0] < keep[1] < 1
    assert keep[3] == keep[4] == 1
    task = built(subsample=threshold)
    left, right = torch.tensor([0, 0, 1, 3]).repeat(50_000), torch.tensor([0, 3, 1, 3]).repeat(50_000)
    out = task.sample({"left": left, "right": right}, draws_of(len(left), task.num_draws))
    assert out["negatives"].shape == (len(left), 3)
    rates = out["keep"].view(-1, 4).double().mean(0)
    np.testing.assert_allclose(rates, expected[[0, 0, 1, 3]] * expected[[0, 3, 1, 3]], atol=0.01)
    assert built().keep is None
    assert "keep" not in built().sample({"left": left, "right": right}, draws_of(len(left), 3))


def test_a_dropped_pair_teaches_nothing() -> None:
    """With a threshold so low that no pair survives, nothing moves."""
    task = built(sequences([1000] * 6), subsample=1e-12)
    shards = Shards({"item": np.array([0, 1, 2])}, np.array([0, 3]))
    training = LocalTraining(SGD(), 1, 0, 1.0)
    tables = {table.name: torch.ones(table.num_rows, table.dim) for table in task.tables}
    clients = np.array([0])
    (update,) = train_cohort(task, tables, {}, {}, task.examples(shards), clients, training, 0, 1)
    assert update.metrics["examples"].tolist() == [0]
    assert all(not rows.values.abs().sum() for rows in update.tables.values())


def batch_of(labels: list[float], negatives: list[list[int]] | None = None) -> dict[str, torch.Tensor]:
    n = len(labels)
    batch = {"left": torch.arange(n), "right": torch.arange(n) + 1, "label": torch.tensor(labels).float()}
    return batch if negatives is None else {**batch, "negatives": torch.tensor(negatives)}


def gathered(task: Skipgram, batch: dict[str, torch.Tensor]) -> tuple[dict, dict]:
    torch.manual_seed(0)
    tables = {table.name: torch.randn(table.num_rows, table.dim) for table in task.tables}
    return tables, {name: tables[name][ids] for name, ids in task.lookup(batch).items()}


def test_loss_is_that_of_the_paper() -> None:
    task = built()
    batch = batch_of([1, 1], [[3, 4, 3], [5, 2, 0]])
    tables, vectors = gathered(task, batch)
    got = task.loss(vectors, {}, batch)
    for line in range(2):
        left, right = tables["item"][batch["left"][line]], tables["context"][batch["right"][line]]
        noise = [n for n in batch["negatives"][line].tolist() if n != batch["right"][line]]
        expected = -logsigmoid(left @ right) - sum(logsigmoid(-(left @ tables["context"][n])) for n in noise)
        torch.testing.assert_close(got[line], expected)


def test_pairs_that_are_not_together_have_no_noise() -> None:
    task = built()
    batch = batch_of([0], [[3, 4, 5]])
    tables, vectors = gathered(task, batch)
    expected = -logsigmoid(-(tables["item"][0] @ tables["context"][1]))
    torch.testing.assert_close(task.loss(vectors, {}, batch)[0], expected)


def test_one_table_without_negatives_is_logistic_factorisation() -> None:
    task = built(pairs(tied=True), tied=True, negatives=0)
    assert [table.name for table in task.tables] == ["item"]
    assert task.num_draws == 0
    batch = batch_of([1, 0, 1])
    tables, vectors = gathered(task, batch)
    scores = (tables["item"][batch["left"]] * tables["item"][batch["right"]]).sum(1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, batch["label"], reduction="none")
    torch.testing.assert_close(task.loss(vectors, {}, batch), expected)


def test_two_vocabularies_make_two_tables() -> None:
    task = built(pairs(tied=False))
    assert {t.name: (t.num_rows, t.entity) for t in task.tables} == {
        "left": (6, "left"),
        "right": (3, "right"),
    }
    drawn = task.sample(pairs(False).train.columns and batch_of([1]), draws_of(1, 3))["negatives"]
    assert drawn.max() < 3
    assert len(task.cdf) == 3


def obvious_scores(
    task: Skipgram, tables: dict[str, torch.Tensor], histories: list[list[int]]
) -> torch.Tensor:
    rows = []
    context = tables[task.tables[-1].name]
    for history in histories:
        latest = history[-task.recent :] if task.recent else history
        profile, expected = torch.zeros(task.dim), torch.zeros(task.num_items)
        for item in latest:
            vector = tables["item"][item]
            profile += vector / vector.norm()
            likely = (context @ vector).exp()
            expected += likely / likely.sum()
        alike = torch.cosine_similarity(tables["item"], profile[None])
        rows.append(alike if task.score == "cosine" else expected)
    return torch.stack(rows)


@pytest.mark.parametrize("score", ["cosine", "softmax"])
@pytest.mark.parametrize("recent", [0, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_scores_equal_an_obvious_loop(
    score: str, recent: int, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedemb.tasks.skipgram._BLOCK_ITEMS", 2)
    task = built(score=score, recent=recent, tied=tied)
    tables, _ = gathered(task, batch_of([1], [[1, 2, 3]]))
    histories = [[0, 3, 3, 5], [], [2]]
    owners = np.repeat(np.arange(3), [4, 0, 1])
    history = group_by_client({"item": np.concatenate(histories).astype(np.int64)}, owners, 3)
    got = task.scores(tables, {}, history)
    assert got.shape == (3, 6)
    torch.testing.assert_close(got, obvious_scores(task, tables, histories))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, r"task\.dim must be at least 1, got 0"),
        ({"negatives": -1}, r"task\.negatives must be at least 0, got -1"),
        ({"window": 0}, r"task\.window must be at least 1, got 0"),
        ({"recent": -1}, r"task\.recent must be at least 0, got -1"),
        ({"subsample": -0.1}, r"task\.subsample must be at least 0 .*got -0\.1"),
        ({"score": "dot"}, r"task\.score must be one of cosine, softmax, got 'dot'"),
        ({"within": "day"}, r"task\.within must be one of session, history, got 'day'"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        built(**changes)


def test_data_that_do_not_fit() -> None:
    nodes = Dataset(Shards({"child": np.array([0])}, np.array([0, 1])), {"node": vocabulary()})
    with pytest.raises(SettingError, match="needs sequences or pairs: use data=interactions, text or pairs"):
        built(nodes)
    with pytest.raises(SettingError, match="one vocabulary for both sides"):
        built(pairs(tied=False), tied=True)
