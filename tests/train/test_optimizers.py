"""train/optimizers.py: an optimiser that is remembered goes on as if nobody had stopped it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.train.apply import apply_
from fedemb.train.initial import initial_dense, initial_table
from fedemb.train.optimizers import SGD, Adagrad, Adam, LocalOptimizer, OptimizerMemory
from fedemb.train.personal import PersonalRows, personal_rows
from fedemb.train.rows import LocalTraining, train_cohort
from fedemb.types import Task
from tests.train.test_rows import PAIRS, TASKS, TRIPLES, WithDense, shards

ONE = np.zeros(1, dtype=np.int64)
every_optimizer = pytest.mark.parametrize(
    "optimizer", [SGD(), Adagrad(), Adam()], ids=["sgd", "adagrad", "adam"]
)


@dataclass(frozen=True)
class Steady:
    """``WithDense`` without chance: every epoch is the same, whatever its round and number."""

    inner: WithDense = field(default_factory=WithDense)
    num_draws: int = 0

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def sample(self, batch: Mapping[str, Tensor], uniforms: Tensor) -> Mapping[str, Tensor]:
        return {**batch, "negatives": (batch["left"] + batch["right"])[:, None] % 23}


@dataclass
class Learner:
    """One client that goes on learning from call to call."""

    task: Task
    optimizer: LocalOptimizer
    memory: OptimizerMemory | None
    num_owners: int = 1

    def __post_init__(self) -> None:
        self.tables = {t.name: initial_table(t, 0) for t in self.task.tables if t.shared}
        self.dense = {d.name: initial_dense(d, 0).double() for d in self.task.dense}
        self.personal: dict[str, PersonalRows] = personal_rows(self.task.tables, 0, self.num_owners)

    def learn(self, data: Shards, epochs: int = 1) -> dict[str, Tensor]:
        """All rows after these passes, each of a single step."""
        training = LocalTraining(self.optimizer, epochs, 0, 0.1)
        examples = self.task.examples(data)
        for updates in list(
            train_cohort(
                self.task, self.tables, self.dense, self.personal, examples, ONE, training, 5, 1, self.memory
            )
        ):
            apply_(self.task.tables, self.tables, self.dense, updates)
        private = {name: rows.points for name, rows in self.personal.items()}
        return {name: points.clone() for name, points in {**self.tables, **self.dense, **private}.items()}


STEADY = {
    "dense": (Steady, PAIRS),
    "complex": (TASKS["complex"][0], TRIPLES),
    "personal": (TASKS["distmult"][0], TRIPLES),
}


@every_optimizer
@pytest.mark.parametrize("name", STEADY)
def test_remembered_calls_are_the_epochs_of_one_call(name: str, optimizer: LocalOptimizer) -> None:
    """Of pooled data, so that personal rows of several owners are remembered too."""
    make, columns = STEADY[name]
    data = shards(*columns).pooled()
    once = Learner(make(), optimizer, None, 5).learn(data, 4)
    learner = Learner(make(), optimizer, OptimizerMemory(), 5)
    learner.learn(data)
    learner.learn(data, 2)
    several = learner.learn(data)
    for key, points in once.items():
        torch.testing.assert_close(several[key], points, rtol=1e-9, atol=1e-9, msg=key)
    if not isinstance(optimizer, SGD):
        forgetful = Learner(make(), optimizer, None, 5)
        for _ in range(4):
            last = forgetful.learn(data)
        assert all((last[key] - points).abs().max() > 1e-3 for key, points in once.items())


@pytest.mark.parametrize("optimizer", [Adagrad(), Adam()], ids=["adagrad", "adam"])
def test_rows_that_appear_later_start_afresh(optimizer: LocalOptimizer) -> None:
    task, data = Steady(), shards(*PAIRS)
    first, second = data.take(np.array([0])), data.take(np.array([3]))
    remembering = Learner(task, optimizer, OptimizerMemory())
    remembering.learn(first)
    forgetful = Learner(task, optimizer, None)
    forgetful.learn(first)
    start = remembering.tables["item"].clone()
    seen, new = (
        {int(i) for i in task.lookup(task.sample(columns, torch.zeros(0)))["item"].flatten()}
        for columns in ({n: torch.from_numpy(c) for n, c in part.columns.items()} for part in (first, second))
    )
    assert new - seen
    assert new & seen
    with_state, without = remembering.learn(second)["item"], forgetful.learn(second)["item"]
    later, known = sorted(new - seen), sorted(new & seen)
    torch.testing.assert_close(with_state[later], without[later], rtol=1e-9, atol=1e-9)
    assert ((with_state[later] - start[later]).abs() > 1e-6).any(1).all()
    assert ((with_state[known] - without[known]).abs() > 1e-6).any(1).all()


some_rows = st.sets(st.integers(0, 9), max_size=6)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(some_rows, st.sampled_from(["one", "other"])), max_size=6), some_rows)
def test_memory_is_a_dictionary(calls: list[tuple[set[int], str]], wanted: set[int]) -> None:
    memory = OptimizerMemory()
    expected: dict[str, dict[int, float]] = {"one": {}, "other": {}}
    for number, (rows, table) in enumerate(calls):
        values = [10.0 * number + row + 1 for row in sorted(rows)]
        state = {"square": torch.tensor(values, dtype=torch.float64).view(-1, 1).expand(-1, 2).clone()}
        memory.put(table, torch.tensor(sorted(rows), dtype=torch.int64), state)
        expected[table] |= dict(zip(sorted(rows), values, strict=True))
    for table, known in expected.items():
        taken = memory.take(table, torch.tensor(sorted(wanted), dtype=torch.int64))
        assert set(taken) == ({"square"} if known else set())
        if known:
            assert taken["square"].tolist() == [[known.get(row, 0.0)] * 2 for row in sorted(wanted)]


def test_what_is_taken_can_be_changed() -> None:
    memory, rows = OptimizerMemory(), torch.tensor([2, 5])
    memory.put("item", rows, {"square": torch.ones(2, 3)})
    memory.take("item", rows)["square"].zero_()
    assert memory.take("item", rows)["square"].eq(1).all()


@pytest.mark.parametrize("optimizer", [Adagrad, Adam])
def test_settings_out_of_range(optimizer: type[Adagrad] | type[Adam]) -> None:
    with pytest.raises(ValueError, match=r"train\.optimizer\.epsilon must be > 0, got 0"):
        optimizer(epsilon=0)
    with pytest.raises(ValueError, match=r"train\.optimizer\.beta2 must be in \[0, 1\), got 1"):
        replace(Adam(), beta2=1.0)
