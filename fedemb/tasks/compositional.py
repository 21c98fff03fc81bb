"""Vectors of records that are made of parts, some of which are missing, and the labels that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fedemb.data.grams import NOTHING
from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.manifolds import Euclidean
from fedemb.types import Batch, Component, Dataset, Dense, Exclusion, Table

COMBINATIONS = ("attention", "mean", "zero_fill", "concatenation")
LABEL = "label"


@dataclass(frozen=True)
class Compositional:
    """Each component has an encoder into a common space; what is there is combined, and scores every label.

        ids of values ── rows ──> sum / sqrt(number) ──┐
        a number ── waves ── dense ────────────────────┼─ combined over the components that are there ── z
        nothing at all ── prior ───────────────────────┘        │
                             scores = <label, z + relu(z A + a) B> / sqrt(dim) + bias(label) <──┘

    How components are combined: ``attention``: every label asks for its own z, the mean of the components weighted by
    the softmax of ``<query(label), x_c> / sqrt(dim) + offset(label, c)`` over those that are there and a learnt prior,
    times the root of their number: the rest share the weight of what is missing, vectors keep their length, and little
    is told where little is known. ``mean``: their plain mean. ``zero_fill``: as ``mean``, missing ones count as zeros.
    ``concatenation``: a map of its own for each, missing ones are zeros. A record without any component has the prior,
    whatever the rule.

    In training, a share of each example's components is dropped: drawn between 0 and ``drop``, then each of them with
    that probability; of the others, each value is dropped with the probability ``drop_values``. What is dropped is not
    looked up.

    The loss is that of all labels at once: binary cross-entropy, summed over labels, or softmax where there is one
    label. All rows of the label tables are looked up by every example, so labels must be few (hundreds).

    Attributes:
        components: What records are made of.
        label: What is to be known of them; its height is ``label.num_values``.
        dim: Dimensions of the common space.
        combine: See above.
        drop: Largest share of components that is dropped in training.
        drop_values: Share of the values (n-grams of a text, say) that is dropped in training.
        hidden: Units of the layer between the composed vector and the labels; 0: none.
        waves: Sine and cosine waves of a number that is no id.
        init_scale: Of rows.

    Reference: Bahdanau, Cho, Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", ICLR 2015
    (softmax over what is there); Zaheer et al., "Deep Sets", NeurIPS 2017; Tancik et al., "Fourier Features Let
    Networks Learn High Frequency Functions in Low Dimensional Domains", NeurIPS 2020.
    """

    components: tuple[Component, ...]
    label: Component
    dim: int
    combine: str
    drop: float
    drop_values: float
    hidden: int
    waves: int
    init_scale: float

    @staticmethod
    def build(
        dataset: Dataset,
        dim: int,
        combine: str,
        drop: float,
        drop_values: float,
        hidden: int,
        waves: int,
        init_scale: float,
    ) -> Compositional:
        """The task for these data.

        Raises:
            SettingError: If the data are no records, or a setting is out of range.
        """
        if not dataset.components or dataset.label is None:
            raise SettingError(
                "task=compositional needs things made of parts, and their labels: use data=records"
            )
        if combine not in COMBINATIONS:
            raise SettingError(f"task.combine must be one of {', '.join(COMBINATIONS)}, got {combine!r}")
        for name, value, low in (("dim", dim, 1), ("hidden", hidden, 0), ("waves", waves, 1)):
            if value < low:
                raise SettingError(f"task.{name} must be at least {low}, got {value}")
        if not 0 <= drop <= 1:
            raise SettingError(f"task.drop must be in [0, 1], got {drop}; 0.8 drops two of five on average")
        if not 0 <= drop_values < 1:
            raise SettingError(
                f"task.drop_values must be in [0, 1), got {drop_values}; 0.3 drops three of ten"
            )
        if not 0 < init_scale < math.inf:
            raise SettingError(f"task.init_scale must be > 0, got {init_scale}; 0.1 is usual")
        return Compositional(
            dataset.components, dataset.label, dim, combine, drop, drop_values, hidden, waves, init_scale
        )

    @cached_property
    def coded(self) -> tuple[Component, ...]:
        """The components that are rows; the others are numbers."""
        return tuple(part for part in self.components if is_coded(part))

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """The row 0 of a component stands for no value; it fills gaps and never moves."""
        flat, labels = Euclidean(), self.label.num_values
        return (
            *(
                Table(p.name, p.num_values + 1, self.dim, flat, self.init_scale, entity=p.name)
                for p in self.coded
            ),
            Table(LABEL, labels, self.dim, flat, self.init_scale, entity=LABEL),
            Table("label_bias", labels, 1, flat, 0.0, entity=LABEL),
        )

    @cached_property
    def dense(self) -> tuple[Dense, ...]:
        count, dim, unit = len(self.components), self.dim, math.sqrt(3 / self.dim)
        found = [Dense("prior", (dim,), self.init_scale)]
        if self.combine == "attention":
            labels = self.label.num_values
            found += [Dense("query", (labels, dim), self.init_scale), Dense("offset", (labels, count))]
        if self.combine == "concatenation":
            found.append(Dense("map", (count, dim, dim), unit / math.sqrt(count)))
        if self.hidden:
            found += [Dense("inner", (dim, self.hidden), unit), Dense("inner_bias", (self.hidden,))]
            found.append(Dense("outer", (self.hidden, dim), math.sqrt(3 / self.hidden)))
        plain = [part for part in self.components if not is_coded(part)]
        return (
            *found,
            *(Dense(f"waves_{p.name}", (2 * self.waves + 1, dim), self.init_scale) for p in plain),
        )

    @property
    def num_draws(self) -> int:
        of_values = sum(part.width for part in self.coded) if self.drop_values else 0
        return 1 + len(self.components) + of_values if self.drop or of_values else 0

    @property
    def exclusion(self) -> Exclusion | None:
        return None

    def examples(self, shards: Shards) -> Shards:
        names = [part.column for part in self.components] + [LABEL]
        names += [name for name in ("weight", "owner") if name in shards.columns]
        return Shards({name: shards.columns[name] for name in names}, shards.offsets)

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        if not self.num_draws:
            return batch
        count = 1 + len(self.components)
        out = without(self.components, batch, uniforms[:, 1:count] < self.drop * uniforms[:, :1])
        if self.drop_values:
            draws = torch.split(uniforms[:, count:], [part.width for part in self.coded], 1)
            for part, draw in zip(self.coded, draws, strict=True):
                out[part.column] = out[part.column].masked_fill(draw < self.drop_values, NOTHING)
        return out

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        ids = {part.name: batch[part.column].long() + 1 for part in self.coded}
        labels = torch.arange(self.label.num_values, device=batch[LABEL].device).expand(len(batch[LABEL]), -1)
        return {**ids, LABEL: labels, "label_bias": labels}

    def loss(self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch) -> Tensor:
        scores = self._scores(vectors, dense, batch)
        if self.label.kind == "category":
            return cross_entropy(scores, batch[LABEL][:, 0].long(), reduction="none")
        truth = multi_hot(batch[LABEL], self.label.num_values).to(scores.dtype)
        return binary_cross_entropy_with_logits(scores, truth, reduction="none").sum(1)

    def label_scores(self, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self._scores(*self._looked_up(tables, batch), batch)

    def composed(self, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Vectors ``(records, dim)``; with attention, the mean of those that labels ask for."""
        return self._composed(*self._looked_up(tables, batch), batch).mean(1)

    def attention_weights(self, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Weight ``(records, labels, components + 1)`` of each component, and of the prior, to each label.

        They add up to 1 over components.

        Args:
            tables: Shared tables, and dense parameters by name.
            batch: Of its own examples.

        Raises:
            SettingError: If components are not combined by attention.
        """
        if self.combine != "attention":
            raise SettingError(f"attention weights need task.combine=attention, got {self.combine}")
        vectors, dense = self._looked_up(tables, batch)
        return self._weights(*self._encoded(vectors, dense, batch), dense)

    def _looked_up(
        self, tables: Mapping[str, Tensor], batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        vectors = {name: tables[name][ids] for name, ids in self.lookup(batch).items()}
        size = len(batch[LABEL])
        return vectors, {d.name: tables[d.name].expand(size, *d.shape) for d in self.dense}

    def _encoded(
        self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Vectors ``(examples, components, dim)``, zero where there is none, and which are there."""
        found, there = [], []
        for part in self.components:
            column = batch[part.column]
            if is_coded(part):
                known = (column != NOTHING).to(vectors[part.name].dtype)
                count = known.sum(1)
                total = torch.einsum("nk,nkd->nd", known, vectors[part.name])
                found.append(total / count.clamp(min=1).sqrt()[:, None])
                there.append(count > 0)
            else:
                known_number, waves = ~column.isnan(), dense[f"waves_{part.name}"]
                features = self._waves(torch.where(known_number, column, 0.0).to(waves.dtype))
                found.append(torch.einsum("nf,nfd->nd", features * known_number[:, None], waves))
                there.append(known_number)
        return torch.stack(found, 1), torch.stack(there, 1)

    def _waves(self, place: Tensor) -> Tensor:
        """Features ``(examples, 2 waves + 1)`` of numbers from 0 to 1: a constant, and half waves of 1, 2, 3..."""
        angles = (
            math.pi * place[:, None] * torch.arange(1, self.waves + 1, dtype=place.dtype, device=place.device)
        )
        return torch.cat((torch.ones_like(place)[:, None], angles.sin(), angles.cos()), 1)

    def _weights(self, parts: Tensor, there: Tensor, dense: Mapping[str, Tensor]) -> Tensor:
        """Weights ``(examples, labels, components + 1)``."""
        scores = torch.einsum("nld,ncd->nlc", dense["query"], parts) / math.sqrt(self.dim) + dense["offset"]
        scores = scores.masked_fill(~there[:, None], -torch.inf)
        return torch.softmax(torch.cat((scores, torch.zeros_like(scores[..., :1])), -1), -1)

    def _composed(self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Vectors ``(examples, labels, dim)`` that the labels ask for, or ``(examples, 1, dim)``, the same for all."""
        parts, there = self._encoded(vectors, dense, batch)
        if self.combine == "attention":
            whole = torch.cat((parts, dense["prior"][:, None]), 1)
            weighted = self._weights(parts, there, dense) @ whole
            return weighted * (there.sum(1) + 1).sqrt()[:, None, None]
        if self.combine == "concatenation":
            combined = torch.einsum("ncd,ncde->ne", parts, dense["map"])
        else:
            held = there.sum(1, keepdim=True).clamp(min=1)
            combined = parts.sum(1) / (held if self.combine == "mean" else len(self.components))
        return torch.where(there.any(1, keepdim=True), combined, dense["prior"])[:, None]

    def _scores(self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch) -> Tensor:
        z = self._composed(vectors, dense, batch)
        if self.hidden:
            inner = torch.relu(z @ dense["inner"] + dense["inner_bias"][:, None])
            z = z + inner @ dense["outer"]
        products = (z * vectors[LABEL]).sum(-1) / math.sqrt(self.dim)
        return products + vectors["label_bias"][..., 0]


def is_coded(part: Component) -> bool:
    """Whether its values are ids, of which there may be none at all, and not plain numbers."""
    return part.kind != "number" or part.num_values > 0


def without(components: tuple[Component, ...], batch: Batch, gone: Tensor) -> dict[str, Tensor]:
    """The batch where components that are ``gone`` ``(examples, components)`` are missing."""
    out = dict(batch)
    for place, part in enumerate(components):
        lost, column = gone[:, place], batch[part.column]
        nothing = NOTHING if is_coded(part) else torch.nan
        out[part.column] = column.masked_fill(lost[:, None] if column.dim() > 1 else lost, nothing)
    return out


def multi_hot(ids: Tensor, num_labels: int) -> Tensor:
    """Which labels ``(examples, num_labels)`` bool a record has, from ids ``(examples, width)`` with -1 for none.

    >>> multi_hot(torch.tensor([[0, -1], [-1, -1]]), 2).tolist()
    [[True, False], [False, False]]
    """
    hot = torch.zeros(len(ids), num_labels + 1, dtype=torch.bool, device=ids.device)
    return hot.scatter_(1, ids.long() + 1, True)[:, 1:]
