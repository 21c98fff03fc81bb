"""Expectations over Gaussian rows in closed form: products, bags, and the loss and the scores of a choice.

A choice is among candidates c with ``score(c) = scale <query, c> + bias(c)``; query, candidates and biases are
independent diagonal Gaussians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedemb.gaussian import split
from fedemb.tasks.listwise import Blocks
from fedemb.types import Candidates


@dataclass(frozen=True)
class Normal:
    """Independent normal numbers: ``mean`` and ``variance`` of one shape."""

    mean: Tensor
    variance: Tensor

    @staticmethod
    def of(points: Tensor, sure: bool = False) -> Normal:
        """Rows ``(..., dim)`` of a Gaussian table; ``sure``: their means alone."""
        mean, precision = split(points)
        return Normal(mean, torch.zeros_like(precision) if sure else precision.reciprocal())

    def __getitem__(self, index: Any) -> Normal:
        return Normal(self.mean[index], self.variance[index])

    @property
    def square(self) -> Tensor:
        """Expected squares."""
        return self.mean.square() + self.variance

    def times(self, other: Normal) -> Normal:
        """Mean and variance of the products (which are not normal, but the sum of many nearly is)."""
        variance = self.mean.square() * other.variance + self.variance * other.square
        return Normal(self.mean * other.mean, variance)

    def times_complex(self, other: Normal) -> Normal:
        """Products of complex numbers: all real parts, then all imaginary parts; what these share is left out."""
        (a, b), (c, d) = self.halves, other.halves
        real, crossed, first, second = a.times(c), b.times(d), a.times(d), b.times(c)
        mean = torch.cat((real.mean - crossed.mean, first.mean + second.mean), -1)
        variance = torch.cat((real.variance + crossed.variance, first.variance + second.variance), -1)
        return Normal(mean, variance)

    @property
    def halves(self) -> tuple[Normal, Normal]:
        """The halves of the last axis."""
        parts = zip(split(self.mean), split(self.variance), strict=True)
        first, second = (Normal(mean, variance) for mean, variance in parts)
        return first, second

    def bag(self, present: Tensor) -> Normal:
        """Sum over the last axis but one of those that are ``present`` ``(..., k)``, by the root of their number."""
        weight = present.to(self.mean.dtype)
        count = weight.sum(-1, keepdim=True).clamp(min=1)
        mean = torch.einsum("...k,...kd->...d", weight, self.mean) / count.sqrt()
        return Normal(mean, torch.einsum("...k,...kd->...d", weight, self.variance) / count)


@dataclass(frozen=True)
class Choices:
    """What a query is compared with: ``points`` ``(..., candidates, d)``, ``biases`` ``(..., candidates)`` if any."""

    points: Normal
    biases: Normal | None
    scale: float

    def scores(self, query: Normal) -> Normal:
        """Scores ``(..., n, candidates)`` of queries ``(..., n, d)``."""
        mean = self.scale * query.mean @ self.points.mean.transpose(-1, -2)
        left = torch.cat((query.variance, query.square), -1)
        right = torch.cat((self.points.mean.square(), self.points.variance), -1)
        variance = self.scale**2 * left @ right.transpose(-1, -2)
        if self.biases is None:
            return Normal(mean, variance)
        return Normal(mean + self.biases.mean.unsqueeze(-2), variance + self.biases.variance.unsqueeze(-2))


def moderated(scores: Normal) -> Tensor:
    """Scores whose softmax or sigmoid is nearly the expected one: drawn towards zero by their variance.

    Reference: MacKay, "The Evidence Framework Applied to Classification Networks", Neural Computation 1992, eq. (10);
    Lu, Ie, Sha, "Mean-Field Approximation to Gaussian-Softmax Integral", 2020, eq. (8), for many classes.
    """
    return scores.mean / (1 + math.pi / 8 * scores.variance).sqrt()


def choice_loss(
    query: Normal, answer: Normal, answer_bias: Normal | None, choices: Choices, held: Candidates
) -> Tensor:
    """An upper bound ``(examples,)`` of the expected negative log probability of the answers.

    The differences ``D(c) = score(c) - score(answer)`` have a mean ``d(c)`` and a variance ``v(c)``, and Jensen's
    inequality gives ``E log sum exp D(c) <= log sum exp(d(c) + v(c) / 2)``, with ``D(answer) = 0``. What candidate and
    answer share of the query's variance cancels in ``v``.

    Reference: Blei & Lafferty, "A Correlated Topic Model of Science", Annals of Applied Statistics 2007, section 3.1
    (the bound of a log normaliser; that of the differences is tighter).

    Args:
        query: ``(examples, d)``.
        answer: ``(examples, d)``.
        answer_bias: ``(examples,)``.
        choices: ``(clients, most, d)``: the candidates.
        held: Whose these are; the answer is the last of an example's own lookups.
    """
    scale, blocks = choices.scale, Blocks.of(held)
    left = torch.cat(
        (
            scale * query.mean - scale**2 * query.variance * answer.mean,
            scale**2 / 2 * query.variance,
            scale**2 / 2 * query.square,
        ),
        -1,
    )
    points = choices.points
    right = torch.cat((points.mean, points.mean.square(), points.variance), -1)
    raised = blocks.take(blocks.fill(left) @ right.transpose(-1, -2))
    shared = (query.variance * answer.mean.square() + query.square * answer.variance).sum(1) * (scale**2 / 2)
    shared = shared - scale * (query.mean * answer.mean).sum(1)
    if choices.biases is not None and answer_bias is not None:
        raised = raised + (choices.biases.mean + choices.biases.variance / 2)[held.client]
        shared = shared + answer_bias.variance / 2 - answer_bias.mean
    raised = (raised + shared[:, None]).masked_fill(~held.present[held.client], -torch.inf)
    return torch.logsumexp(raised.scatter(1, held.place[:, -1:], 0.0), 1)
