"""evaluate/triples.py against loops over triples: filtered ranks, FedE's, and triples told apart by a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedemb.data.shards import Shards, offsets_of
from fedemb.evaluate.choose import evaluation_for, measurable
from fedemb.evaluate.spread import over_clients
from fedemb.evaluate.triples import LinkPrediction, best_threshold, filtered_ranks
from fedemb.tasks.knowledge_graph import KnowledgeGraph
from fedemb.types import Dataset, Evaluated, Evaluation, LinkPredictor
from tests.graphs import NUM_CLIENTS, NUM_ENTITIES, STEPS, graph

EVERYBODY = np.arange(NUM_CLIENTS)
RANKS = ["mrr", "hits@1", "hits@3", "hits@10", "mean_rank", "fede_mrr", "fede_hits@10"]


@dataclass(frozen=True)
class Given:
    """Scores from a table ``(direction, relation, anchor, entity)``, and what a client adds to it."""

    def score_answers(
        self,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        client: Tensor,
        anchor: Tensor,
        relation: Tensor,
        backward: Tensor,
        answers: Tensor | None = None,
    ) -> Tensor:
        scores = tables["score"][backward.long(), relation, anchor] + personal["own"][client, relation]
        return scores if answers is None else scores.gather(1, answers)


def given_scores(kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Different ones; few different ones, so that most tie; or with some that are no numbers."""
    rng = np.random.default_rng(3)
    shape, own = (2, len(STEPS), NUM_ENTITIES, NUM_ENTITIES), (NUM_CLIENTS, len(STEPS), NUM_ENTITIES)
    score, added = rng.normal(size=shape), rng.normal(size=own)
    if kind != "different":
        score, added = rng.integers(0, 3, shape).astype(float), rng.integers(0, 2, own).astype(float)
    if kind == "broken":
        score[rng.random(shape) < 0.3] = np.nan
        score[rng.random(shape) < 0.1] = -np.inf
        score[rng.random(shape) < 0.1] = np.inf
    return {"score": torch.from_numpy(score).float()}, {"own": torch.from_numpy(added).float()}


def triples_of(shards: Shards) -> list[tuple[int, int, int, int]]:
    """Client, head, relation and tail."""
    columns = (shards.owners(), *(shards.columns[n] for n in ("head", "relation", "tail")))
    return list(zip(*(c.tolist() for c in columns), strict=True))


def parts_of(*names: str) -> list[Shards]:
    return [graph().held_out[name] for name in names]


def slow_rank(scores: list[float], answer: int, ranked: set[int]) -> float:
    number = [-np.inf if np.isnan(s) else s for s in scores]
    above = sum(number[e] > number[answer] for e in ranked - {answer})
    level = sum(number[e] == number[answer] for e in ranked - {answer})
    return 1 + above + level / 2


def slow_threshold(scores: list[float], labels: list[bool]) -> float:
    """The lowest of the best among all thresholds that differ."""
    levels = sorted(set(scores))
    cuts = [levels[0] - 0.5, *((a + b) / 2 for a, b in pairwise(levels)), levels[-1] + 0.5]
    right = [sum((s > cut) == label for s, label in zip(scores, labels, strict=True)) for cut in cuts]
    return cuts[right.index(max(right))]


