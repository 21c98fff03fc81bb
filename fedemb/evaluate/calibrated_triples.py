"""Labelled triples with probabilities of being true that are calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
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
from fedemb.evaluate.triples import Labelled, LinkPrediction
from fedemb.types import Dataset, Evaluated, Float, Int64, LinkPredictor


@dataclass(frozen=True)
class CalibratedTriples:
    """What ``LinkPrediction`` measures, and whether the probabilities that triples are true can be trusted.

    A triple's score, asked for its tail, is taken for the log odds that it is true. Before a map, each client takes off
    the threshold of the triple's relation that ``accuracy`` goes by, which it found on its own validation triples and
    tells nobody: scores of different relations are on no common scale. Maps are fitted on the labelled triples of
    ``validation`` and measured on those of ``test``; no argument names another split. Over all labelled triples:
    ``ece``, ``nll`` and ``brier`` of the plain scores, and ``ece_temperature``... after each map. Per client: ``ece``
    of its triples by themselves, before and after, and the ``temperature`` that it was given.

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
        validation, test = (
            [self.dataset.held_out[name] for name in (split, f"{split}_negatives")]
            for split in ("validation", "test")
        )
        check_apart(validation, test, ("head", "relation", "tail"))

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
        known = self.plain.labelled("validation", tables, personal, clients)
        return fit_sums(_answers(known.score - self._offsets(known, len(clients))[known.group], known.label))

    def fitted(self, sums: Mapping[str, Int64]) -> dict[str, Tensor]:
        """The numbers of all maps."""
        return fitted_maps(sums, self.wanted)

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """Metrics of these clients; NaN for those without triples. What was fitted stands among ``tables``."""
        plain = self.plain(tables, personal, clients)
        known, test = (
            self.plain.labelled(split, tables, personal, clients) for split in ("validation", "test")
        )
        whose = test.group // len(self.dataset.vocabularies["relation"])
        raw = _answers(test.score, test.label)
        shifted = _answers(test.score - self._offsets(known, len(clients))[test.group], test.label)
        judged = judge(shifted, tables, self.wanted.maps) | judge(raw, tables, ())
        sums = judged_sums(judged, raw.hit)
        per_client = {
            **plain.per_client,
            **judged_per_client(judged, raw.hit, whose, len(clients), self.wanted.bins, tables),
        }
        metrics = overall(self, per_client, plain.weights, [sums])
        return Evaluated(metrics, per_client, clients, plain.weights, sums)

    def pooled(self, sums: Mapping[str, Int64]) -> dict[str, float]:
        """Metrics that follow from sums over clients."""
        return judged_metrics(sums, self.wanted.bins)

    def _offsets(self, known: Labelled, num_clients: int) -> Float:
        """What is taken off the scores of each client's relations ``(clients * relations,)``."""
        return np.nan_to_num(self.plain.thresholds(known, num_clients))


def _answers(log_odds: Float, label: npt.NDArray[np.bool_]) -> Answers:
    """That triples with these log odds are true, or not.

    Raises:
        RunError: If log odds are no numbers.
    """
    try:
        return Answers.true_or_false(log_odds, label.astype(np.int64))
    except ValueError as error:
        raise RunError(str(error)) from error
