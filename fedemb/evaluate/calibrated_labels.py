"""Labels of held-out records with probabilities that are calibrated, and what their uncertainty is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.errors import DataError, RunError
from fedemb.evaluate.answers import Answers
from fedemb.evaluate.calibration import fit_sums
from fedemb.evaluate.confidence import (
    BEFORE,
    PREFIX,
    Calibration,
    Judged,
    check_apart,
    fitted_maps,
    joined,
    judge,
    judged_metrics,
    judged_per_client,
    judged_sums,
    numbers_of,
)
from fedemb.evaluate.conformal import common_threshold, held, label_log_odds, own_thresholds
from fedemb.evaluate.fine_bins import counted, fine_bins
from fedemb.evaluate.labels import LabelPrediction, examples_of
from fedemb.evaluate.neighbours import own_neighbours
from fedemb.evaluate.spread import added, mean_of_each, overall
from fedemb.evaluate.uncertainty import joined_scores, out_sums, uncertainty_metrics, uncertainty_sums
from fedemb.types import Dataset, Evaluated, Float, Int64, Labeller, Uncertain

OUT = "out_of_distribution"  # the split of records that have no label of training's
CONFORMAL = "conformal"  # the name of the threshold of sets, among what is fitted
_SETS = ("coverage", "set_size", "own_coverage", "own_set_size")
_BLOCK = 2048  # records that are scored together


@dataclass(frozen=True)
class CalibratedLabels:
    """What ``LabelPrediction`` measures of records with one label, and whether its probabilities can be trusted.

    Maps are fitted on the split ``validation`` and measured on ``test``; no argument names another. Over all records:
    ``ece``, ``nll`` and ``brier`` of the plain probabilities, and ``ece_temperature``... after each map.

    ``coverage`` and ``set_size`` of conformal sets with one threshold for all clients; ``own_coverage`` and
    ``own_set_size`` with that of the client's own validation records, which nobody is told. They are made from the
    plain probabilities, for their guarantee is that of scores which were not fitted on the same records.

    For every uncertainty (``confidence``, that of the plain probabilities; ``temperature``, after that map; those of an
    ``Uncertain`` task): ``aurc_*``, the area under the risk of the answers against their share; ``r_auroc_*``, how well
    it tells whether a record's nearest neighbour among its client's test records has another label; and
    ``ood_auroc_*``, how well it tells records of the split ``out_of_distribution`` from those of the test.

    Per client: ``ece`` by itself, before and after, the ``temperature`` that it was given, and its conformal sets.

    Attributes:
        task: What tells labels.
        dataset: With splits ``validation`` and ``test``.
        seed: See ``LabelPrediction``.
        wanted: Which maps, and how.

    Raises:
        DataError: If a record stands in both splits, or has no label.

    Reference: Kirchhof et al., "URL: A Representation Learning Benchmark for Transferable Uncertainty Estimates",
    NeurIPS 2023 (R-AUROC).
    """

    task: Labeller
    dataset: Dataset = field(repr=False)
    seed: int
    wanted: Calibration

    def __post_init__(self) -> None:
        check_apart([self._validation], [self._test], ("key",))
        for name, shards in (("validation", self._validation), ("test", self._test)):
            lacking = int((_labels(shards) < 0).sum())
            if lacking:
                raise DataError(f"records of {name} must have a label, but {lacking} have none")

    @property
    def on_clients(self) -> bool:
        return True

    @property
    def pooled_first(self) -> bool:
        return True

    @property
    def _validation(self) -> Shards:
        return self.dataset.held_out["validation"]

    @property
    def _test(self) -> Shards:
        return self.dataset.held_out["test"]

    @cached_property
    def plain(self) -> LabelPrediction:
        """The same without calibration."""
        return LabelPrediction(self.task, self._test, self.seed)

    def fit_sums(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> dict[str, Int64]:
        """Sums over these clients' validation records: see ``calibration.fit_sums``, and ``true``, how many have a
        true label in which fine bin of log odds.
        """
        shards, parts = self._validation.take(clients), []
        for _, answers, _ in self._answers(tables, shards):
            true = _of_truth(answers)
            parts.append({**fit_sums(answers), "true": counted(true, np.zeros_like(answers.truth), 1)})
        return added(parts)

    def fitted(self, sums: Mapping[str, Int64]) -> dict[str, Tensor]:
        """The numbers of all maps, and the threshold of conformal sets, a bin."""
        threshold = common_threshold(sums["true"][0], self.wanted.alpha)
        return {**fitted_maps(sums, self.wanted), PREFIX + CONFORMAL: torch.tensor([threshold])}

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """Metrics of these clients; NaN for those without a test record. What was fitted stands among ``tables``."""
        plain = self.plain(tables, personal, clients)
        shards = self._test.take(clients)
        owner, truth = shards.owners(), _labels(shards)
        own, common = self._own_thresholds(tables, clients), numbers_of(tables, CONFORMAL)
        judged, hits, scores, vectors, sets = [], [], [], [], []
        for lines, answers, batch in self._answers(tables, shards):
            judged.append(judge(answers, tables, self.wanted.maps))
            hits.append(answers.hit)
            scores.append(self._uncertainties(tables, batch, judged[-1]))
            vectors.append(self.task.composed(tables, batch).detach())
            odds = label_log_odds(answers.log_p)
            in_common = held(fine_bins(odds), answers.truth, common)
            sets.append((*in_common, *held(odds, answers.truth, own[owner[lines]])))
        of_records, hit = joined(judged), np.concatenate(hits)
        nearest = own_neighbours(torch.cat(vectors), shards.offsets)
        sums = {
            **plain.sums,
            **judged_sums(of_records, hit),
            **uncertainty_sums(joined_scores(scores), hit, truth, nearest),
            **self._out_sums(tables, clients),
        }
        per_client = {
            **plain.per_client,
            **judged_per_client(of_records, hit, owner, len(clients), self.wanted.bins, tables),
        }
        for name, parts in zip(_SETS, zip(*sets, strict=True), strict=True):
            per_client[name] = mean_of_each(np.concatenate(parts), owner, len(clients))
        metrics = overall(self, per_client, plain.weights, [sums])
        return Evaluated(metrics, per_client, clients, plain.weights, sums)

    def pooled(self, sums: Mapping[str, Int64]) -> dict[str, float]:
        """Metrics that follow from sums over clients."""
        return {
            **self.plain.pooled(sums),
            **judged_metrics(sums, self.wanted.bins),
            **uncertainty_metrics(sums),
        }

    def _answers(
        self, tables: Mapping[str, Tensor], shards: Shards
    ) -> Iterator[tuple[slice, Answers, dict[str, Tensor]]]:
        """Block by block: which records, what the model says of them, and their batch; at least one block.

        Raises:
            RunError: If a score is no number.
        """
        whole, truth = examples_of(self.task, tables, shards), _labels(shards)
        for start in range(0, max(1, shards.num_examples), _BLOCK):
            lines = slice(start, min(start + _BLOCK, shards.num_examples))
            batch = {name: column[lines] for name, column in whole.items()}
            scores = self.task.label_scores(tables, batch).detach().double().cpu().numpy()
            try:
                answers = Answers.top_label(scores, truth[lines])
            except ValueError as error:
                raise RunError(str(error)) from error
            yield lines, answers, batch

    def _uncertainties(
        self, tables: Mapping[str, Tensor], batch: Mapping[str, Tensor], judged: Mapping[str, Judged]
    ) -> dict[str, Float]:
        """Uncertainties ``(records,)`` by name."""
        found = {"confidence": -judged[BEFORE].log_odds}
        if "temperature" in judged:
            found["temperature"] = -judged["temperature"].log_odds
        if isinstance(self.task, Uncertain):
            own = self.task.uncertainties(tables, batch)
            found |= {name: values.detach().double().cpu().numpy() for name, values in own.items()}
        return found

    def _out_sums(self, tables: Mapping[str, Tensor], clients: Int64) -> dict[str, Int64]:
        """Counts of what does not belong; none where there is no such split."""
        if OUT not in self.dataset.held_out:
            return {}
        shards = self.dataset.held_out[OUT].take(clients)
        parts = [
            self._uncertainties(tables, batch, judge(answers, tables, self.wanted.maps))
            for _, answers, batch in self._answers(tables, shards)
        ]
        return out_sums(joined_scores(parts))

    def _own_thresholds(self, tables: Mapping[str, Tensor], clients: Int64) -> Float:
        """The threshold ``(clients,)`` of each client's sets, from its own validation records."""
        shards = self._validation.take(clients)
        true = np.concatenate([_of_truth(answers) for _, answers, _ in self._answers(tables, shards)])
        return own_thresholds(true, shards.owners(), len(clients), self.wanted.alpha)


def _labels(shards: Shards) -> Int64:
    """The label ``(records,)`` of each; -1 for none."""
    return np.asarray(shards.columns["label"])[:, 0].astype(np.int64)


def _of_truth(answers: Answers) -> Float:
    """Log odds ``(records,)`` of the true labels."""
    return label_log_odds(answers.log_p)[np.arange(len(answers)), answers.truth]