def slow_prediction(
    dataset: Dataset, tables: dict[str, Tensor], personal: dict[str, Tensor], split: str
) -> dict[str, np.ndarray]:
    """Every metric of every client, one triple after another."""

    def scores(client: int, anchor: int, relation: int, backward: bool) -> list[float]:
        found = tables["score"][int(backward), relation, anchor] + personal["own"][client, relation]
        return list(found.tolist())

    parts = [
        triples_of(part) for part in (dataset.train, dataset.held_out["validation"], dataset.held_out["test"])
    ]
    true = {(h, r, t) for part in parts for _, h, r, t in part}
    entities = set(range(NUM_ENTITIES))
    found: dict[str, list[list[float]]] = {name: [[] for _ in EVERYBODY] for name in RANKS}
    for client, h, r, t in triples_of(dataset.held_out[split]):
        own = {(a, b, c) for part in parts for who, a, b, c in part if who == client}
        own_entities = {e for a, _, c in own for e in (a, c)}
        tails, heads = scores(client, h, r, False), scores(client, t, r, True)
        ranks = [
            slow_rank(tails, t, {e for e in entities if (h, r, e) not in true}),
            slow_rank(heads, h, {e for e in entities if (e, r, t) not in true}),
        ]
        own_rank = slow_rank(tails, t, {e for e in own_entities if (h, r, e) not in own})
        for rank in ranks:
            found["mrr"][client].append(1 / rank)
            found["mean_rank"][client].append(rank)
            for cut in (1, 3, 10):
                found[f"hits@{cut}"][client].append(rank <= cut)
        found["fede_mrr"][client].append(1 / own_rank)
        found["fede_hits@10"][client].append(own_rank <= 10)
    return {
        name: np.array([np.mean(values) if values else np.nan for values in lists])
        for name, lists in found.items()
    }


def slow_labels(
    dataset: Dataset, tables: dict[str, Tensor], personal: dict[str, Tensor]
) -> tuple[list[float], list[float]]:
    """Accuracy and F1 of every client."""

    def labelled(split: str, client: int) -> list[tuple[int, float, bool]]:
        return [
            (r, float(tables["score"][0, r, h, t] + personal["own"][client, r, t]), not negative)
            for negative in (False, True)
            for who, h, r, t in triples_of(dataset.held_out[split + "_negatives" * negative])
            if who == client
        ]

    accuracies, f1s = [], []
    for client in EVERYBODY:
        known = labelled("validation", client)
        asked = labelled("test", client) if known else []
        hits = misses = alarms = right = 0
        for relation, score, label in asked:
            alike = [entry for entry in known if entry[0] == relation] or known
            taken = score > slow_threshold([s for _, s, _ in alike], [y for _, _, y in alike])
            right += taken == label
            hits, misses, alarms = (
                hits + (taken and label),
                misses + (label and not taken),
                alarms + (taken and not label),
            )
        accuracies.append(right / len(asked) if asked else np.nan)
        f1s.append(2 * hits / (2 * hits + misses + alarms) if asked else np.nan)
    return accuracies, f1s


def same(first: Evaluated, second: Evaluated) -> None:
    np.testing.assert_equal(dict(first.per_client), dict(second.per_client))
    assert first.metrics == pytest.approx(dict(second.metrics), nan_ok=True)


def test_the_graph_is_worth_measuring() -> None:
    """The metrics differ on it: answers are true elsewhere only, and clients hold few entities."""
    train, test = graph().train, graph().held_out["test"]
    assert train.sizes[2] == test.sizes[2] == test.sizes[-1] == 0 < train.sizes[-1]
    assert test.num_examples >= 15
    at = {client: [(h, r) for c, h, r, _ in triples_of(train) if c == client] for client in EVERYBODY}
    shared = {(h, r, t) for c, h, r, t in triples_of(train) if c == 0} & {
        (h, r, t) for c, h, r, t in triples_of(train) if c == 3
    }
    assert len(shared) >= 4
    answers = {
        (h, r) for _, h, r, t in triples_of(test) for _, a, b, c in triples_of(train) if (a, b) == (h, r)
    }
    assert len(answers) >= 3, "several answers to a question"
    assert len(at[0]) > len(at[5]) > 0


