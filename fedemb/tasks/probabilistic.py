"""Rows that know how sure they are: labels told from bags of Gaussian values, and triples of Gaussian entities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from fedemb.data.grams import NOTHING
from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.gaussian import Gaussian
from fedemb.tasks.expected import Choices, Normal, choice_loss, moderated
from fedemb.tasks.gaussian_links import LINK_MODELS, GaussianLinks
from fedemb.types import Batch, Candidates, Component, Dataset, Dense, Drawn, Exclusion, Table, Task

POSTERIORS = ("gaussian", "point")
LABEL, BIAS = "label", "label_bias"
_NUM_DRAWS = 32


def build(
    dataset: Dataset,
    dim: int,
    posterior: str,
    model: str,
    reciprocal: bool,
    prior_precision: float,
    label_prior_precision: float,
    floor: float,
    start: float,
    scale: float,
    init_scale: float,
) -> Task:
    """The task for these data: ``GaussianLinks`` for triples, ``GaussianLabels`` for records of one label.

    Raises:
        SettingError: If the data are neither, or a setting is out of range.
    """
    if posterior not in POSTERIORS:
        raise SettingError(f"task.posterior must be one of {', '.join(POSTERIORS)}, got {posterior!r}")
    if dim < 1:
        raise SettingError(f"task.dim must be at least 1, got {dim}")
    for name, value in (("scale", scale), ("init_scale", init_scale)):
        if not 0 < value < math.inf:
            raise SettingError(f"task.{name} must be a positive number, got {value}")
    if not 0 < label_prior_precision < math.inf:
        raise SettingError(
            f"task.label_prior_precision must be a positive number, got {label_prior_precision}; 1 is usual"
        )
    space, sure = Gaussian(prior_precision, floor), posterior == "point"
    compared = partial(Gaussian, floor=floor, start=start)
    if {"head", "relation", "tail"} <= set(dataset.train.columns):
        if model not in LINK_MODELS:
            raise SettingError(f"task.model must be one of {', '.join(LINK_MODELS)}, got {model!r}")
        if model == "complex" and dim % 2:
            raise SettingError(
                f"task.dim must be even for task.model=complex, which has complex numbers, got {dim}"
            )
        entities, relations = (len(dataset.vocabularies[name]) for name in ("entity", "relation"))
        return GaussianLinks(
            entities,
            relations,
            dim,
            model,
            reciprocal,
            compared(prior_precision),
            space,
            sure,
            scale,
            init_scale,
        )
    if not dataset.components or dataset.label is None:
        raise SettingError(
            "task=probabilistic needs things made of parts and their label, or triples: use data=records, "
            "data=clinc150 or data=triples"
        )
    if dataset.label.kind != "category":
        raise SettingError(
            f"task=probabilistic needs data.label=category, got {dataset.label.kind}; "
            "task=compositional tells many labels, and data=clinc150 has one"
        )
    numbers = [part.name for part in dataset.components if not part.num_values]
    if numbers:
        raise SettingError(
            f"task=probabilistic needs values, and component {numbers[0]} is a number: give it bins"
        )
    labels = compared(label_prior_precision)
    return GaussianLabels(dataset.components, dataset.label, dim, space, labels, sure, scale, init_scale)


@dataclass(frozen=True)
class GaussianLabels:
    """Which label a record has, from the bag of its values; values and labels are Gaussian.

        values ── rows ──> sum / sqrt(number) ──> query ──> scale <query, label> + bias(label) ──> choice

    A row is a posterior: its prior, and what all clients' examples say of it. Values that nobody has seen keep the
    prior, mean zero and full variance, so a record made of them has a wide query and even scores.

    ``uncertainties`` of a record: ``aleatoric``, the expected entropy of its labels, which would remain if rows were
    known. ``epistemic``, how much more entropy there is because they are not: what its label would tell of the rows.
    ``shift``, the share of the prior's variance that is left in its query, from 0 (all its values were seen often) to 1
    (none was).

    Reference: Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning", ICML 2018, section 3.1.

    Attributes:
        components: What records are made of; all of their values are in one bag.
        label: What is to be known of them.
        dim: Dimensions of the common space; a row holds so many means and so many precisions.
        space: Of the rows of values, with their prior.
        label_space: Of the rows of labels and their biases.
        sure: Ignore variances: rows are their most likely points, under the same prior.
        scale: Of inner products.
        init_scale: Means of labels begin uniform in ``[-init_scale, init_scale]``, those of values at their prior.
    """

    components: tuple[Component, ...]
    label: Component
    dim: int
    space: Gaussian
    label_space: Gaussian
    sure: bool
    scale: float
    init_scale: float

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """The row 0 of a component stands for no value; it fills gaps and never moves."""
        width, labels, space = 2 * self.dim, self.label.num_values, self.label_space
        return (
            *(
                Table(p.name, p.num_values + 1, width, self.space, 0.0, entity=p.name)
                for p in self.components
            ),
            Table(LABEL, labels, width, space, self.init_scale, entity=LABEL),
            Table(BIAS, labels, 2, space, 0.0, entity=LABEL),
        )

    @property
    def dense(self) -> tuple[Dense, ...]:
        return ()

    @property
    def num_draws(self) -> int:
        return 0

    @property
    def exclusion(self) -> Exclusion | None:
        return None

    @property
    def candidates(self) -> Mapping[str, Drawn | None]:
        """All labels: a client compares with those that it has no example of, too."""
        return {name: Drawn(self.label.num_values) for name in (LABEL, BIAS)}

    def examples(self, shards: Shards) -> Shards:
        names = [part.column for part in self.components] + [LABEL]
        names += [name for name in ("weight", "owner") if name in shards.columns]
        return Shards({name: shards.columns[name] for name in names}, shards.offsets)

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        return batch

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        own = batch[LABEL].long().clamp(min=0)
        return {**self._values(batch), LABEL: own, BIAS: own}

    def loss(
        self,
        vectors: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        batch: Batch,
        candidates: Mapping[str, Candidates] | None = None,
    ) -> Tensor:
        assert candidates is not None
        answer, bias = self._normal(vectors[LABEL][:, 0]), self._normal(vectors[BIAS][:, 0])[..., 0]
        held = candidates[LABEL]
        choices = self._choices(held.points, candidates[BIAS].points)
        return choice_loss(self._query(vectors, batch), answer, bias, choices, held)

    def label_scores(self, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return moderated(self._scores(tables, batch))

    def composed(self, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self._looked_up(tables, batch).mean

    def uncertainties(self, tables: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``(records,)`` each, in nats and as a share; higher means less to be trusted.

        Entropies are those of draws of queries and labels, the same for all records.
        """
        query, choices = self._looked_up(tables, batch), self._choices(tables[LABEL], tables[BIAS])
        whole, expected = torch.zeros((), dtype=query.mean.dtype), torch.zeros(())
        for probabilities in choices.draws(query, _NUM_DRAWS):
            whole = whole + probabilities / _NUM_DRAWS
            expected = expected + _entropy(probabilities) / _NUM_DRAWS
        left = query.variance.mean(1) * self.space.prior_precision
        return {"aleatoric": expected, "epistemic": _entropy(whole) - expected, "shift": left}

    def _values(self, batch: Batch) -> dict[str, Tensor]:
        return {part.name: batch[part.column].long() + 1 for part in self.components}

    def _normal(self, points: Tensor) -> Normal:
        return Normal.of(points, self.sure)

    def _query(self, vectors: Mapping[str, Tensor], batch: Batch) -> Normal:
        points = torch.cat([vectors[part.name] for part in self.components], 1)
        present = torch.cat([batch[part.column] != NOTHING for part in self.components], 1)
        return self._normal(points).bag(present)

    def _looked_up(self, tables: Mapping[str, Tensor], batch: Batch) -> Normal:
        return self._query({name: tables[name][ids] for name, ids in self._values(batch).items()}, batch)

    def _choices(self, points: Tensor, biases: Tensor) -> Choices:
        return Choices(self._normal(points), self._normal(biases)[..., 0], self.scale)

    def _scores(self, tables: Mapping[str, Tensor], batch: Batch) -> Normal:
        return self._choices(tables[LABEL], tables[BIAS]).scores(self._looked_up(tables, batch))


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(1)
    return entropy
