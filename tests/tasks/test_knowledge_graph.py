"""tasks/knowledge_graph.py: two questions for a triple, what they look up, and their losses by the formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.tasks.knowledge_graph import KnowledgeGraph
from fedemb.tasks.scoring import MODELS
from fedemb.train.optimizers import SGD
from fedemb.train.rows import LocalTraining, train_cohort
from fedemb.types import Candidates, Dataset, ListwiseTask
from tests.graphs import NUM_CLIENTS, NUM_ENTITIES, STEPS, graph
from tests.tasks.test_scoring import slow_score

DEFAULTS: dict[str, Any] = {
    "model": "complex", "dim": 6, "objective": "one_vs_all", "against": "own", "negatives": 4,
    "temperature": 1.0, "margin": None,
    "reciprocal": True, "relations": "shared", "n3": 0.0, "init_scale": 0.3,
}  # fmt: skip
MODELS_BOTH_WAYS = [(name, reciprocal) for name in MODELS for reciprocal in (True, False)]


def built(data: Dataset | None = None, **changes: Any) -> KnowledgeGraph:
    return KnowledgeGraph.build(data or graph(), **{**DEFAULTS, **changes})


def random_tables(task: KnowledgeGraph) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        t.name: torch.randn(t.num_rows, t.dim, generator=generator, dtype=torch.float64) for t in task.tables
    }


def batch_of(task: KnowledgeGraph) -> dict[str, Tensor]:
    columns = task.examples(graph().train).columns
    return {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}


def vectors_of(
    task: KnowledgeGraph, tables: dict[str, Tensor], batch: dict[str, Tensor]
) -> dict[str, Tensor]:
    return {name: tables[name][ids] for name, ids in task.lookup(batch).items()}


def score(
    task: KnowledgeGraph, tables: dict[str, Tensor], batch: dict[str, Tensor], line: int, other: int
) -> float:
    """Score of another answer to the question in a line, from the formula for triples."""
    entity, relation = tables["entity"], tables["relation"][batch["relation"][line]]
    anchor = entity[batch["anchor"][line]]
    if task.reciprocal:  # the second half is a relation of its own, and the question then asks for its tail
        own = relation.chunk(2)[int(batch["backward"][line])]
        return slow_score(task.model, anchor, own, entity[other])
    if batch["backward"][line]:
        return slow_score(task.model, entity[other], relation, anchor)
    return slow_score(task.model, anchor, relation, entity[other])


def test_every_triple_asks_for_its_tail_and_its_head() -> None:
    task, train = built(), graph().train
    shards = task.examples(train)
    assert set(shards.columns) == {"anchor", "relation", "answer", "backward", "question"}
    assert shards.sizes.tolist() == (2 * train.sizes).tolist()
    h, r, t = (train.columns[name].tolist() for name in ("head", "relation", "tail"))
    expected = [q for a, b, c in zip(h, r, t, strict=True) for q in ((a, b, c, False), (c, b, a, True))]
    found = [shards.columns[n].tolist() for n in ("anchor", "relation", "answer", "backward")]
    assert list(zip(*found, strict=True)) == expected
    numbers = dict(
        zip(shards.columns["question"].tolist(), ((a, b, d) for a, b, _, d in expected), strict=True)
    )
    assert len(set(numbers.values())) == len(numbers) == len({(a, b, d) for a, b, _, d in expected})
    assert all(column.dtype == np.int64 for n, column in shards.columns.items() if n != "backward")


def test_pooled_questions_keep_their_owner() -> None:
    task, train = built(), graph().train
    pooled, shards = task.examples(train.pooled()), task.examples(train)
    assert pooled.sizes.tolist() == [shards.num_examples]
    assert pooled.columns["owner"].tolist() == shards.owners().tolist()
    small = Shards({n: c[:2].astype(np.int32) for n, c in train.columns.items()}, np.array([0, 2]))
    assert task.examples(small).columns["question"].dtype == np.int64


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("reciprocal", [True, False])
def test_tables_and_lookups(model: str, reciprocal: bool) -> None:
    whole = built(model=model, reciprocal=reciprocal)
    entity, relation = whole.tables
    assert (entity.num_rows, entity.dim) == (NUM_ENTITIES, 6)
    assert (relation.num_rows, relation.dim) == (
        len(STEPS),
        (3 if model == "rotate" else 6) * (1 + reciprocal),
    )
    assert relation.init_scale == (np.pi if model == "rotate" else 0.3)
    assert relation.shared
    assert not built(model=model, relations="personal").tables[1].shared
    batch = batch_of(whole)
    ids = whole.lookup(batch)
    assert ids["entity"].tolist() == [[a, b] for a, b in zip(batch["anchor"], batch["answer"], strict=True)]
    assert ids["relation"].tolist() == batch["relation"][:, None].tolist()
    assert isinstance(whole, ListwiseTask)
    assert (whole.candidates, whole.num_draws, whole.exclusion) == ({"entity": None}, 0, None)
    sampled = built(model=model, objective="sampled")
    assert not sampled.candidates
    assert sampled.num_draws == 4
    draws = torch.rand(len(batch["anchor"]), 4, dtype=torch.float64)
    drawn = dict(sampled.sample(batch, draws))
    assert drawn["negatives"].tolist() == (draws * NUM_ENTITIES).long().tolist()
    assert sampled.lookup(drawn)["entity"][:, 2:].tolist() == drawn["negatives"].tolist()


@pytest.mark.parametrize(("model", "reciprocal"), MODELS_BOTH_WAYS)
def test_one_vs_all_is_cross_entropy_over_what_the_client_holds(model: str, reciprocal: bool) -> None:
    """A client that holds everything and one that holds some, in turn; a third one has no examples."""
    task = built(model=model, reciprocal=reciprocal)
    tables, batch = random_tables(task), batch_of(task)
    ends = task.lookup(batch)["entity"].tolist()
    some = sorted({e for line in ends[:8] for e in line})
    held = [list(range(NUM_ENTITIES)), some, [3]]
    lines = [n for n, line in enumerate(ends) if {*line} <= {*some}]
    client = torch.arange(len(lines)) % 2
    batch, ends = {name: column[lines] for name, column in batch.items()}, [ends[n] for n in lines]
    filled = torch.tensor([own + own[-1:] * (NUM_ENTITIES - len(own)) for own in held])
    present = torch.tensor([[n < len(own) for n in range(NUM_ENTITIES)] for own in held])
    place = torch.tensor([[held[c].index(e) for e in line] for c, line in zip(client, ends, strict=True)])
    rows = Candidates(tables["entity"][filled], present, client, place)
    losses = task.loss(vectors_of(task, tables, batch), {}, batch, {"entity": rows})
    assert len(some) < NUM_ENTITIES
    for line, own in enumerate(client.tolist()):
        scores = torch.tensor([score(task, tables, batch, line, e) for e in held[own]], dtype=torch.float64)
        target = torch.tensor(held[own].index(int(batch["answer"][line])))
        torch.testing.assert_close(losses[line], cross_entropy(scores[None], target[None]))


def contrast(positive: float, negative: list[float], margin: float, temperature: float) -> Tensor:
    """Sun et al., eq. (5) and (6), with scores for margins minus distances; halved."""
    loss = -logsigmoid(torch.tensor(positive + margin, dtype=torch.float64))
    if negative:
        n = torch.tensor(negative, dtype=torch.float64) + margin
        loss = loss - (torch.softmax(temperature * n, 0) * logsigmoid(-n)).sum()
    return loss / 2


@pytest.mark.parametrize(("model", "reciprocal"), MODELS_BOTH_WAYS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_sampled_is_the_self_adversarial_loss_of_the_unknown(
    model: str, reciprocal: bool, temperature: float
) -> None:
    task = built(model=model, reciprocal=reciprocal, objective="sampled", temperature=temperature)
    assert task.margin == MODELS[model].margin
    task = replace(task, margin=1.5)
    tables, rng = random_tables(task), np.random.default_rng(0)
    batch = {name: column[:12] for name, column in batch_of(task).items()}
    batch["negatives"] = torch.from_numpy(rng.integers(0, NUM_ENTITIES, (12, 4)))
    batch["known"] = torch.from_numpy(rng.random((12, 4)) < 0.4)
    batch["known"][0] = True
    batch["negatives"][1] = batch["answer"][1]  # drawn four times, and an answer even where nobody marked it
    batch["known"][1] = False
    losses = task.loss(vectors_of(task, tables, batch), {}, batch)
    for line in range(12):
        known = batch["known"][line] | (batch["negatives"][line] == batch["answer"][line])
        negatives = [score(task, tables, batch, line, int(n)) for n in batch["negatives"][line][~known]]
        positive = score(task, tables, batch, line, int(batch["answer"][line]))
        torch.testing.assert_close(losses[line], contrast(positive, negatives, 1.5, temperature))
        if not temperature and negatives:
            mean = np.mean([float(logsigmoid(torch.tensor(-(n + 1.5)).double())) for n in negatives])
            expected = -(float(logsigmoid(torch.tensor(positive + 1.5).double())) + mean) / 2
            assert float(losses[line]) == pytest.approx(expected)
    assert losses[:2].tolist() == pytest.approx(
        [
            float(contrast(score(task, tables, batch, n, int(batch["answer"][n])), [], 1.5, 0))
            for n in range(2)
        ]
    )


def test_hardness_is_a_constant_in_the_gradient() -> None:
    task = built(model="distmult", objective="sampled", temperature=2.0, reciprocal=False)
    tables = random_tables(task)
    batch = {name: column[:1] for name, column in batch_of(task).items()}
    batch["negatives"] = torch.tensor([[e for e in range(5) if e != int(batch["answer"][0])][:3]])
    batch["known"] = torch.zeros(1, 3, dtype=torch.bool)
    vectors = {n: v.requires_grad_() for n, v in vectors_of(task, tables, batch).items()}
    (gradient,) = torch.autograd.grad(task.loss(vectors, {}, batch).sum(), vectors["entity"])
    query = (vectors["entity"][0, 0] * vectors["relation"][0, 0]).detach()
    scores = vectors["entity"][0, 2:].detach() @ query
    expected = (torch.softmax(2 * scores, 0) * torch.sigmoid(scores) / 2)[:, None] * query
    torch.testing.assert_close(gradient[0, 2:], expected)


@pytest.mark.parametrize(("model", "reciprocal"), MODELS_BOTH_WAYS)
def test_n3_is_the_sum_of_cubed_moduli(model: str, reciprocal: bool) -> None:
    plain = built(model=model, reciprocal=reciprocal, objective="sampled")
    tables, batch = random_tables(plain), {name: column[:9] for name, column in batch_of(plain).items()}
    batch["negatives"] = torch.ones(9, 4, dtype=torch.int64)
    batch["known"] = torch.zeros(9, 4, dtype=torch.bool)
    vectors = vectors_of(plain, tables, batch)
    added = replace(plain, n3=0.3).loss(vectors, {}, batch) - plain.loss(vectors, {}, batch)
    for line in range(9):
        rows = [tables["entity"][batch[name][line]] for name in ("anchor", "answer")]
        if model != "rotate":  # whose relations all have modulus 1
            relation = tables["relation"][batch["relation"][line]]
            rows.append(relation.chunk(2)[int(batch["backward"][line])] if reciprocal else relation)
        halves = [row.view(2, -1) if MODELS[model].halves else row[None] for row in rows]
        expected = 0.3 * sum(float((half.square().sum(0) ** 1.5).sum()) for half in halves)
        assert float(added[line]) == pytest.approx(expected)
    nothing = {name: column[:0] for name, column in batch.items()}
    assert replace(plain, n3=0.3).loss(vectors_of(plain, tables, nothing), {}, nothing).shape == (0,)


@pytest.mark.parametrize(("model", "reciprocal"), MODELS_BOTH_WAYS)
@pytest.mark.parametrize("relations", ["shared", "personal"])
def test_answers_score_as_the_formula_has_it(model: str, reciprocal: bool, relations: str) -> None:
    task = built(model=model, reciprocal=reciprocal, relations=relations)
    tables, batch = random_tables(task), {name: column[:10] for name, column in batch_of(task).items()}
    client = torch.arange(10) % 3
    shared, personal, mine = tables, {}, [tables] * 10
    if relations == "personal":
        personal = {"relation": torch.stack([tables["relation"] * (1 + n) for n in range(3)])}
        shared = {"entity": tables["entity"]}
        mine = [{**shared, "relation": personal["relation"][c]} for c in client]
    asked = (shared, personal, client, batch["anchor"], batch["relation"], batch["backward"])
    scores = task.score_answers(*asked)
    expected = [[score(task, mine[line], batch, line, e) for e in range(NUM_ENTITIES)] for line in range(10)]
    np.testing.assert_allclose(scores, expected, rtol=1e-10, atol=1e-12)
    some = torch.from_numpy(np.random.default_rng(0).integers(0, NUM_ENTITIES, (10, 3)))
    torch.testing.assert_close(task.score_answers(*asked, some), scores.gather(1, some))


def test_known_answers_of_the_client_are_no_negatives() -> None:
    """The one client has every entity for an answer, so that only the positive part may teach: true rows rise."""
    names = {
        "head": np.zeros(NUM_ENTITIES),
        "relation": np.zeros(NUM_ENTITIES),
        "tail": np.arange(NUM_ENTITIES),
    }
    data = replace(
        graph(), train=Shards({n: c.astype(np.int64) for n, c in names.items()}, np.array([0, NUM_ENTITIES]))
    )
    task = built(data, model="distmult", objective="sampled", reciprocal=False, negatives=30)
    tables = {t.name: torch.ones(t.num_rows, t.dim) for t in task.tables}
    examples = task.examples(data.train)
    forward = ~examples.columns["backward"]
    asked = Shards({n: c[forward] for n, c in examples.columns.items()}, np.array([0, NUM_ENTITIES]))
    training = LocalTraining(SGD(), 1, 0, 0.5)
    (updates,) = train_cohort(task, tables, {}, {}, asked, np.array([0]), training, 0, 1)
    steps = updates.tables["entity"].values
    assert len(steps) == NUM_ENTITIES
    assert (steps > 0).all()


def test_learning_ranks_true_answers_first() -> None:
    task = built(dim=16)
    train = graph().train
    tables = {
        t.name: torch.randn(t.num_rows, t.dim, generator=torch.Generator().manual_seed(1))
        for t in task.tables
    }
    tables = {name: 0.3 * table for name, table in tables.items()}
    pooled, training = task.examples(train.pooled()), LocalTraining(SGD(), 60, 8, 1.0)
    (updates,) = train_cohort(task, tables, {}, {}, pooled, np.array([0]), training, 0, 1)
    for name, rows in updates.tables.items():
        tables[name][rows.rows] += rows.values
    batch = batch_of(task)
    nobody = torch.zeros_like(batch["anchor"])
    scores = task.score_answers(tables, {}, nobody, batch["anchor"], batch["relation"], batch["backward"])
    assert float((scores.argmax(1) == batch["answer"]).double().mean()) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "tucker"}, r"task\.model must be one of transe, transe_l2, distmult, complex, rotate, got 'tucker'"),
        ({"objective": "hinge"}, r"task\.objective must be one of one_vs_all, sampled, got 'hinge'"),
        ({"relations": "secret"}, r"task\.relations must be one of shared, personal, got 'secret'"),
        ({"dim": 0}, r"task\.dim must be at least 1 and finite, got 0"),
        ({"dim": 5}, r"task\.dim must be even for task\.model=complex.*, got 5"),
        ({"dim": 5, "model": "rotate"}, r"task\.dim must be even for task\.model=rotate.*, got 5"),
        ({"negatives": 0}, r"task\.negatives must be at least 1 and finite, got 0"),
        ({"temperature": -1.0}, r"task\.temperature must be at least 0 and finite, got -1"),
        ({"temperature": float("nan")}, r"task\.temperature must be at least 0 and finite, got nan"),
        ({"temperature": float("inf")}, r"task\.temperature must be at least 0 and finite, got inf"),
        ({"margin": float("inf")}, r"task\.margin must be finite or null, got inf"),
        ({"n3": -0.1}, r"task\.n3 must be at least 0 and finite, got -0\.1"),
        ({"init_scale": 0.0}, r"task\.init_scale must be a positive number, got 0"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        built(**changes)
    assert built(dim=5, model="transe").dim == 5


def test_data_that_do_not_fit() -> None:
    nodes = Dataset(Shards({"child": np.array([0])}, np.array([0, 1])), {})
    with pytest.raises(SettingError, match="needs heads, relations and tails: use data=triples"):
        built(nodes)


def test_a_margin_of_ones_own() -> None:
    assert built(model="transe").margin == 9
    assert built(model="transe", margin=0.0).margin == 0
    assert built().margin == 0
    assert graph().train.num_clients == NUM_CLIENTS
