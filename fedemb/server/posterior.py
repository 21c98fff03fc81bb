"""The prior of Gaussian rows, which the server adds to what the clients' examples say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedemb.errors import SettingError
from fedemb.gaussian import Gaussian, split
from fedemb.train.optimizers import SGD
from fedemb.train.rows import SUM, LocalTraining
from fedemb.types import ServerOptimizer, Table, Total


@dataclass
class Posterior:
    """A server optimiser whose step on Gaussian rows leads to prior plus evidence, however many rounds there are.

    Clients take the received rows for their prior, so what they send is evidence alone: trained less received. From the
    second round on the received rows hold evidence already, which the new one replaces. Hence the step is ``prior -
    received + sum of evidence``: it is zero where the rows are the prior and what all examples say, once.
    In the first round, with ``server.optimizer=sgd`` and nothing damped, the rows become ``L0 + sum(Li - L0)``.

    Attributes:
        inner: Makes the step.
        tables: The shared tables.
    """

    inner: ServerOptimizer
    tables: tuple[Table, ...]

    def step(self, tables: Mapping[str, Tensor], dense: Mapping[str, Tensor], total: Total) -> None:
        """Moves every touched row."""
        whole = dict(total.tables)
        for spec in self.tables:
            if spec.name in whole and isinstance(spec.manifold, Gaussian):
                own = whole[spec.name]
                mean, precision = split(tables[spec.name].index_select(0, own.rows))
                prior = spec.manifold.prior_precision
                back = torch.cat((-prior * mean, prior - precision), 1)
                whole[spec.name] = replace(own, steps=own.steps + back)
        self.inner.step(tables, dense, replace(total, tables=whole))

    def state(self) -> dict[str, Tensor]:
        """The inner optimiser's."""
        return self.inner.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up from what ``state`` returned."""
        self.inner.restore(state)


def check_evidence(training: LocalTraining, rows: str, weights: str, sampled: bool) -> None:
    """Refuses settings with which what a client sends is not the evidence of its examples, each counted once.

    Args:
        training: How clients train.
        rows: ``aggregate.rows``.
        weights: ``aggregate.weights``.
        sampled: Whether a round's cohort is a part of the clients.

    Raises:
        SettingError: If it is not; averages are let through, to compare with.
    """
    for name, value, needed in (
        ("train.epochs", training.epochs, 1),
        ("train.reduction", training.reduction, SUM),
        ("train.learning_rate", training.learning_rate, 1),
        ("train.decay", training.decay, 1),
        ("train.share", training.share, 1),
        ("train.burn_in_rounds", training.burn_in_rounds, 0),
    ):
        if value != needed:
            raise SettingError(
                f"{name} must be {needed} for Gaussian rows, which count each example once, got {value}"
            )
    if not isinstance(training.optimizer, SGD):
        raise SettingError(
            "train.optimizer must be sgd for Gaussian rows, where it is the natural gradient; "
            "server.optimizer may adapt"
        )
    if rows in ("sum", "population") and weights != "uniform":
        raise SettingError(f"aggregate.weights must be uniform for Gaussian rows that add up, got {weights}")
    if rows == "sum" and sampled:
        raise SettingError(
            "aggregate.rows must be population where cohorts are sampled and rows are Gaussian, got sum: "
            "who is not asked has evidence, too"
        )