@pytest.mark.parametrize("kind", ["different", "tied", "broken"])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_ranks_equal_loops_over_triples(kind: str, split: str) -> None:
    tables, personal = given_scores(kind)
    prefix = "" if split == "test" else "validation_"
    expected = slow_prediction(graph(), tables, personal, split)
    result = LinkPrediction(Given(), graph(), split)(tables, personal, EVERYBODY)
    assert [name for name in result.per_client if name.removeprefix(prefix) in RANKS] == [
        prefix + n for n in RANKS
    ]
    sizes = graph().held_out[split].sizes
    assert result.weights is not None
    assert result.weights.tolist() == sizes.tolist()
    for name, values in expected.items():
        np.testing.assert_allclose(result.per_client[prefix + name], values, rtol=1e-12, err_msg=name)
        assert np.isnan(result.per_client[prefix + name]).tolist() == (sizes == 0).tolist()
        micro = np.nansum(values * sizes) / sizes.sum()  # every triple counts alike, wherever it is
        assert result.metrics[prefix + name] == pytest.approx(micro)


def of_two_clients(*triples: list[tuple[int, int, int]]) -> Shards:
    columns = np.array([triple for own in triples for triple in own], dtype=np.int64).reshape(-1, 3).T
    sizes = np.array([len(own) for own in triples])
    return Shards(dict(zip(("head", "relation", "tail"), columns, strict=True)), offsets_of(sizes))


@pytest.mark.parametrize("several_answers", [False, True])
def test_true_answers_are_left_out_wherever_they_are_known_and_only_at_home_for_fede(
    several_answers: bool,
) -> None:
    """Scores fall with the number of the entity; 9 leads to 6, 7, 10, 11 and 12, and to 0 .. 5 if so wanted."""
    more = [(9, 1, tail) for tail in range(6)] if several_answers else []
    data = replace(
        graph(),
        train=of_two_clients([*more[:3], (9, 1, 7)], [(9, 1, 10), (9, 1, 11), (0, 2, 12)]),
        held_out={
            "validation": of_two_clients(more[3:], []),
            "test": of_two_clients([(9, 1, 6)], [(9, 1, 12)]),
        },
    )
    score = torch.arange(NUM_ENTITIES, 0, -1.0).expand(2, len(STEPS), NUM_ENTITIES, -1)
    tables, personal = {"score": score}, {"own": torch.zeros(2, len(STEPS), 1)}
    result = LinkPrediction(Given(), data)(tables, personal, np.arange(2))
    tail_ranks = [1, 3] if several_answers else [7, 9]  # behind 8 and 9, which nobody takes for an answer
    head_rank = 10
    assert result.per_client["mean_rank"].tolist() == [(rank + head_rank) / 2 for rank in tail_ranks]
    # The second one holds 0, 9, 10, 11 and 12 and does not know whether 9 leads to 0.
    assert result.per_client["fede_mrr"].tolist() == [1, 1 / 3]


def test_constant_scores_are_chance() -> None:
    tables, personal = given_scores("tied")
    tables, personal = ({n: torch.zeros_like(v) for n, v in group.items()} for group in (tables, personal))
    result = LinkPrediction(Given(), graph())(tables, personal, EVERYBODY)
    true = {
        triple[1:] for part in (graph().train, *parts_of("validation", "test")) for triple in triples_of(part)
    }
    for client in EVERYBODY[graph().held_out["test"].sizes > 0]:
        asked = [(h, r, t) for c, h, r, t in triples_of(graph().held_out["test"]) if c == client]
        num_answers = [
            sum(other[1] == r and other[end] == (h, r, t)[end] for other in true)
            for h, r, t in asked
            for end in (0, 2)
        ]
        chance = np.mean([(NUM_ENTITIES - others + 2) / 2 for others in num_answers])
        assert result.per_client["mean_rank"][client] == pytest.approx(chance)
        assert result.per_client["hits@10"][client] == 1
        assert result.per_client["hits@3"][client] == 0
    generator = np.random.default_rng(0)
    drawn = torch.from_numpy(generator.random((20_000, NUM_ENTITIES)))
    nobody = torch.zeros(0, dtype=torch.int64)
    ranks = filtered_ranks(drawn, torch.full((20_000,), 4), nobody, nobody)
    assert float(ranks.mean()) == pytest.approx((NUM_ENTITIES + 1) / 2, abs=0.15)


