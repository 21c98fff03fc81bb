"""Link prediction in a knowledge graph: the rank of the true answer among all entities; labelled triples told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedemb.data.shards import Shards, offsets_of, ragged_indices
from fedemb.evaluate.spread import mean_of_each, over_clients
from fedemb.types import Dataset, Evaluated, Float, Int64, LinkPredictor

CUTS = (1, 3, 10)
_COPIES = 4  # of a block's scores: themselves, a comparison, and what the task needs to compute them


@dataclass(frozen=True)
class _Answers:
    """True answers ``(answers,)`` of every question, as a table to look up.

    Attributes:
        questions: ``(questions,)`` different ones, ascending.
        offsets: ``(questions + 1,)``.
        answers: ``(answers,)`` by question.
    """

    questions: Int64
    offsets: Int64
    answers: Int64

    @staticmethod
    def of(question: Int64, answer: Int64, num_entities: int) -> _Answers:
        keys = np.unique(question * num_entities + answer)
        questions, sizes = np.unique(keys // num_entities, return_counts=True)
        return _Answers(questions, offsets_of(sizes), keys % num_entities)

    def find(self, question: Int64) -> tuple[Int64, Int64]:
        """Place of the question ``(found,)`` and answer ``(found,)`` for all answers of these questions."""
        if not len(self.questions):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.questions, question), len(self.questions) - 1)
        sizes = np.where(self.questions[at] == question, self.offsets[at + 1] - self.offsets[at], 0)
        places = np.repeat(np.arange(len(question), dtype=np.int64), sizes)
        return places, self.answers[ragged_indices(self.offsets[at], sizes)]


@dataclass(frozen=True)
class Questions:
    """Both questions of every triple: its tail is asked for, then its head; ``(questions,)`` each.

    ``client`` is the place of the client that asks.
    """

    client: Int64
    anchor: Int64
    relation: Int64
    answer: Int64
    backward: npt.NDArray[np.bool_]

    @staticmethod
    def of(triples: Shards) -> Questions:
        head, relation, tail = (
            np.asarray(triples.columns[name], dtype=np.int64) for name in ("head", "relation", "tail")
        )
        return Questions(
            np.repeat(triples.owners(), 2),
            np.stack((head, tail), axis=1).reshape(-1),
            np.repeat(relation, 2),
            np.stack((tail, head), axis=1).reshape(-1),
            np.tile([False, True], len(head)),
        )

    def keys(self, num_relations: int) -> Int64:
        """A number for each different question."""
        return (self.anchor * num_relations + self.relation) * 2 + self.backward

    def select(self, at: slice) -> Questions:
        return Questions(
            self.client[at], self.anchor[at], self.relation[at], self.answer[at], self.backward[at]
        )


def filtered_ranks(
    scores: Tensor, answer: Tensor, places: Tensor, excluded: Tensor, ranked: Tensor | None = None
) -> Tensor:
    """Ranks ``(questions,)`` float64 of the answers, ties as their mean; a score that is no number is the lowest.

    Args:
        scores: ``(questions, entities)``; overwritten.
        answer: ``(questions,)``.
        places, excluded: ``(pairs,)`` question and entity that is not ranked there (the answer itself always is).
        ranked: ``(questions, entities)`` bool: which entities are ranked at all; None: all.

    >>> scores = torch.tensor([[3.0, 2.0, 2.0, 1.0]])
    >>> filtered_ranks(scores, torch.tensor([1]), torch.tensor([0]), torch.tensor([0])).tolist()
    [1.5]
    """
    lowest = torch.finfo(scores.dtype).min
    scores.nan_to_num_(nan=lowest, neginf=lowest)
    own = scores.gather(1, answer[:, None])
    scores[places, excluded] = float("-inf")
    if ranked is not None:
        scores.masked_fill_(~ranked, float("-inf"))
    scores.scatter_(1, answer[:, None], own)
    above, level = (scores > own).sum(1), (scores == own).sum(1)
    return above.double() + (level.double() + 1) / 2


def _ranked(
    scores: Tensor,
    questions: Questions,
    known: tuple[Int64, Int64],
    entities: npt.NDArray[np.bool_] | None = None,
) -> Float:
    places, excluded = (torch.from_numpy(column).to(scores.device) for column in known)
    answer = torch.from_numpy(np.ascontiguousarray(questions.answer)).to(scores.device)
    ranked = None if entities is None else torch.from_numpy(entities).to(scores.device)
    return filtered_ranks(scores, answer, places, excluded, ranked).cpu().numpy()


def best_threshold(scores: Float, labels: npt.NDArray[np.bool_]) -> float:
    """The threshold with the most triples on the right side: positives score above it.

    Midway between two neighbouring scores; of several equally good ones the lowest.

    >>> best_threshold(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True]))
    1.5
    """
    order = np.argsort(scores, kind="stable")
    value, positive = scores[order], labels[order]
    cuts = np.flatnonzero(np.diff(value, prepend=-np.inf, append=np.inf) > 0)  # not between equal scores
    right = (
        np.concatenate([[0], np.cumsum(~positive)])
        + positive.sum()
        - np.concatenate([[0], np.cumsum(positive)])
    )
    cut = int(cuts[right[cuts].argmax()])
    below = value[cut - 1] if cut else value[0] - 1
    above = value[cut] if cut < len(value) else value[-1] + 1
    return float((below + above) / 2)


def _best_thresholds(group: Int64, scores: Float, labels: npt.NDArray[np.bool_], num_groups: int) -> Float:
    """The best threshold of each group ``(num_groups,)``; NaN where it has no triples."""
    thresholds = np.full(num_groups, np.nan)
    order, sizes = np.argsort(group, kind="stable"), np.bincount(group, minlength=num_groups)
    for key, end in zip(np.flatnonzero(sizes), np.cumsum(sizes)[sizes > 0], strict=True):
        lines = order[end - sizes[key] : end]
        thresholds[key] = best_threshold(scores[lines], labels[lines])
    return thresholds


@dataclass(frozen=True)
class Labelled:
    """Labelled triples, those that are true first.

    Attributes:
        group: ``(triples,)`` client and relation as one number.
        score: ``(triples,)`` of the tail as the answer to the question for it.
        label: ``(triples,)`` whether it is true.
    """

    group: Int64
    score: Float
    label: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LinkPrediction:
    """Filtered ranks of held-out triples, both directions; and labelled triples told apart, where there are any.

    ``mrr``, ``hits@k`` and ``mean_rank``: left out of a ranking are all other true answers, of training,
    validation and test, whoever holds them. ``fede_mrr`` and ``fede_hits@10`` follow the protocol of FedE, and are
    not comparable: only tails are asked for, only entities of the client's own triples are ranked, and only its own
    triples are left out. ``accuracy`` and ``f1``: a triple is taken for true if its score is above the threshold of
    its relation at its client, which is the best one on the validation triples; of all relations there, where that
    one has no validation triples. A client without any is left out.

    A client counts as often as it has triples. Clients need nothing but their own triples for FedE's numbers and the
    labelled triples; the filter of the standard ones knows all.

    Attributes:
        task: What scores.
        dataset: All parts; the filter is made of them.
        split: ``test`` or ``validation``; names the metrics, unless it is ``test``.
        memory_bytes: Budget for the scores of the questions that are answered together.

    Reference: Bordes et al., NeurIPS 2013, section 4.2 (filtered); Sun et al., "A Re-evaluation of Knowledge Graph
    Completion Methods", ACL 2020 (ties); Chen et al., "FedE", 2021, section 4.1; Safavi, Koutra, "CoDEx", EMNLP 2020,
    section 6.2 (thresholds).
    """

    task: LinkPredictor
    dataset: Dataset = field(repr=False)
    split: str = "test"
    memory_bytes: int = 1 << 27

    @property
    def on_clients(self) -> bool:
        return True

    @property
    def triples(self) -> Shards:
        """Whose ranks are measured."""
        return self.dataset.held_out[self.split]

    @property
    def _num_entities(self) -> int:
        return len(self.dataset.vocabularies["entity"])

    @property
    def _num_relations(self) -> int:
        return len(self.dataset.vocabularies["relation"])

    @property
    def _true_parts(self) -> list[Shards]:
        held_out = (self.dataset.held_out.get(name) for name in ("validation", "test"))
        return [self.dataset.train, *(part for part in held_out if part is not None)]

    @cached_property
    def _known(self) -> _Answers:
        """Answers of all true triples."""
        parts = [Questions.of(part) for part in self._true_parts]
        questions = np.concatenate([part.keys(self._num_relations) for part in parts])
        return _Answers.of(questions, np.concatenate([part.answer for part in parts]), self._num_entities)

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """Metrics of these clients; NaN for those without triples in the split."""
        prefix = "" if self.split == "test" else f"{self.split}_"
        triples = self.triples.take(clients)
        questions = Questions.of(triples)
        ranks, own_ranks = self._ranks(questions, tables, personal, clients)
        per_client: dict[str, Float] = {"mrr": mean_of_each(1 / ranks, questions.client, len(clients))}
        for cut in CUTS:
            per_client[f"hits@{cut}"] = mean_of_each(ranks <= cut, questions.client, len(clients))
        per_client["mean_rank"] = mean_of_each(ranks, questions.client, len(clients))
        tails = questions.client[~questions.backward]
        per_client["fede_mrr"] = mean_of_each(1 / own_ranks, tails, len(clients))
        per_client["fede_hits@10"] = mean_of_each(own_ranks <= 10, tails, len(clients))
        per_client |= self._classification(tables, personal, clients)
        per_client = {prefix + name: values for name, values in per_client.items()}
        weights = triples.sizes.astype(np.float64)
        return Evaluated(over_clients(per_client, weights), per_client, clients, weights)

    def _ranks(
        self,
        questions: Questions,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        clients: Int64,
    ) -> tuple[Float, Float]:
        """Ranks ``(questions,)`` among all entities, and by FedE's protocol ``(triples,)`` of the tails."""
        num_questions, num_entities = len(questions.anchor), self._num_entities
        ranks, own_ranks = np.empty(num_questions), np.empty(num_questions // 2)
        own_entities, own_known = self._own([Questions.of(part.take(clients)) for part in self._true_parts])
        element = next(iter(tables.values())).element_size()
        block = 2 * max(1, self.memory_bytes // (2 * _COPIES * element * num_entities))  # whole triples
        for start in range(0, num_questions, block):
            asked = questions.select(slice(start, start + block))
            scores = self._scores(asked, tables, personal)
            tails, tail_scores = asked.select(slice(0, None, 2)), scores[::2].clone()
            ranks[start : start + len(asked.anchor)] = _ranked(
                scores, asked, self._known.find(asked.keys(self._num_relations))
            )
            own_ranks[start // 2 : start // 2 + len(tails.anchor)] = _ranked(
                tail_scores, tails, own_known.find(self._own_keys(tails)), own_entities[tails.client]
            )
        return ranks, own_ranks

    def _own_keys(self, questions: Questions) -> Int64:
        """A number for each different client and question."""
        per_client = 2 * self._num_entities * self._num_relations
        return questions.client * per_client + questions.keys(self._num_relations)

    def _own(self, parts: list[Questions]) -> tuple[npt.NDArray[np.bool_], _Answers]:
        """Which entities stand in a client's triples ``(clients, entities)``, and the answers that it knows."""
        num_clients = max(int(part.client.max(initial=-1)) for part in parts) + 1
        entities = np.zeros((num_clients, self._num_entities), dtype=np.bool_)
        for part in parts:
            entities[part.client, part.answer] = True  # either end is an answer once
        keys = np.concatenate([self._own_keys(part) for part in parts])
        return entities, _Answers.of(
            keys, np.concatenate([part.answer for part in parts]), self._num_entities
        )

    def _scores(
        self,
        questions: Questions,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        answers: Int64 | None = None,
    ) -> Tensor:
        device = next(iter(tables.values())).device
        client, anchor, relation, backward = (
            torch.from_numpy(np.ascontiguousarray(column)).to(device)
            for column in (questions.client, questions.anchor, questions.relation, questions.backward)
        )
        chosen = None if answers is None else torch.from_numpy(answers).to(device)
        with torch.no_grad():
            return self.task.score_answers(tables, personal, client, anchor, relation, backward, chosen)

    def _classification(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> dict[str, Float]:
        """Accuracy and F1 per client, where there are labelled triples."""
        names = ("validation", "validation_negatives", self.split, f"{self.split}_negatives")
        if any(name not in self.dataset.held_out for name in names):
            return {}
        known, test = (
            self.labelled(split, tables, personal, clients) for split in ("validation", self.split)
        )
        threshold = self.thresholds(known, len(clients))[test.group]
        there = ~np.isnan(threshold)
        label, client = test.label[there], test.group[there] // self._num_relations
        taken = _numbers(test.score[there]) > threshold[there]
        hit = np.bincount(client[taken & label], minlength=len(clients))
        wrong = np.bincount(client[taken != label], minlength=len(clients))
        total = np.bincount(client, minlength=len(clients))
        nothing = np.full(len(clients), np.nan)
        return {
            "accuracy": np.divide(total - wrong, total, out=nothing.copy(), where=total > 0),
            "f1": np.divide(2 * hit, 2 * hit + wrong, out=nothing.copy(), where=total > 0),
        }

    def labelled(
        self, split: str, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Labelled:
        """The labelled triples of these clients in a split; arguments as those of the measurement."""
        parts = [self.dataset.held_out[name].take(clients) for name in (split, f"{split}_negatives")]
        groups, scores = [], []
        for part in parts:
            tails = Questions.of(part).select(slice(0, None, 2))
            found = self._scores(tails, tables, personal, tails.answer[:, None])[:, 0]
            scores.append(found.double().cpu().numpy())
            groups.append(tails.client * self._num_relations + tails.relation)
        label = np.arange(sum(map(len, groups))) < len(groups[0])
        return Labelled(np.concatenate(groups), np.concatenate(scores), label)

    def thresholds(self, known: Labelled, num_clients: int) -> Float:
        """The best threshold of each client's relations ``(clients * relations,)``, from its labelled triples.

        Of all relations there, where that one has no triples; NaN at a client without any.
        """
        score, num_relations = _numbers(known.score), self._num_relations
        found = _best_thresholds(known.group, score, known.label, num_clients * num_relations)
        of_client = _best_thresholds(known.group // num_relations, score, known.label, num_clients)
        return np.where(np.isnan(found), np.repeat(of_client, num_relations), found)


def _numbers(scores: Float) -> Float:
    """The scores with numbers of 32 bits in the place of what is none, the lowest one for NaN."""
    span = np.finfo(np.float32)
    return np.asarray(
        np.nan_to_num(scores, nan=float(span.min), posinf=float(span.max), neginf=float(span.min))
    )
