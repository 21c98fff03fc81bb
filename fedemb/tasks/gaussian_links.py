"""Knowledge graphs of Gaussian entities and relations: a score, and how much it may be off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.gaussian import Gaussian
from fedemb.tasks.expected import Choices, Normal, choice_loss, moderated
from fedemb.tasks.knowledge_graph import questions
from fedemb.types import Batch, Candidates, Dense, Drawn, Exclusion, Table

LINK_MODELS = ("complex", "distmult")


@dataclass(frozen=True)
class GaussianLinks:
    """Chooses the true answer of a question among all entities; every triple asks for its tail and for its head.

    The query is the product of anchor and relation, complex for ``complex``, and its moments follow in closed form.

    Attributes:
        num_entities, num_relations: Heights of the tables.
        dim: Numbers of an entity (complex: half as many complex ones); its row has so many means and precisions.
        model: ``complex`` or ``distmult``.
        reciprocal: Whether a relation has a second vector for questions that ask for heads; else complex takes its
            conjugate and distmult itself.
        space: Of all rows, with their prior.
        sure: Ignore variances.
        scale: Of inner products.
        init_scale: Means begin uniform in ``[-init_scale, init_scale]``.

    Reference: as ``KnowledgeGraph``; He et al., "Learning to Represent Knowledge Graphs with Gaussian Embedding", CIKM
    2015, for entities that are Gaussian.
    """

    num_entities: int
    num_relations: int
    dim: int
    model: str
    reciprocal: bool
    space: Gaussian
    sure: bool
    scale: float
    init_scale: float
    dense: tuple[Dense, ...] = field(default=(), init=False)
    num_draws: int = field(default=0, init=False)
    exclusion: Exclusion | None = field(default=None, init=False)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        width = 2 * self.dim
        relations = 2 * width if self.reciprocal else width
        return (
            Table("entity", self.num_entities, width, self.space, self.init_scale, entity="entity"),
            Table("relation", self.num_relations, relations, self.space, self.init_scale, entity="relation"),
        )

    @property
    def candidates(self) -> Mapping[str, Drawn | None]:
        return {"entity": Drawn(self.num_entities)}

    def examples(self, shards: Shards) -> Shards:
        return questions(shards, self.num_relations)

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        return batch

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        ends = torch.stack((batch["anchor"], batch["answer"]), dim=1)
        return {"entity": ends, "relation": batch["relation"][:, None]}

    def loss(
        self,
        vectors: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        batch: Batch,
        candidates: Mapping[str, Candidates] | None = None,
    ) -> Tensor:
        assert candidates is not None
        entities, held = self._normal(vectors["entity"]), candidates["entity"]
        query = self._query(entities[:, 0], self._normal(vectors["relation"][:, 0]), batch["backward"])
        choices = Choices(self._normal(held.points), None, self.scale)
        return choice_loss(query, entities[:, 1], None, choices, held)

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
        """See ``types.LinkPredictor``: expected scores, drawn towards zero by their variance."""
        entities = self._normal(tables["entity"])
        query = self._query(entities[anchor], self._normal(tables["relation"][relation]), backward)
        if answers is None:
            return moderated(Choices(entities, None, self.scale).scores(query))
        few = Choices(entities[answers], None, self.scale)
        return moderated(few.scores(Normal(query.mean[:, None], query.variance[:, None])))[:, 0]

    def _normal(self, points: Tensor) -> Normal:
        return Normal.of(points, self.sure)

    def _query(self, anchor: Normal, relation: Normal, backward: Tensor) -> Normal:
        if self.reciprocal:
            there, back = relation.halves
        else:
            there = back = relation
            if self.model == "complex":
                real, imaginary = relation.mean.chunk(2, -1)
                back = Normal(torch.cat((real, -imaginary), -1), relation.variance)
        chosen = Normal(
            torch.where(backward[:, None], back.mean, there.mean),
            torch.where(backward[:, None], back.variance, there.variance),
        )
        return anchor.times_complex(chosen) if self.model == "complex" else anchor.times(chosen)
