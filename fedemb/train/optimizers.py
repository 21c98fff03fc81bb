"""Local optimisers: one step on the rows that a batch looked up, state per row.

State lives for one round, unless a client keeps it (``OptimizerMemory``). Repeated rows in a batch are added up
before the step. On a curved table a step is an exponential map; Adagrad and Adam accumulate in
the orthonormal frame at the row's current point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedemb.manifolds import Euclidean
from fedemb.train.ragged import add_rows_, localise
from fedemb.types import Manifold


@dataclass(frozen=True)
class Parameter:
    """The rows of one table that a cohort trains.

    Attributes:
        points: ``(rows, coordinates)``, changed in place.
        manifold: The space that they live in.
        state: Per-row state of the optimiser, created at the first step.
    """

    points: Tensor
    manifold: Manifold
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerMemory:
    """State of clients' optimisers between calls of the trainer, by table, client and row; what is new has none.

    Attributes:
        rows: Per table, keys ``client * num_rows + row`` of what has state, ascending.
        state: Per table and name, ``(rows, width)``.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def copy(self) -> OptimizerMemory:
        """The same memory; what is put into one is not in the other."""
        return OptimizerMemory(dict(self.rows), dict(self.state))

    def take(self, table: str, rows: Tensor) -> dict[str, Tensor]:
        """State of these rows ``(rows, width)``, zero where there is none; ``rows`` ascending.

        It comes on the device of ``rows``, wherever the memory is: one that was read from a file is on the CPU.
        """
        known = self.rows.get(table)
        if known is None or not len(known):
            return {}
        known = known.to(rows.device)
        at = torch.searchsorted(known, rows).clamp_(max=len(known) - 1)
        found = (known[at] == rows)[:, None]
        state = {name: value.to(rows.device) for name, value in self.state[table].items()}
        return {name: torch.where(found, value[at], 0.0) for name, value in state.items()}

    def put(self, table: str, rows: Tensor, state: Mapping[str, Tensor]) -> None:
        """Remembers the state of these rows beside that of others, on their device; ``rows`` ascending."""
        known = self.rows.get(table, rows[:0]).to(rows.device)
        union = torch.unique(torch.cat((known, rows)))
        old, new = torch.searchsorted(union, known), torch.searchsorted(union, rows)
        merged = {}
        for name, value in state.items():
            whole = value.new_zeros((len(union), value.shape[1]))
            if table in self.state and name in self.state[table]:
                whole[old] = self.state[table][name].to(whole.device)
            whole[new] = value
            merged[name] = whole
        self.rows[table], self.state[table] = union, merged


class LocalOptimizer(Protocol):
    """One step on the rows of a batch."""

    def step(
        self,
        parameter: Parameter,
        rows: Tensor,
        gradient: Tensor,
        learning_rate: float,
        max_step: float | None = None,
    ) -> None:
        """Moves ``parameter.points`` in place.

        Args:
            parameter: Where to.
            rows: ``(lookups,)`` positions in ``points``; may repeat.
            gradient: ``(lookups, coordinates)`` of the summed loss, with respect to coordinates.
            learning_rate: Step size.
            max_step: Largest distance that a row moves; None: no bound.
        """
        ...

    def follow(
        self,
        parameter: Parameter,
        rows: Tensor,
        frame: Tensor,
        learning_rate: float,
        max_step: float | None = None,
    ) -> None:
        """As ``step``, of different ``rows`` whose gradients ``(rows, dim)`` are in the frame at each of them."""
        ...


def _state(parameter: Parameter, name: str, width: int) -> Tensor:
    if name not in parameter.state:
        points = parameter.points
        parameter.state[name] = points.new_zeros((len(points), width))
    return parameter.state[name]


