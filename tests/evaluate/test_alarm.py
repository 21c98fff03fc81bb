"""The leak alarm is silent where nothing leaks, and fires for a protocol that is known to leak."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

import fedemb
from fedemb.build import Parts, build
from fedemb.config import compose_config
from fedemb.data.shards import Shards
from fedemb.evaluate.alarm import leak_alarm
from fedemb.evaluate.choose import unknowing_rankings
from fedemb.run import experiment
from fedemb.run.baselines import local_only
from fedemb.tasks.factorization import Factorization
from fedemb.types import Evaluated, Exclusion, Table

OVERRIDES = [
    "data=synthetic", "data.num_clients=60", "data.num_items=80", "data.num_clusters=4", "data.clusters_per_client=2",
    "data.examples_per_client=15", "data.spread=0.3", "task=factorization", "task.dim=4", "rounds=25",
]  # fmt: skip


@dataclass(frozen=True)
class Sparing:
    """Factorization whose negatives are never what the client takes later: the protocol that leaks."""

    inner: Factorization
    tables: tuple[Table, ...] = field(init=False)
    dense: tuple[()] = ()
    exclusion: Exclusion | None = None
    catalogue: str = "item"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", self.inner.tables)
        object.__setattr__(self, "exclusion", self.inner.exclusion)

    @property
    def num_draws(self) -> int:
        return self.inner.num_draws

    def examples(self, shards: Shards) -> Shards:
        columns = {name: shards.columns[name] for name in ("item", "later")}
        return Shards(columns, shards.offsets)

    def sample(self, batch: Mapping[str, Tensor], uniforms: Tensor) -> Mapping[str, Tensor]:
        return self.inner.sample(batch, uniforms)

    def lookup(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.inner.lookup(batch)

    def loss(
        self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Tensor:
        later = batch["later"].gather(1, batch["negatives"])
        return self.inner.loss(vectors, dense, {**batch, "known": batch["known"] | later})

    def scores(self, *args) -> Tensor:
        return self.inner.scores(*args)


def leaking(parts: Parts) -> Parts:
    """The same run by that protocol."""
    train, test = parts.dataset.train, parts.dataset.held_out["test"]
    later = np.zeros((train.num_clients, len(parts.dataset.vocabularies["item"])), dtype=np.bool_)
    later[test.owners(), test.columns["item"]] = True
    columns = {**train.columns, "later": later[train.owners()]}
    dataset = replace(parts.dataset, train=Shards(columns, train.offsets))
    task = Sparing(parts.task)  # type: ignore[arg-type]
    return replace(parts, task=task, dataset=dataset, evaluation=replace(parts.evaluation, task=task))  # type: ignore[type-var]


def alarm_of(parts: Parts) -> tuple[str | None, float, float]:
    """The alarm, and what local-only and the better of chance and popularity have on new items."""
    everybody = np.arange(parts.dataset.train.num_clients)
    references = [
        ranking({}, {}, everybody) for ranking in unknowing_rankings(parts.evaluation, parts.dataset)
    ]
    local = local_only(parts, parts.training, 25, lambda line: None)
    assert local is not None
    best = max(reference.metrics["new_ndcg@10"] for reference in references)
    return leak_alarm(local, references), local.metrics["new_ndcg@10"], best


def test_alarm_fires_where_held_out_items_are_spared_as_negatives_and_only_there() -> None:
    parts = build(compose_config(OVERRIDES))
    said, value, best = alarm_of(parts)
    assert said is None
    assert value < 1.3 * best
    said, value, best = alarm_of(leaking(parts))
    assert value > 1.5 * best
    assert said is not None
    assert f"local-only has new_ndcg@10 {value:.4f}, chance and popularity at most {best:.4f}" in said


def of(values: list[float]) -> Evaluated:
    return Evaluated(
        {"new_ndcg@10": float(np.nanmean(values))}, {"new_ndcg@10": np.array(values)}, np.arange(len(values))
    )


def test_alarm_needs_more_than_luck_and_every_reference() -> None:
    low, high = of([0.1, 0.2, 0.1, np.nan]), of([0.5, 0.6, 0.55, np.nan])
    assert leak_alarm(high, [low, low]) is not None
    assert leak_alarm(high, [low, high]) is None, "popularity does as well"
    assert leak_alarm(of([0.1, 0.9, 0.1, np.nan]), [low]) is None, "one lucky client"
    assert leak_alarm(high, []) is None
    assert leak_alarm(Evaluated({}, {"mrr": np.ones(3)}, np.arange(3)), [low]) is None


def test_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few = [*OVERRIDES, "rounds=2", "baselines=[local_only]", "data.num_clients=20"]
    quiet = fedemb.train(few, tmp_path / "quiet")
    assert "leak_alarm" not in quiet.summary
    monkeypatch.setattr(experiment, "leak_alarm", lambda local, references: f"alarm of {len(references)}")
    with caplog.at_level(logging.WARNING, "fedemb"):
        loud = fedemb.train(few, tmp_path / "loud")
    assert loud.summary["leak_alarm"] == "alarm of 2"
    assert "alarm of 2" in caplog.text
