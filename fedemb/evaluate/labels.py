"""How well labels are told from parts, and how much of that is left when parts are taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.evaluate.average_precision import average_precision, binned
from fedemb.evaluate.retrieval import group_precision
from fedemb.evaluate.spread import mean_of_each, over_clients
from fedemb.seeds import stream_keys, uniforms
from fedemb.tasks.compositional import multi_hot, without
from fedemb.types import Component, Evaluated, Float, Int64, Labeller

SHARES = (0.2, 0.4, 0.5, 0.6, 0.8)
_BLOCK = 2048  # records that are scored together


@dataclass(frozen=True)
class LabelPrediction:
    """Labels of held-out records, told from all of their components, and from what is left after some are removed.

    Over all records: ``macro_ap``, the mean of the labels' average precision (of those that any record has), and
    ``micro_ap``, that of all pairs of record and label. They follow from counts of scores in bins, which clients add up
    (``average_precision``). ``macro_ap_without_50``: each component is removed with probability 0.5.

    Mean over records, and per client: ``label_ranking_ap`` of many labels (the mean over a record's labels of the share
    of true ones among those with as high a score), or ``accuracy`` of one label, and ``log_loss``, summed over labels.
    Where records have groups, ``group_map``: the average precision with which a record finds the others of its group
    among its client's held-out records, by the cosine of composed vectors; over those that have any.

    Attributes:
        task: What tells.
        held_out: Records by client id.
        seed: Of what is removed. A draw belongs to a record and a component, whoever holds it, and what is missing at
            a share is missing at all higher ones.
        split: Names the metrics: those of another split than ``test`` begin with its name.
        shares: Probabilities of removal; void for records of one component.
    """

    task: Labeller
    held_out: Shards
    seed: int
    split: str = "test"
    shares: tuple[float, ...] = SHARES

    @property
    def on_clients(self) -> bool:
        return True

    @property
    def pooled_first(self) -> bool:
        return True

    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """Metrics of these clients; NaN for those without a held-out record."""
        shards = self.held_out.take(clients)
        truth = multi_hot(
            torch.from_numpy(np.array(shards.columns["label"])), self.task.label.num_values
        ).numpy()
        gone = removals(self.task.components, np.asarray(shards.columns["key"]), self.seed)
        sums, whole = {}, np.zeros((0, truth.shape[1]))
        for share in self._shares:
            scores = self._scores(tables, shards, gone < share)
            whole = scores if share == 0 else whole
            sums[self._named("scores", share)] = binned(scores, truth)
        if self.task.label.kind == "multi":
            of_records = {"label_ranking_ap": label_ranking(whole, truth)}
        else:
            of_records = {"accuracy": truth[np.arange(len(truth)), whole.argmax(1)].astype(np.float64)}
        of_records["log_loss"] = self._log_loss(whole, truth)
        if "group" in shards.columns:
            group = np.asarray(shards.columns["group"])
            of_records["group_map"] = group_precision(self._vectors(tables, shards), group, shards.offsets)
        owner, per_client = shards.owners(), {}
        for name, values in of_records.items():
            known = ~np.isnan(values)
            per_client[self._prefix + name] = mean_of_each(values[known], owner[known], len(clients))
        weights = shards.sizes.astype(np.float64)
        metrics = {**self.pooled(sums), **over_clients(per_client, weights)}
        return Evaluated(metrics, per_client, clients, weights, sums)

    def pooled(self, sums: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, float]:
        """Metrics that follow from sums over clients."""
        metrics = {}
        for share in self._shares:
            counts = sums[self._named("scores", share)]
            values = average_precision(counts)
            known = values[~np.isnan(values)]
            macro = float(known.mean()) if len(known) else float("nan")
            metrics[self._prefix + self._named("macro_ap", share)] = macro
            if share == 0:
                metrics[self._prefix + "micro_ap"] = float(average_precision(counts.sum(0, keepdims=True))[0])
        return metrics

    @property
    def _shares(self) -> tuple[float, ...]:
        """Nothing, and what is removed, where there is more than one component."""
        return (0.0, *(self.shares if len(self.task.components) > 1 else ()))

    @property
    def _prefix(self) -> str:
        return "" if self.split == "test" else f"{self.split}_"

    @staticmethod
    def _named(name: str, share: float) -> str:
        return name if share == 0 else f"{name}_without_{round(100 * share)}"

    def _scores(
        self, tables: Mapping[str, Tensor], shards: Shards, gone: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float64]:
        """Log odds ``(records, labels)``."""
        batch = examples_of(self.task, tables, shards)
        gone_here = torch.from_numpy(gone).to(next(iter(tables.values())).device)
        batch = without(self.task.components, batch, gone_here)
        found = [torch.zeros(0, self.task.label.num_values, dtype=torch.float64)]
        for start in range(0, shards.num_examples, _BLOCK):
            part = {name: column[start : start + _BLOCK] for name, column in batch.items()}
            scores = self.task.label_scores(tables, part).detach().double().cpu()
            if self.task.label.kind == "category":
                log = torch.log_softmax(scores, 1)
                scores = log - torch.log1p(-log.exp().clamp(max=1 - 1e-12))
            found.append(scores)
        return torch.cat(found).numpy()

    def _vectors(self, tables: Mapping[str, Tensor], shards: Shards) -> Tensor:
        batch = examples_of(self.task, tables, shards)
        blocks = range(0, max(1, shards.num_examples), _BLOCK)
        parts = ({name: column[b : b + _BLOCK] for name, column in batch.items()} for b in blocks)
        return torch.cat([self.task.composed(tables, part).detach() for part in parts])

    def _log_loss(self, scores: Float, truth: npt.NDArray[np.bool_]) -> Float:
        if self.task.label.kind == "multi":
            return np.asarray(np.logaddexp(0, np.where(truth, -scores, scores)).sum(1))
        return np.asarray(np.where(truth, np.logaddexp(0, -scores), 0.0).sum(1))


def examples_of(task: Labeller, tables: Mapping[str, Tensor], shards: Shards) -> dict[str, Tensor]:
    """All of these records as one batch of the task's examples, where its tables are."""
    device = next(iter(tables.values())).device
    columns = task.examples(shards).columns
    return {name: torch.from_numpy(np.array(column)).to(device) for name, column in columns.items()}


def removals(components: tuple[Component, ...], keys: Int64, seed: int) -> npt.NDArray[np.float64]:
    """The share ``(records, components)`` of removal from which on a component of a record is gone."""
    draws = [uniforms(stream_keys(seed, f"removed/{part.name}", keys), 1) for part in components]
    return np.concatenate(draws, axis=1)


def label_ranking(scores: Float, truth: npt.NDArray[np.bool_]) -> Float:
    """Label ranking average precision ``(records,)``; ties count as placed above.

    Reference: Tsoumakas, Katakis, Vlahavas, "Mining Multi-label Data", 2010, section 7.3.

    >>> label_ranking(np.array([[3.0, 2.0, 1.0]]), np.array([[True, False, True]])).round(4).tolist()
    [0.8333]
    """
    above = scores[:, None, :] >= scores[:, :, None]  # (records, label, those at least as high)
    true_above = (above & truth[:, None, :]).sum(-1)
    shares = true_above / above.sum(-1).clip(min=1)
    held = truth.sum(1)
    return np.asarray(np.divide((shares * truth).sum(1), held, out=np.zeros(len(held)), where=held > 0))
