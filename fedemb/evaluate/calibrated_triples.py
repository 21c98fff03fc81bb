"""Labelled triples with probabilities of being true that are calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from fedemb.errors import RunError
from fedemb.evaluate.answers import Answers
from fedemb.evaluate.calibration import fit_sums
from fedemb.evaluate.confidence import (
    Calibration,
    check_apart,
    fitted_maps,
    judge,
    judged_metrics,
    judged_per_client,
    judged_sums,
)
from fedemb.evaluate.spread import overall
from fedemb.evaluate.triples import LinkPrediction
from fedemb.types import Dataset, Evaluated, Int64, LinkPredictor

VALIDATION = ("validation", "validation_negatives")
TEST = ("test", "test_negatives")


@dataclass(frozen=True)
class CalibratedTriples:
    """What ``LinkPrediction`` measures, and whether the probabilities that triples are true can be trusted.

    A triple's score, asked for its tail, is taken for the log odds that it is true. Maps are fitted on the labelled
    triples of ``validation`` and measured on those of ``test``; no argument names another split. Over all labelled
    triples: ``ece``, ``nll`` and ``brier``, and ``ece_temperature``... after each map. Per client: ``ece`` of its
    triples by themselves, before and after, and the ``temperature`` that it was given.

    Attributes:
        task: What scores.
        dataset: With labelled triples in both splits.
        wanted: Which maps, and how.

    Raises:
        DataError: If a triple stands in both splits.
    """

    task: LinkPredictor
    dataset: Dataset = field(repr=False)
    wanted: Calibration

    def __post_init__(self) -> None:
        held_out = self.dataset.held_out
        check_apart(
            [held_out[name] for name in VALIDATION],
            [held_out[name] for name in TEST],
            ("head", "relation", "tail"),
        )

    @property
    def on_clients(self) -> bool:
        return True

    @property
    def pooled_first(self) -> bool:
        return False

    @cached_property
    def plain(self) -> LinkPrediction:
        """The same without calibration."""
        return LinkPrediction(self.task, self.dataset)

    def fit_sums(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> dict[str, Int64]:
        """Sums over these clients' labelled validation triples: see ``calibration.fit_sums``."""
        return fit_sums(self._answers(VALIDATION, tables, personal, clients)[0])

    def fitted(self, sums: Mapping[str, Int64]) -> dict[str, Tensor]:
        """The numbers of all maps."""
        return fitted_maps(sums, self.wanted)

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """Metrics of these clients; NaN for those without triples. What was fitted stands among ``tables``."""
        plain = self.plain(tables, personal, clients)
        answers, owner = self._answers(TEST, tables, personal, clients)
        judged = judge(answers, tables, self.wanted.maps)
        sums = judged_sums(judged, answers.hit)
        per_client = {
            **plain.per_client,
            **judged_per_client(judged, answers.hit, owner, len(clients), self.wanted.bins, tables),
        }
        metrics = overall(self, per_client, plain.weights, [sums])
        return Evaluated(metrics, per_client, clients, plain.weights, sums)

    def pooled(self, sums: Mapping[str, Int64]) -> dict[str, float]:
        """Metrics that follow from sums over clients."""
        return judged_metrics(sums, self.wanted.bins)

    def _answers(
        self,
        split: tuple[str, str],
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        clients: Int64,
    ) -> tuple[Answers, Int64]:
        """What the model says of labelled triples, those that are true first, and the place of each one's client.

        Raises:
            RunError: If a score is no number.
        """
        parts = [self.dataset.held_out[name].take(clients) for name in split]
        scores = [self.plain.tail_scores(part, tables, personal).double().cpu().numpy() for part in parts]
        truth = np.repeat([1, 0], [part.num_examples for part in parts])
        try:
            answers = Answers.true_or_false(np.concatenate(scores), truth)
        except ValueError as error:
            raise RunError(str(error)) from error
        return answers, np.concatenate([part.owners() for part in parts])
