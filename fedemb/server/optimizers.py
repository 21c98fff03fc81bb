"""Server optimisers: one step per touched row; state belongs to the row and rests while it rests.

Reference: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2 (Adagrad, Adam, Yogi;
without bias correction); momentum: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data
Distribution", 2019. On a curved table moments are kept in the orthonormal frame at the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedemb.gaussian import Gaussian, split
from fedemb.types import Table, Total

State = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """Step size and constants of a server optimiser.

    Attributes:
        learning_rate: Factor on the step.
        momentum: Share of the last direction that is kept, for ``momentum``.
        beta1, beta2: Decay of first and second moments, for ``adam`` and ``yogi``.
        tau: Added to the root of the second moment: degree of adaptivity.
        dense_learning_rate: Factor on the step of dense parameters; None: the same.
        damping: How far precisions of Gaussian rows go to where the round's evidence puts them, whatever the rule.
    """

    learning_rate: float = 1.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    dense_learning_rate: float | None = None
    damping: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "tau", "dense_learning_rate"):
            value = getattr(self, name)
            if value is None and name == "dense_learning_rate":
                continue
            if not 0 < value < float("inf"):
                raise ValueError(f"server.{name} must be a positive number, got {value}")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"server.{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.damping <= 1:
            raise ValueError(f"server.damping must be in (0, 1], got {self.damping}; 0.3 is usual")


def _sgd(step: Tensor, state: State, s: Settings) -> Tensor:
    return step * s.learning_rate


def _momentum(step: Tensor, state: State, s: Settings) -> Tensor:
    state["mean"] = state["mean"] * s.momentum + step
    return state["mean"] * s.learning_rate


def _adaptive(step: Tensor, state: State, s: Settings) -> Tensor:
    state["mean"] = state["mean"] * s.beta1 + step * (1 - s.beta1)
    return s.learning_rate * state["mean"] / (state["square"].sqrt() + s.tau)


def _adagrad(step: Tensor, state: State, s: Settings) -> Tensor:
    state["square"] = state["square"] + step.square()
    return s.learning_rate * step / (state["square"].sqrt() + s.tau)


def _adam(step: Tensor, state: State, s: Settings) -> Tensor:
    state["square"] = s.beta2 * state["square"] + (1 - s.beta2) * step.square()
    return _adaptive(step, state, s)


def _yogi(step: Tensor, state: State, s: Settings) -> Tensor:
    square = step.square()
    state["square"] = state["square"] - (1 - s.beta2) * square * torch.sign(state["square"] - square)
    return _adaptive(step, state, s)


_PLAIN = ("sgd", "momentum")  # rules whose steps keep the length of what they follow
RULES: Mapping[str, tuple[Callable[[Tensor, State, Settings], Tensor], tuple[str, ...]]] = {
    "sgd": (_sgd, ()),
    "momentum": (_momentum, ("mean",)),
    "adagrad": (_adagrad, ("square",)),
    "adam": (_adam, ("mean", "square")),
    "yogi": (_yogi, ("mean", "square")),
}


@dataclass
class RowOptimizer:
    """Applies a rule to the touched rows and to dense parameters, in place.

    Of a Gaussian row the rule moves the mean. What it does not rescale (``sgd``, ``momentum``) is divided by the
    precision, so that natural parameters add up; an adaptive rule's step is a distance already, and leads to the same
    fixed point. Precisions always add up, times ``damping``.

    Attributes:
        tables: The shared tables.
        rule: ``sgd``, ``momentum``, ``adagrad``, ``adam`` or ``yogi``.
        settings: Its constants.
    """

    tables: tuple[Table, ...]
    rule: str = "sgd"
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"server.optimizer must be one of {', '.join(RULES)}, got {self.rule!r}")
        self._state: dict[str, Tensor] = {}

    def _full(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        if name not in self._state:
            self._state[name] = like.new_zeros(shape)
        return self._state[name]

    def step(self, tables: Mapping[str, Tensor], dense: Mapping[str, Tensor], total: Total) -> None:
        """Moves every touched row by one step."""
        rule, names = RULES[self.rule]
        for spec in self.tables:
            if spec.name not in total.tables:
                continue
            rows, steps = total.tables[spec.name].rows, total.tables[spec.name].steps
            table, space = tables[spec.name], spec.manifold
            gains = None
            if isinstance(space, Gaussian):
                steps, gains = split(steps)
            width = steps.shape[1]
            full = {n: self._full(f"{spec.name}/{n}", (spec.num_rows, width), steps) for n in names}
            state = {n: value.index_select(0, rows) for n, value in full.items()}
            moved = rule(steps, state, self.settings)
            for n, value in full.items():
                value[rows] = state[n]
            start = table.index_select(0, rows)
            if isinstance(space, Gaussian) and gains is not None:
                gains = gains * self.settings.damping
                table[rows] = space.moved(start, moved, gains, by_precision=self.rule in _PLAIN)
            else:
                table[rows] = space.project(space.exp(start, space.from_frame(start, moved)))
        of_dense = replace(
            self.settings, learning_rate=self.settings.dense_learning_rate or self.settings.learning_rate
        )
        for name, steps in total.dense.items():
            state = {n: self._full(f"{name}/{n}", tuple(steps.shape), steps) for n in names}
            dense[name] += rule(steps, state, of_dense)
            self._state.update({f"{name}/{n}": value for n, value in state.items()})

    def state(self) -> dict[str, Tensor]:
        """All state by name; empty before the first step."""
        return dict(self._state)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up from what ``state`` returned."""
        self._state = dict(state)
