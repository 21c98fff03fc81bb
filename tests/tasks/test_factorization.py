"""tasks/factorization.py: which negatives count, which loss, which ranking, and what stays at home."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from fedemb.data.shards import Shards
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import SettingError
from fedemb.tasks.factorization import Factorization
from fedemb.train.optimizers import SGD
from fedemb.train.personal import personal_rows
from fedemb.train.rows import LocalTraining, train_cohort
from fedemb.types import Dataset, Updates

DEFAULTS = {
    "dim": 3, "negatives": 4, "objective": "bpr", "bias": True, "noise_power": 0.0, "init_scale": 0.1,
}  # fmt: skip
NUM_ITEMS = 6


def dataset(items: list[int], sizes: list[int]) -> Dataset:
    names = Vocabulary.of([f"i{i}" for i in range(NUM_ITEMS)], np.bincount(items, minlength=NUM_ITEMS))
    train = Shards({"item": np.array(items), "time": np.zeros(len(items))}, np.cumsum([0, *sizes]))
    return Dataset(train, {"item": names}, entity_of={"item": "item"})


TWO = dataset([0, 1, 2, 3, 4], [3, 2])


def built(data: Dataset = TWO, **changes: Any) -> Factorization:
    return Factorization.build(data, **{**DEFAULTS, **changes})


def trained(task: Factorization, data: Dataset, tables: dict[str, torch.Tensor], epochs: int = 1) -> Updates:
    clients = np.arange(data.train.num_clients)
    personal = personal_rows(task.tables, 0, len(clients))
    training = LocalTraining(SGD(), epochs, 0, 0.5)
    (updates,) = train_cohort(task, tables, {}, personal, task.examples(data.train), clients, training, 0, 1)
    return updates


def random_tables(task: Factorization) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {t.name: torch.randn(t.num_rows, t.dim) for t in task.tables if t.shared}


@pytest.mark.parametrize("objective", ["bpr", "logistic"])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_equals_an_obvious_loop(objective: str, bias: bool) -> None:
    task = built(objective=objective, bias=bias)
    tables, client = random_tables(task), torch.randn(2, 3)
    batch = {
        "item": torch.tensor([0, 3]),
        "negatives": torch.tensor([[5, 1, 4, 3], [0, 3, 3, 4]]),
        "known": torch.tensor([[False, True, False, False], [False, True, True, True]]),
    }
    ids = task.lookup(batch)
    vectors = {name: table[ids[name]] for name, table in tables.items()} | {"client": client[:, None]}
    got = task.loss(vectors, {}, batch)
    for line in range(2):

        def score(item: int, line: int = line) -> torch.Tensor:
            return client[line] @ tables["item"][item] + (tables["bias"][item, 0] if bias else 0)

        own = int(batch["item"][line])
        others = [
            int(n) for n, k in zip(batch["negatives"][line], batch["known"][line], strict=True) if not k
        ]
        if objective == "bpr":
            expected = sum(-logsigmoid(score(own) - score(n)) for n in others) / len(others)
        else:
            expected = -logsigmoid(score(own)) - sum(logsigmoid(-score(n)) for n in others)
        torch.testing.assert_close(got[line], expected)


@pytest.mark.parametrize("objective", ["bpr", "logistic"])
def test_own_items_never_count_as_negatives(objective: str) -> None:
    """A client that holds every item has nothing to rank below: only the positive part may teach."""
    everything = dataset([*range(NUM_ITEMS), *range(NUM_ITEMS)], [NUM_ITEMS, NUM_ITEMS])
    task = built(everything, objective=objective, negatives=50)
    bias = trained(task, everything, random_tables(task)).tables["bias"]
    if objective == "bpr":
        assert not bias.values.any()
    else:
        assert (bias.values > 0).all()


def test_the_other_clients_items_are_negatives() -> None:
    task = built(negatives=50)
    bias = trained(task, TWO, random_tables(task)).tables["bias"]
    own = [{0, 1, 2}, {3, 4}]
    for client, items in enumerate(own):
        lines = slice(int(bias.offsets[client]), int(bias.offsets[client + 1]))
        steps = dict(zip(bias.rows[lines].tolist(), bias.values[lines, 0].tolist(), strict=True))
        assert steps.keys() == set(range(NUM_ITEMS))
        assert {item for item, step in steps.items() if step > 0} == items


def test_pooled_data_remember_whose_items_are_whose() -> None:
    task = built(negatives=50)
    pooled = task.examples(TWO.train.pooled())
    everyone = personal_rows(task.tables, 0, 2)
    training, one = LocalTraining(SGD(), 1, 0, 0.5), np.zeros(1, dtype=np.int64)
    tables = {t.name: torch.zeros(t.num_rows, t.dim) for t in task.tables if t.shared}
    (together,) = train_cohort(task, tables, {}, everyone, pooled, one, training, 0, 1)
    # at the start all scores are 0: an item gains half for each example, and loses in turn for each draw elsewhere
    bias = together.tables["bias"]
    steps = dict(zip(bias.rows.tolist(), bias.values[:, 0].tolist(), strict=True))
    assert steps[5] < 0, "nobody took it"
    assert sum(steps.values()) == pytest.approx(0, abs=1e-6)
    assert everyone["client"].known.tolist() == [True, True]


def test_client_vectors_stay_at_home() -> None:
    task = built()
    assert {t.name: t.shared for t in task.tables} == {"item": True, "client": False, "bias": True}
    assert trained(task, TWO, random_tables(task)).tables.keys() == {"item", "bias"}
    assert "bias" not in {t.name for t in built(bias=False).tables}


@pytest.mark.parametrize("bias", [True, False])
def test_scores_equal_an_obvious_loop(bias: bool) -> None:
    task = built(bias=bias)
    tables, client = random_tables(task), torch.randn(4, 1, 3)
    history = Shards({"item": np.array([0])}, np.array([0, 1, 1, 1, 1]))
    got = task.scores(tables, {"client": client}, history)
    assert got.shape == (4, NUM_ITEMS)
    for c in range(4):
        for item in range(NUM_ITEMS):
            expected = client[c, 0] @ tables["item"][item] + (tables["bias"][item, 0] if bias else 0)
            torch.testing.assert_close(got[c, item], expected)


def test_noise_follows_the_counts() -> None:
    data = dataset([0] * 6 + [1] * 3 + [5], [10])
    batch = {"item": torch.zeros(10_000, dtype=torch.int64)}
    numbers = torch.linspace(0, 1 - 1e-9, 40_000, dtype=torch.float64).view(10_000, 4)
    for power, expected in ((0.0, [1 / 6] * 6), (1.0, [0.6, 0.3, 0, 0, 0, 0.1])):
        drawn = built(data, noise_power=power).sample(batch, numbers)["negatives"]
        np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=6) / 40_000, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "hinge"}, r"task\.objective must be one of bpr, logistic, got 'hinge'"),
        ({"dim": 0}, r"task\.dim must be at least 1, got 0"),
        ({"negatives": 0}, r"task\.negatives must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        built(**changes)


def test_data_that_do_not_fit() -> None:
    nodes = Dataset(Shards({"child": np.array([0])}, np.array([0, 1])), {})
    with pytest.raises(SettingError, match="needs who took which item: use data=interactions"):
        built(nodes)