a_score = st.sampled_from([0.0, 1.0, 2.0, float("nan"), float("inf"), float("-inf")])


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.lists(a_score, min_size=5, max_size=5),
            st.integers(0, 4),
            st.sets(st.integers(0, 4)),
            st.sets(st.integers(0, 4)),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_filtered_ranks_of_anything(
    questions: list[tuple[list[float], int, set[int], set[int]]], restricted: bool
) -> None:
    scores = torch.tensor([row for row, _, _, _ in questions])
    answers = torch.tensor([answer for _, answer, _, _ in questions])
    pairs = [(n, e) for n, (_, _, known, _) in enumerate(questions) for e in known]
    places, excluded = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    ranked = torch.tensor([[e in own for e in range(5)] for _, _, _, own in questions])
    ranks = filtered_ranks(scores, answers, places, excluded, ranked if restricted else None)
    assert ranks.dtype == torch.float64
    for rank, (row, answer, known, own) in zip(ranks.tolist(), questions, strict=True):
        assert rank == slow_rank(row, answer, (own if restricted else {*range(5)}) - known)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(-4, 4) | st.floats(-10, 10, width=16), st.booleans()), min_size=1, max_size=12
    )
)
def test_best_threshold_by_trying_all(labelled: list[tuple[float, bool]]) -> None:
    scores, labels = [float(s) for s, _ in labelled], [y for _, y in labelled]
    assert best_threshold(np.array(scores), np.array(labels)) == slow_threshold(scores, labels)


@pytest.mark.parametrize("kind", ["different", "tied"])
def test_labelled_triples_equal_loops_over_clients(kind: str) -> None:
    tables, personal = given_scores(kind)
    result = LinkPrediction(Given(), graph())(tables, personal, EVERYBODY)
    accuracy, f1 = slow_labels(graph(), tables, personal)
    np.testing.assert_allclose(result.per_client["accuracy"], accuracy)
    np.testing.assert_allclose(result.per_client["f1"], f1)
    sizes = graph().held_out["test"].sizes
    assert np.isnan(accuracy).tolist() == [False, True, True, False, False, True]
    sizes = np.where(np.isnan(accuracy), 0, sizes)
    assert result.metrics["accuracy"] == pytest.approx(np.nansum(np.array(accuracy) * sizes) / sizes.sum())


def test_nobody_can_be_told_apart_without_validation_triples() -> None:
    nothing = {n: c[:0] for n, c in graph().train.columns.items()}
    kept = graph().held_out["validation"].sizes * (EVERYBODY != 3)
    held_out = dict(graph().held_out)
    for name in ("validation", "validation_negatives"):
        lines = held_out[name].owners() != 3
        held_out[name] = Shards({n: c[lines] for n, c in held_out[name].columns.items()}, offsets_of(kept))
    tables, personal = given_scores("different")
    result = LinkPrediction(Given(), replace(graph(), held_out=held_out))(tables, personal, EVERYBODY)
    assert np.isnan(result.per_client["accuracy"]).tolist() == [False, True, True, True, False, True]
    for name in ("validation", "validation_negatives"):
        held_out[name] = Shards(nothing, np.zeros(NUM_CLIENTS + 1, dtype=np.int64))
    result = LinkPrediction(Given(), replace(graph(), held_out=held_out))(tables, personal, EVERYBODY)
    assert np.isnan(result.per_client["accuracy"]).all()
    assert np.isfinite(result.metrics["mrr"])


def test_a_model_that_is_lost_can_still_be_measured() -> None:
    tables, personal = given_scores("different")
    tables["score"].fill_(torch.nan)
    result = LinkPrediction(Given(), graph())(tables, personal, EVERYBODY)
    tables["score"].fill_(0)
    constant = LinkPrediction(Given(), graph())(tables, {"own": torch.zeros_like(personal["own"])}, EVERYBODY)
    assert 0 <= result.metrics["f1"] <= 1
    for name in [*RANKS, "accuracy"]:
        np.testing.assert_array_equal(result.per_client[name], constant.per_client[name], err_msg=name)


