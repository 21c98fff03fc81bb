"""How knowledge-graph models score a triple: a query from the known end and the relation, compared with answers.

Every model is a query ``q(anchor, relation)`` and a comparison of q with an entity, in both directions: asked for
the head, a model takes the inverse of the relation, so ``score(h, r, t)`` is the same whichever end is asked for.

Complex numbers are stored as all real parts, then all imaginary parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_BLOCK_NUMBERS = 1 << 22  # of differences that are held at a time


@dataclass(frozen=True)
class Scoring:
    """One model.

    Attributes:
        halves: Whether rows are complex numbers, so that their width is even.
        relation_width: Width of a relation for entities of width ``dim``.
        query: ``(..., dim)`` from anchors ``(..., dim)`` and relations ``(..., relation width)``.
        inverse: The relation that leads back.
        compare: Scores ``(..., n, m)`` of queries ``(..., n, dim)`` with entities ``(..., m, dim)``.
        moduli: ``(..., width)`` absolute values that a nuclear norm is made of.
        margin: Added to a score before a logistic loss, unless the settings say otherwise.
    """

    halves: bool
    relation_width: Callable[[int], int]
    query: Callable[[Tensor, Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    compare: Callable[[Tensor, Tensor], Tensor]
    moduli: Callable[[Tensor], Tensor]
    margin: float


def _modulus(x: Tensor) -> Tensor:
    modulus: Tensor = torch.linalg.vector_norm(torch.stack(x.chunk(2, dim=-1)), dim=0)
    return modulus


def _product(x: Tensor, y: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    c, d = y.chunk(2, dim=-1)
    return torch.cat((a * c - b * d, a * d + b * c), dim=-1)


def _conjugate(x: Tensor) -> Tensor:
    real, imaginary = x.chunk(2, dim=-1)
    return torch.cat((real, -imaginary), dim=-1)


def _turned(anchor: Tensor, phase: Tensor) -> Tensor:
    return _product(anchor, torch.cat((phase.cos(), phase.sin()), dim=-1))


def _inner(query: Tensor, entities: Tensor) -> Tensor:
    return query @ entities.transpose(-1, -2)


def _manhattan(query: Tensor, entities: Tensor) -> Tensor:
    return -torch.cdist(query, entities, p=1)


def _euclidean(query: Tensor, entities: Tensor) -> Tensor:
    return -torch.cdist(query, entities, compute_mode="donot_use_mm_for_euclid_dist")


class _SumOfModuli(torch.autograd.Function):
    """``(..., n, m)``: sums of ``|q - e|`` over complex coordinates, a few entities at a time.

    All differences at once would be as large as the scores times the width.
    """

    @staticmethod
    def _differences(query: Tensor, entities: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        size = max(1, _BLOCK_NUMBERS // max(1, query.numel()))
        for start in range(0, entities.shape[-2], size):
            block = slice(start, start + size)
            difference = query.unsqueeze(-2) - entities[..., block, :].unsqueeze(-3)
            yield block, difference, _modulus(difference)

    @staticmethod
    def forward(ctx: Any, query: Tensor, entities: Tensor) -> Tensor:
        ctx.save_for_backward(query, entities)
        batch = torch.broadcast_shapes(query.shape[:-2], entities.shape[:-2])  # type: ignore[no-untyped-call]
        total = query.new_empty(*batch, query.shape[-2], entities.shape[-2])
        for block, _, modulus in _SumOfModuli._differences(query, entities):
            total[..., block] = modulus.sum(-1)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise RuntimeError("RotatE's scores have a first derivative only, got create_graph=True")
        query, entities = ctx.saved_tensors
        by_query, by_entities = [], []
        tiny = torch.finfo(query.dtype).tiny
        for block, difference, modulus in _SumOfModuli._differences(query, entities):
            slope = gradient[..., block].unsqueeze(-1) / modulus.clamp_min(tiny)
            change = difference.mul_(torch.cat((slope, slope), dim=-1))
            by_query.append(change.sum(-2))
            by_entities.append(-change.sum(-3))
        of_query = torch.stack(by_query).sum(0).sum_to_size(query.shape)
        return of_query, torch.cat(by_entities, dim=-2).sum_to_size(entities.shape)


def _sum_of_moduli(query: Tensor, entities: Tensor) -> Tensor:
    total: Tensor = _SumOfModuli.apply(query, entities)  # type: ignore[no-untyped-call]
    return -total


def _same_width(dim: int) -> int:
    return dim


def _half_width(dim: int) -> int:
    return dim // 2


# Bordes et al., "Translating Embeddings for Modeling Multi-relational Data", NeurIPS 2013, eq. (1): -|h + r - t|.
# Yang et al., "Embedding Entities and Relations for Learning and Inference", ICLR 2015, eq. (2) with a diagonal.
# Trouillon et al., "Complex Embeddings for Simple Link Prediction", ICML 2016, eq. (9): Re <h, r, conj(t)>.
# Sun et al., "RotatE", ICLR 2019, eq. (3): -sum |h r - t|, |r| = 1; a relation is stored as its phases.
MODELS: Mapping[str, Scoring] = {
    "transe": Scoring(False, _same_width, torch.add, torch.neg, _manhattan, torch.abs, 9.0),
    "transe_l2": Scoring(False, _same_width, torch.add, torch.neg, _euclidean, torch.abs, 9.0),
    "distmult": Scoring(False, _same_width, torch.mul, torch.clone, _inner, torch.abs, 0.0),
    "complex": Scoring(True, _same_width, _product, _conjugate, _inner, _modulus, 0.0),
    "rotate": Scoring(True, _half_width, _turned, torch.neg, _sum_of_moduli, _modulus, 9.0),
}
