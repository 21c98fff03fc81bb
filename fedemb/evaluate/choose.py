"""Which measurement fits a task and its data."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import numpy as np

from fedemb.data.shards import Shards, join
from fedemb.errors import DataError, SettingError
from fedemb.evaluate.alarm import chance
from fedemb.evaluate.calibrated_labels import CalibratedLabels
from fedemb.evaluate.calibrated_triples import CalibratedTriples
from fedemb.evaluate.confidence import Calibration
from fedemb.evaluate.context import ContextPrediction
from fedemb.evaluate.hierarchy import Reconstruction
from fedemb.evaluate.labels import LabelPrediction
from fedemb.evaluate.pairs import PairClassification
from fedemb.evaluate.popularity import Unlearnt, unlearnt_rankings
from fedemb.evaluate.ranking import Ranking, asked_at, history_before
from fedemb.evaluate.sampled import sampled_metrics
from fedemb.evaluate.triples import LinkPrediction
from fedemb.tasks.hierarchical import Hierarchical
from fedemb.types import (
    ContextPredictor,
    Dataset,
    Evaluation,
    Int64,
    Labeller,
    LinkPredictor,
    Recommender,
    Task,
)

REFERENCES = ("popularity", "popularity_any_time", "recent_popularity", "own_repeats", "item_cosine")
_log = logging.getLogger("fedemb")


def _split(dataset: Dataset) -> str | None:
    """The split that results are told for: test, or validation where there is no test."""
    return next((name for name in ("test", "validation") if name in dataset.held_out), None)


def evaluation_for(
    task: Task,
    dataset: Dataset,
    sampled: int = 0,
    seed: int = 0,
    calibration: Calibration | None = None,
) -> Evaluation | None:
    """Reconstruction and links for a taxonomy, ranking of held-out items, link prediction of triples,
    labels of held-out records, classification of held-out pairs, or nothing.

    Args:
        task: What is measured.
        dataset: With held-out splits.
        sampled: Where items are ranked, each one also against so many sampled ones; 0: not.
        seed: Of the sample, and of what is removed from records.
        calibration: Of the labels of records and of labelled triples, where both a validation and a test split are
            there; None: not.

    Raises:
        SettingError: If there is nothing to sample from, or to calibrate.
    """
    evaluation = _evaluation(task, dataset, seed)
    if calibration is not None:
        evaluation = _calibrated(evaluation, dataset, seed, calibration)
    if not sampled:
        return evaluation
    if not isinstance(evaluation, Ranking):
        raise SettingError(
            f"evaluation.sampled must be 0 where no held-out items are ranked, got {sampled}; "
            "use data=interactions with a held-out split"
        )
    num_items = len(dataset.vocabularies[evaluation.task.catalogue])
    if not 0 < sampled < num_items:
        raise SettingError(f"evaluation.sampled must be in [0, {num_items}), the catalogue, got {sampled}")
    return replace(evaluation, also=partial(sampled_metrics, num_sampled=sampled, seed=seed))


def _evaluation(task: Task, dataset: Dataset, seed: int) -> Evaluation | None:
    columns = dataset.train.columns
    split = _split(dataset)
    if dataset.taxonomy is not None:
        table = task.tables[0]
        # Held-out events over a tree (data=synthetic) repeat pairs of training: these are no links.
        links = dataset.held_out[split] if split and "time" not in columns else None
        curvature = task.learnt_curvature if isinstance(task, Hierarchical) else None
        return Reconstruction(
            table.name, table.manifold, dataset.taxonomy, dataset.train, links, split or "test", curvature
        )
    if split is None or not dataset.held_out[split].num_examples:
        return None
    held_out: Shards = dataset.held_out[split]
    if isinstance(task, ContextPredictor) and task.by_context:
        return ContextPrediction(task, held_out, split)
    if "item" in columns and isinstance(task, Recommender):
        now = asked_at(dataset, split)
        return Ranking(task, history_before(dataset, split), held_out, split=split, now=now)
    if isinstance(task, Labeller):
        return LabelPrediction(task, held_out, seed, split)
    if isinstance(task, LinkPredictor):
        return LinkPrediction(task, dataset, split)
    if {"left", "right", "label"} <= set(columns):
        return PairClassification(task, held_out, split)
    return None


def _calibrated(
    evaluation: Evaluation | None, dataset: Dataset, seed: int, wanted: Calibration
) -> Evaluation | None:
    """The evaluation with calibration, where that is possible: it is fitted on validation, and measured on test."""
    what = "held-out records with one label each (data=records, data.label=category) or labelled triples"
    splits: tuple[str, ...] = ()
    match evaluation:
        case LabelPrediction() if evaluation.task.label.kind == "category":
            what, splits = "records", ("validation", "test")
        case LinkPrediction():
            what, splits = (
                "labelled triples",
                ("validation", "validation_negatives", "test", "test_negatives"),
            )
    there = [name for name in splits if name in dataset.held_out and dataset.held_out[name].num_examples]
    if not splits or len(there) < len(splits):
        if not wanted.required:
            return evaluation
        need = f"{what} in {' and '.join(splits)}" if splits else what
        has = ", ".join(dataset.held_out) or "nothing"
        raise SettingError(
            f"evaluation.calibrate needs {need}, but held out are {has}: set data.validation_share and "
            f"data.test_share, or evaluation.calibrate=[]; got {list(wanted.maps)}"
        )
    try:
        if isinstance(evaluation, LabelPrediction):
            return CalibratedLabels(evaluation.task, dataset, seed, wanted)
        assert isinstance(evaluation, LinkPrediction)
        return CalibratedTriples(evaluation.task, dataset, wanted)
    except DataError as error:
        if wanted.required:
            raise
        _log.warning("not calibrated: %s", error)
        return evaluation


def measurable(evaluation: Evaluation, dataset: Dataset) -> Int64:
    """Clients that a model of their own can be measured on: the same ones whoever trained it."""
    match evaluation:
        case CalibratedLabels() | CalibratedTriples():
            return measurable(evaluation.plain, dataset)
        case Ranking():
            return np.flatnonzero(evaluation.test.sizes > 0)
        case LinkPrediction():
            return np.flatnonzero(evaluation.triples.sizes > 0)
        case LabelPrediction() | ContextPrediction():
            return np.flatnonzero(evaluation.held_out.sizes > 0)
        case PairClassification():
            return np.flatnonzero(evaluation.pairs.sizes > 0)
        case _:
            return np.flatnonzero(dataset.train.sizes > 0)


def known_when_measured(evaluation: Evaluation, dataset: Dataset) -> Shards:
    """What each client knows, by client id, when it is measured."""
    return join(evaluation.histories) if isinstance(evaluation, Ranking) else dataset.train


def reference_ranking(name: str, evaluation: Evaluation | None, dataset: Dataset) -> Evaluation | None:
    """A ranking that nobody learnt, measured as the task is; None where there is nothing to rank."""
    if not isinstance(evaluation, Ranking) or "item" not in dataset.train.columns:
        return None
    score = unlearnt_rankings(dataset, evaluation.split).get(name)
    return None if score is None else replace(evaluation, task=Unlearnt(score))


def unknowing_rankings(evaluation: Evaluation | None, dataset: Dataset) -> list[Evaluation]:
    """Chance and popularity, above which nobody can stand who never talked; none where nothing is ranked."""
    popular = reference_ranking("popularity", evaluation, dataset)
    if popular is None or not isinstance(evaluation, Ranking):
        return []
    constant = Unlearnt(chance(len(dataset.vocabularies[evaluation.task.catalogue])))
    return [popular, replace(evaluation, task=constant)]