def _summed(parameter: Parameter, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Unique rows and the sum of each one's gradients."""
    unique, position = localise(rows, len(parameter.points))
    total = gradient.new_zeros((len(unique), gradient.shape[1]))
    return unique, add_rows_(total, position, gradient)


def _in_frame(parameter: Parameter, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Unique rows, and their summed Riemannian gradients in the orthonormal frame where they are."""
    unique, total = _summed(parameter, rows, gradient)
    start, manifold = parameter.points.index_select(0, unique), parameter.manifold
    return unique, manifold.to_frame(start, manifold.riemannian_gradient(start, total))


def _shortening(length: Tensor, longest: float) -> Tensor:
    """Factors ``(rows, 1)`` that make these steps no longer than that."""
    return (longest / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1.0).unsqueeze(1)


def _move(parameter: Parameter, rows: Tensor, frame_step: Tensor, max_step: float | None) -> None:
    manifold, start = parameter.manifold, parameter.points.index_select(0, rows)
    if max_step is not None:
        frame_step = frame_step * _shortening(frame_step.norm(dim=1), max_step)
    end = manifold.project(manifold.exp(start, manifold.from_frame(start, frame_step)))
    parameter.points[rows] = end


@dataclass(frozen=True)
class SGD:
    """Riemannian stochastic gradient descent; plain SGD on a Euclidean table.

    Reference: Bonnabel, "Stochastic gradient descent on Riemannian manifolds", IEEE TAC 2013, eq. (2).
    """

    def step(
        self,
        parameter: Parameter,
        rows: Tensor,
        gradient: Tensor,
        learning_rate: float,
        max_step: float | None = None,
    ) -> None:
        manifold = parameter.manifold
        if isinstance(manifold, Euclidean) and max_step is None:
            add_rows_(parameter.points, rows, gradient * -learning_rate)
            return
        unique, total = _summed(parameter, rows, gradient)
        start = parameter.points.index_select(0, unique)
        tangent = manifold.riemannian_gradient(start, total) * -learning_rate
        if max_step is not None:
            tangent = tangent * _shortening(manifold.norm(start, tangent), max_step)
        parameter.points[unique] = manifold.project(manifold.exp(start, tangent))

    def follow(
        self,
        parameter: Parameter,
        rows: Tensor,
        frame: Tensor,
        learning_rate: float,
        max_step: float | None = None,
    ) -> None:
        _move(parameter, rows, frame * -learning_rate, max_step)


@dataclass(frozen=True)
class Adagrad:
    """Adagrad per coordinate of the rows that were looked up.

    Reference: Duchi, Hazan, Singer, "Adaptive Subgradient Methods", JMLR 2011, figure 1.
    """

    epsilon: float = 1e-10

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"train.optimizer.epsilon must be > 0, got {self.epsilon}; 1e-10 is usual")

    def step(
        self,
        parameter: Parameter,
        rows: Tensor,
        gradient: Tensor,
        learning_rate: float,
        max_step: float | None = None,
    ) -> None:
        unique, frame = _in_frame(parameter, rows, gradient)
        self.follow(parameter, unique, frame, learning_rate, max_step)

    def follow(
        self,
        parameter: Parameter,
        rows: Tensor,
        frame: Tensor,
        learning_rate: float,
        max_step: float | None = None,
    ) -> None:
        squares = _state(parameter, "squares", frame.shape[1])
        grown = squares.index_select(0, rows).addcmul_(frame, frame)
        squares[rows] = grown
        step = frame.div(grown.sqrt_().add_(self.epsilon)).mul_(-learning_rate)
        _move(parameter, rows, step, max_step)


@dataclass(frozen=True)
class Adam:
    """Adam whose moments and step count belong to the row: a row ages only when it is looked up.

    Reference: Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1; the
    count per row replaces the global step in the bias correction.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"train.optimizer.{name} must be in [0, 1), got {value}")
        if not self.epsilon > 0:
            raise ValueError(f"train.optimizer.epsilon must be > 0, got {self.epsilon}; 1e-8 is usual")

    def step(
        self,
        parameter: Parameter,
        rows: Tensor,
        gradient: Tensor,
        learning_rate: float,
        max_step: float | None = None,
    ) -> None:
        unique, frame = _in_frame(parameter, rows, gradient)
        self.follow(parameter, unique, frame, learning_rate, max_step)

    def follow(
        self,
        parameter: Parameter,
        rows: Tensor,
        frame: Tensor,
        learning_rate: float,
        max_step: float | None = None,
    ) -> None:
        mean, square = _state(parameter, "mean", frame.shape[1]), _state(parameter, "square", frame.shape[1])
        age = _state(parameter, "age", 1)
        m = mean.index_select(0, rows).mul_(self.beta1).add_(frame, alpha=1 - self.beta1)
        v = square.index_select(0, rows).mul_(self.beta2).addcmul_(frame, frame, value=1 - self.beta2)
        t = age.index_select(0, rows).add_(1)
        mean[rows], square[rows], age[rows] = m, v, t
        corrected = v.div_(1 - torch.pow(self.beta2, t)).sqrt_().add_(self.epsilon)
        step = m.div_(1 - torch.pow(self.beta1, t)).div_(corrected).mul_(-learning_rate)
        _move(parameter, rows, step, max_step)


OPTIMIZERS: Mapping[str, type[SGD] | type[Adagrad] | type[Adam]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "adam": Adam,
}