@pytest.mark.parametrize("kind", ["different", "tied", "broken"])
def test_blocks_and_company_do_not_matter(kind: str) -> None:
    """In particular a client's thresholds are its own, whoever is measured with it."""
    tables, personal = given_scores(kind)
    evaluation = LinkPrediction(Given(), graph())
    whole = evaluation(tables, personal, EVERYBODY)
    same(whole, LinkPrediction(Given(), graph(), memory_bytes=1)(tables, personal, EVERYBODY))
    same(whole, LinkPrediction(Given(), graph(), memory_bytes=3000)(tables, personal, EVERYBODY))
    for some in ([0], [2], [3, 4], [5, 1, 0]):
        own = {name: rows[some] for name, rows in personal.items()}
        part = evaluation(tables, own, np.array(some))
        for name, values in part.per_client.items():
            np.testing.assert_array_equal(values, whole.per_client[name][some], err_msg=name)
        assert part.weights is not None
        assert part.metrics == pytest.approx(over_clients(part.per_client, part.weights), nan_ok=True)


def test_parts_that_are_not_there() -> None:
    tables, personal = given_scores("different")
    only_test = replace(graph(), held_out={"test": graph().held_out["test"]})
    result = LinkPrediction(Given(), only_test)(tables, personal, EVERYBODY)
    assert list(result.metrics) == RANKS
    without = replace(graph(), held_out={n: s for n, s in graph().held_out.items() if n != "test_negatives"})
    assert list(LinkPrediction(Given(), without)(tables, personal, EVERYBODY).metrics) == RANKS


def test_personal_relations_are_the_clients_own() -> None:
    settings = ("distmult", 4, "one_vs_all", "own", 1, 1.0, 0.0, True)
    task = KnowledgeGraph(NUM_ENTITIES, len(STEPS), *settings, relations="personal", n3=0.0, init_scale=0.1)
    common = KnowledgeGraph(NUM_ENTITIES, len(STEPS), *settings, relations="shared", n3=0.0, init_scale=0.1)
    generator = torch.Generator().manual_seed(0)
    entity = torch.randn(NUM_ENTITIES, 4, generator=generator)
    relation = torch.randn(NUM_CLIENTS, len(STEPS), 8, generator=generator)
    for kind in (task, common):
        assert isinstance(kind, LinkPredictor)
    result = LinkPrediction(task, graph())({"entity": entity}, {"relation": relation}, EVERYBODY)
    for client in EVERYBODY:
        tables = {"entity": entity, "relation": relation[client]}
        alone = LinkPrediction(common, graph())(tables, {}, EVERYBODY[client : client + 1])
        for name, values in alone.per_client.items():
            np.testing.assert_array_equal(values[0], result.per_client[name][client], err_msg=name)
    assert len(set(result.per_client["mean_rank"][[0, 1, 3, 4]])) > 1


def test_it_is_chosen_for_triples() -> None:
    settings = ("complex", 4, "one_vs_all", "own", 1, 1.0, 0.0, True, "shared", 0.0, 0.1)
    task = KnowledgeGraph(NUM_ENTITIES, len(STEPS), *settings)
    chosen: Evaluation | None = evaluation_for(task, graph())
    assert isinstance(chosen, LinkPrediction)
    assert chosen.on_clients
    assert chosen.split == "test"
    assert measurable(chosen, graph()).tolist() == [0, 1, 3, 4]
    validation = replace(graph(), held_out={"validation": graph().held_out["validation"]})
    assert evaluation_for(task, validation) == LinkPrediction(task, validation, "validation")
    assert evaluation_for(task, replace(graph(), held_out={})) is None
