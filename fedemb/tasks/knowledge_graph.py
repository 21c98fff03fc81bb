"""Knowledge-graph embeddings: which entity completes (head, relation, ?) and (?, relation, tail)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fedemb.data.shards import Shards, offsets_of
from fedemb.errors import SettingError
from fedemb.manifolds import Euclidean
from fedemb.tasks.listwise import Blocks
from fedemb.tasks.noise import uniform_ids
from fedemb.tasks.scoring import MODELS, Scoring
from fedemb.types import Batch, Candidates, Dataset, Dense, Drawn, Exclusion, Table

OBJECTIVES = ("one_vs_all", "sampled")
AGAINST = ("all", "own")
RELATIONS = ("shared", "personal")


@dataclass(frozen=True)
class KnowledgeGraph:
    """Scores the true answer of a question above other entities; every triple asks for its tail and for its head.

    With score s of the answer and scores n of the negatives, the loss of a question is

    - ``one_vs_all``: cross entropy of the answer among all entities, or among those that the client holds;
    - ``sampled``: ``-log sigmoid(s + margin) / 2 - sum of p log sigmoid(-(n + margin)) / 2`` with p the softmax of
      ``temperature * n`` over the negatives (a constant in the gradient), the answer itself
      left out, and those that the client knows to be true with ``exclude_known``;

    plus ``n3`` times the sum of the cubed moduli of head, relation and tail.

    A row of ``relation`` holds the relation and, where ``reciprocal``, behind it the one that answers for heads:
    without, that is the relation's inverse.

    Attributes:
        num_entities, num_relations: Heights of the tables.
        model: A name in ``scoring.MODELS``.
        dim: Numbers in an entity's row; even for complex and rotate (half as many complex numbers).
        objective: ``one_vs_all`` or ``sampled``.
        against: ``all`` entities or the client's ``own``, for ``one_vs_all``. Among its own, a client sends only the
            rows that it holds, and its scores say nothing of the others.
        negatives: Entities drawn uniformly for each question, for ``sampled``.
        temperature: How much harder negatives count, for ``sampled``; 0: all alike.
        margin: Added to every score, for ``sampled``.
        reciprocal: Whether a relation has a second vector for questions that ask for heads.
        relations: ``shared``, or ``personal``: then they never leave their client.
        n3: Weight of the nuclear 3-norm.
        init_scale: Rows start uniform in ``[-init_scale, init_scale]``.
        exclude_known: Whether draws that the client knows to be true do not count, for ``sampled``.

    Reference: Lacroix, Usunier, Obozinski, "Canonical Tensor Decomposition for Knowledge Base Completion", ICML 2018,
    sections 4.1 and 5 (full softmax, reciprocals, N3 without its factor 1/3, as in the authors' code); Sun et al.,
    "RotatE", ICLR 2019, eq. (5) and (6) (self-adversarial negatives).
    """

    num_entities: int
    num_relations: int
    model: str
    dim: int
    objective: str
    against: str
    negatives: int
    temperature: float
    margin: float
    reciprocal: bool
    relations: str
    n3: float
    init_scale: float
    exclude_known: bool = True

    @staticmethod
    def build(
        dataset: Dataset,
        model: str,
        dim: int,
        objective: str,
        against: str,
        negatives: int,
        temperature: float,
        margin: float | None,
        reciprocal: bool,
        relations: str,
        n3: float,
        init_scale: float,
        exclude_known: bool = True,
    ) -> KnowledgeGraph:
        """The task for these data; ``margin`` None is the model's own.

        Raises:
            SettingError: If the data are no triples, or a setting is out of range.
        """
        if not {"head", "relation", "tail"} <= set(dataset.train.columns):
            raise SettingError("task=knowledge_graph needs heads, relations and tails: use data=triples")
        for name, word, words in (
            ("model", model, tuple(MODELS)), ("objective", objective, OBJECTIVES), ("relations", relations, RELATIONS),
            ("against", against, AGAINST),
        ):  # fmt: skip
            if word not in words:
                raise SettingError(f"task.{name} must be one of {', '.join(words)}, got {word!r}")
        for name, value, low in (
            ("dim", dim, 1), ("negatives", negatives, 1), ("temperature", temperature, 0), ("n3", n3, 0),
        ):  # fmt: skip
            if not low <= value < math.inf:
                raise SettingError(f"task.{name} must be at least {low} and finite, got {value}")
        if MODELS[model].halves and dim % 2:
            raise SettingError(
                f"task.dim must be even for task.model={model}, which has complex numbers, got {dim}"
            )
        if margin is not None and not math.isfinite(margin):
            raise SettingError(f"task.margin must be finite or null, got {margin}")
        if not 0 < init_scale < math.inf:
            raise SettingError(f"task.init_scale must be a positive number, got {init_scale}; 0.1 is usual")
        return KnowledgeGraph(
            len(dataset.vocabularies["entity"]),
            len(dataset.vocabularies["relation"]),
            model,
            dim,
            objective,
            against,
            negatives,
            temperature,
            MODELS[model].margin if margin is None else margin,
            reciprocal,
            relations,
            n3,
            init_scale,
            exclude_known,
        )

    @property
    def scoring(self) -> Scoring:
        return MODELS[self.model]

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        width = self.scoring.relation_width(self.dim) * (2 if self.reciprocal else 1)
        scale = np.pi if self.model == "rotate" else self.init_scale
        shared = self.relations == "shared"
        return (
            Table("entity", self.num_entities, self.dim, Euclidean(), self.init_scale, entity="entity"),
            Table("relation", self.num_relations, width, Euclidean(), scale, shared, entity="relation"),
        )

    @property
    def dense(self) -> tuple[Dense, ...]:
        return ()

    @property
    def candidates(self) -> Mapping[str, Drawn | None]:
        if self.objective != "one_vs_all":
            return {}
        return {"entity": None if self.against == "own" else Drawn(self.num_entities)}

    @property
    def num_draws(self) -> int:
        return 0 if self.candidates else self.negatives

    @property
    def exclusion(self) -> Exclusion | None:
        asked = self.exclude_known and not self.candidates
        return Exclusion("question", "answer", "negatives") if asked else None

    def examples(self, shards: Shards) -> Shards:
        return questions(shards, self.num_relations)

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        return batch if self.candidates else {**batch, "negatives": uniform_ids(uniforms, self.num_entities)}

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        ends = torch.stack((batch["anchor"], batch["answer"]), dim=1)
        entities = ends if self.candidates else torch.cat((ends, batch["negatives"]), dim=1)
        return {"entity": entities, "relation": batch["relation"][:, None]}

    def _directed(self, relation: Tensor, backward: Tensor) -> Tensor:
        """The relation ``(examples, width)`` that leads from the anchor to the answer."""
        if self.reciprocal:
            there, back = relation.chunk(2, dim=-1)
        else:
            there, back = relation, self.scoring.inverse(relation)
        return torch.where(backward[:, None], back, there)

    def loss(
        self,
        vectors: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        batch: Batch,
        candidates: Mapping[str, Candidates] | None = None,
    ) -> Tensor:
        scoring, entities = self.scoring, vectors["entity"]
        anchor, answer = entities[:, 0], entities[:, 1]
        relation = self._directed(vectors["relation"][:, 0], batch["backward"])
        query = scoring.query(anchor, relation)
        if candidates:
            held, blocks = candidates["entity"], Blocks.of(candidates["entity"])
            logits = blocks.take(scoring.compare(blocks.fill(query), held.points))
            logits = logits.masked_fill(~held.present[held.client], -torch.inf)
            at = held.place[:, 1:2]
            loss = torch.logsumexp(logits, dim=1) - logits.gather(1, at)[:, 0]
        else:
            loss = self._contrast(scoring.compare(query[:, None], entities[:, 1:])[:, 0], batch)
        if self.n3 and len(anchor):
            parts = [anchor, answer] if self.model == "rotate" else [anchor, answer, relation]
            cubes = [scoring.moduli(part).pow(3).sum(1) for part in parts]
            loss = loss + self.n3 * torch.stack(cubes).sum(0)
        return loss

    def _contrast(self, scores: Tensor, batch: Batch) -> Tensor:
        scores = scores + self.margin
        positive, negative = scores[:, 0], scores[:, 1:]
        known = batch["negatives"] == batch["answer"][:, None]
        if "known" in batch:
            known = known | batch["known"]
        hardness = (self.temperature * negative.detach()).masked_fill(known, float("-inf"))
        share = torch.softmax(hardness, dim=1).nan_to_num(0.0)  # where every negative is a true answer
        return -(logsigmoid(positive) + (share * logsigmoid(-negative)).sum(1)) / 2

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
        """See ``types.LinkPredictor``."""
        entities = tables["entity"]
        rows = (
            tables["relation"][relation] if "relation" in tables else personal["relation"][client, relation]
        )
        query = self.scoring.query(entities[anchor], self._directed(rows, backward))
        if answers is None:
            return self.scoring.compare(query, entities)
        return self.scoring.compare(query[:, None], entities[answers])[:, 0]


def questions(shards: Shards, num_relations: int) -> Shards:
    """Two questions for each triple: columns ``anchor``, ``relation``, ``answer``, ``backward``, ``question``."""
    head, relation, tail = (
        np.asarray(shards.columns[name], dtype=np.int64) for name in ("head", "relation", "tail")
    )
    backward = np.tile([False, True], len(head))
    columns = {
        "anchor": np.stack((head, tail), axis=1).reshape(-1),
        "relation": np.repeat(relation, 2),
        "answer": np.stack((tail, head), axis=1).reshape(-1),
        "backward": backward,
    }
    columns["question"] = (columns["anchor"] * num_relations + columns["relation"]) * 2 + backward
    if "owner" in shards.columns:
        columns["owner"] = np.repeat(shards.columns["owner"], 2)
    return Shards(columns, offsets_of(2 * shards.sizes))
