"""Closed forms against sampling and against loops, and what a Gaussian row is for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.gaussian import split
from fedemb.tasks.expected import Choices, Normal, choice_loss, moderated
from fedemb.tasks.gaussian_links import GaussianLinks
from fedemb.tasks.knowledge_graph import KnowledgeGraph
from fedemb.tasks.probabilistic import GaussianLabels, build
from fedemb.train.initial import initial_table
from fedemb.types import Candidates, Dataset
from tests.gallery import gallery
from tests.graphs import graph

SETTINGS = {
    "dim": 4, "posterior": "gaussian", "model": "complex", "reciprocal": True, "prior_precision": 0.5,
    "label_prior_precision": 2.0, "floor": 0.1, "start": 1.0, "scale": 0.5, "init_scale": 0.3,
}  # fmt: skip
DRAWS = 200_000


def normal(*shape: int, seed: int = 0) -> Normal:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return Normal(mean, 0.05 + 0.3 * torch.rand(*shape, dtype=torch.float64, generator=generator))


def drawn(what: Normal, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(DRAWS, *what.mean.shape, dtype=torch.float64, generator=generator)
    return what.mean + what.variance.sqrt() * noise


def held(count: int, client: Tensor, answer: Tensor, clients: int = 1) -> Candidates:
    return Candidates(
        torch.zeros(clients, count, 1),
        torch.ones(clients, count, dtype=torch.float64),
        client,
        answer[:, None],
    )


def records() -> Dataset:
    data = gallery("category")
    return replace(data, components=tuple(part for part in data.components if part.num_values))


def test_moments_of_products_are_those_of_samples() -> None:
    x, y = normal(6), normal(6, seed=2)
    for found, sample in (
        (x.times(y), drawn(x) * drawn(y, 3)),
        (x.times_complex(y), complex_product(drawn(x), drawn(y, 3))),
    ):
        torch.testing.assert_close(found.mean, sample.mean(0), rtol=0.02, atol=0.01)
        torch.testing.assert_close(found.variance, sample.var(0), rtol=0.02, atol=0.01)


def complex_product(x: Tensor, y: Tensor) -> Tensor:
    (a, b), (c, d) = x.chunk(2, -1), y.chunk(2, -1)
    return torch.cat((a * c - b * d, a * d + b * c), -1)


def test_a_bag_is_the_sum_of_what_is_there_by_the_root_of_its_number() -> None:
    rows = normal(3, 5, 2)
    present = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    found = rows.bag(present)
    torch.testing.assert_close(found.mean[0], rows.mean[0, [0, 1, 4]].sum(0) / math.sqrt(3))
    torch.testing.assert_close(found.variance[0], rows.variance[0, [0, 1, 4]].mean(0))
    assert found.mean[1].tolist() == found.variance[1].tolist() == [0.0, 0.0]
    torch.testing.assert_close(found.variance[2], rows.variance[2, 1])


def test_scores_have_the_moments_of_samples() -> None:
    query, points, biases = normal(1, 4), normal(5, 4, seed=2), normal(5, seed=3)
    found = Choices(points, biases, 0.7).scores(query)
    sample = 0.7 * torch.einsum("snd,skd->snk", drawn(query), drawn(points, 4)) + drawn(biases, 5)[:, None]
    torch.testing.assert_close(found.mean, sample.mean(0), rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.variance, sample.var(0), rtol=0.02, atol=0.02)


def test_moderated_scores_have_nearly_the_expected_sigmoid() -> None:
    scores = Normal(
        torch.linspace(-4, 4, 9, dtype=torch.float64), torch.linspace(0.1, 6, 9, dtype=torch.float64)
    )
    expected = torch.sigmoid(drawn(scores)).mean(0)
    torch.testing.assert_close(torch.sigmoid(moderated(scores)), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("with_biases", [True, False])
def test_the_loss_bounds_the_expected_one_from_above_and_is_it_without_variance(with_biases: bool) -> None:
    query, points, biases = normal(7, 4), normal(5, 4, seed=2), normal(5, seed=3)
    at = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    found = loss_of(query, points, biases if with_biases else None, at)
    logits = 0.7 * torch.einsum("snd,skd->snk", drawn(query)[:20_000], drawn(points, 4)[:20_000])
    if with_biases:
        logits = logits + drawn(biases, 5)[:20_000, None]
    expected = -torch.log_softmax(logits, -1).mean(0)[torch.arange(7), at]
    assert (found > expected - 0.01).all()
    assert (found < expected + 1.5).all()
    none = [Normal(x.mean, torch.zeros_like(x.mean)) for x in (query, points, biases)]
    exact = 0.7 * query.mean @ points.mean.T + (biases.mean if with_biases else 0.0)
    expected = -torch.log_softmax(exact, 1)[torch.arange(7), at]
    torch.testing.assert_close(loss_of(none[0], none[1], none[2] if with_biases else None, at), expected)


def loss_of(query: Normal, points: Normal, biases: Normal | None, at: Tensor) -> Tensor:
    client = torch.zeros(len(at), dtype=torch.int64)
    choices = Choices(points[None], None if biases is None else biases[None], 0.7)
    return choice_loss(
        query, points[at], None if biases is None else biases[at], choices, held(5, client, at)
    )


def test_the_loss_is_that_of_a_loop_over_candidates() -> None:
    """Mean and variance of every difference of scores, one by one."""
    query, points, biases, scale = normal(3, 4), normal(5, 4, seed=2), normal(5, seed=3), 0.7
    at = torch.tensor([4, 0, 2])
    expected = []
    for n, y in enumerate(at.tolist()):
        terms = []
        for c in range(5):
            mean = scale * query.mean[n] @ (points.mean[c] - points.mean[y]) + biases.mean[c] - biases.mean[y]
            own = (query.variance[n] * (points.mean[c] - points.mean[y]).square()).sum()
            others = (query.square[n] * (points.variance[c] + points.variance[y])).sum()
            variance = scale**2 * (own + others) + biases.variance[c] + biases.variance[y]
            terms.append(torch.zeros(()).double() if c == y else mean + variance / 2)
        expected.append(torch.logsumexp(torch.stack(terms), 0))
    torch.testing.assert_close(loss_of(query, points, biases, at), torch.stack(expected))


def test_what_is_no_candidate_does_not_count() -> None:
    query, points = normal(1, 4), normal(5, 4, seed=2)
    at, client = torch.tensor([1]), torch.zeros(1, dtype=torch.int64)
    absent = replace(held(5, client, at), weight=torch.tensor([[1.0, 1, 1, 0, 0]], dtype=torch.float64))
    found = choice_loss(query, points[at], None, Choices(points[None], None, 0.7), absent)
    few = choice_loss(query, points[at], None, Choices(points[None, :3], None, 0.7), held(3, client, at))
    torch.testing.assert_close(found, few)


def labels() -> tuple[GaussianLabels, dict[str, Tensor], dict[str, Tensor]]:
    data = records()
    task = build(data, **SETTINGS)
    assert isinstance(task, GaussianLabels)
    tables = {table.name: initial_table(table, 0).double() for table in task.tables}
    batch = {n: torch.from_numpy(np.array(c)) for n, c in task.examples(data.train).columns.items()}
    return task, tables, batch


def test_rows_begin_at_their_prior() -> None:
    task, tables, _ = labels()
    for table in task.tables:
        mean, precision = split(tables[table.name])
        assert precision.unique().tolist() == [2.0 if table.name.startswith("label") else 0.5]
        assert (mean.abs().max() > 0) == (table.name == "label")
    narrow = build(records(), **{**SETTINGS, "start": 10.0})
    starts = {t.name: float(split(initial_table(t, 0))[1][0, 0]) for t in narrow.tables}
    assert starts["label"] == starts["label_bias"] == 20.0
    assert starts["title"] == 0.5  # a value that nobody has stays at its prior


def test_nothing_seen_is_shift_and_seen_values_are_less() -> None:
    task, tables, batch = labels()
    for name in ("label", "label_bias"):  # known labels that differ: what remains is not knowing the values
        tables[name][:, tables[name].shape[1] // 2 :] *= 1e4
    tables["label"][:, :4] *= 5
    before = task.uncertainties(tables, batch)
    some = before["shift"] > 0
    torch.testing.assert_close(before["shift"], torch.where(before["shift"] > 0, 1.0, 0.0).double())
    for part in task.components:
        tables[part.name][:, 4:] *= 10
    after = task.uncertainties(tables, batch)
    torch.testing.assert_close(after["shift"], before["shift"] / 10)
    assert float(after["epistemic"].mean()) < 0.5 * float(before["epistemic"][some].mean())
    assert (before["epistemic"] > -1e-9).all()


def test_uncertainties_add_up_to_about_the_entropy_of_what_is_told() -> None:
    task, tables, batch = labels()
    for part in task.components:
        tables[part.name][:, :4] += torch.randn(len(tables[part.name]), 4).double()
    found, probabilities = task.uncertainties(tables, batch), task.label_scores(tables, batch).softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1)
    torch.testing.assert_close(found["aleatoric"] + found["epistemic"], entropy, rtol=0, atol=0.15)
    alone = {name: column[3:4] for name, column in batch.items()}
    torch.testing.assert_close(
        task.uncertainties(tables, alone)["epistemic"], found["epistemic"][3:4], rtol=0, atol=1e-9
    )
    sure = replace(task, sure=True).uncertainties(tables, batch)
    assert float(sure["epistemic"].abs().max()) == pytest.approx(0, abs=1e-12)


def test_links_of_no_variance_score_as_complex_does() -> None:
    data = graph()
    task = build(data, **{**SETTINGS, "posterior": "point", "scale": 1.0})
    assert isinstance(task, GaussianLinks)
    plain = KnowledgeGraph.build(
        data, "complex", 4, "one_vs_all", "all", 1, 1.0, None, True, "shared", 0.0, 0.3
    )
    tables = {table.name: initial_table(table, 0) for table in task.tables}
    means = {name: split(table)[0].contiguous() for name, table in tables.items()}
    triples = {name: torch.from_numpy(np.array(c)) for name, c in task.examples(data.train).columns.items()}
    asked = [triples[name] for name in ("anchor", "relation", "backward")]
    client = torch.zeros(len(asked[0]), dtype=torch.int64)
    for answers in (None, triples["answer"][:, None]):
        torch.testing.assert_close(
            task.score_answers(tables, {}, client, *asked, answers),
            plain.score_answers(means, {}, client, *asked, answers),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posterior": "laplace"}, r"task\.posterior must be one of gaussian, point, got 'laplace'"),
        ({"dim": 0}, r"task\.dim must be at least 1, got 0"),
        ({"scale": 0.0}, r"task\.scale must be a positive number, got 0"),
        ({"label_prior_precision": -1.0}, r"task\.label_prior_precision must be a positive number, got -1"),
        ({"prior_precision": 0.0}, r"task\.prior_precision must be a positive number, got 0"),
        ({"floor": 0.0}, r"task\.floor must be in \(0, 1\], got 0"),
        ({"start": 0.5}, r"task\.start must be at least 1, got 0\.5"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build(records(), **{**SETTINGS, **change})  # type: ignore[arg-type]


def test_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match=r"needs data\.label=category, got multi"):
        build(gallery(), **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="component height is a number: give it bins"):
        build(gallery("category"), **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"task\.model must be one of complex, distmult, got 'transe'"):
        build(graph(), **{**SETTINGS, "model": "transe"})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"task\.dim must be even for task\.model=complex"):
        build(graph(), **{**SETTINGS, "dim": 3})  # type: ignore[arg-type]
    nothing = Dataset(Shards({"left": np.zeros(0, dtype=np.int64)}, np.zeros(1, dtype=np.int64)), {})
    with pytest.raises(SettingError, match=r"use data=records, data=clinc150 or data=triples"):
        build(nothing, **SETTINGS)  # type: ignore[arg-type]
