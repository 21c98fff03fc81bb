"""Data in the names of a model that is there already: rows keep their meaning, new names are counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedemb.data.assemble import keep_lines
from fedemb.data.shards import Shards
from fedemb.data.vocabulary import OUT_OF_VOCABULARY, Vocabulary
from fedemb.errors import DataError
from fedemb.types import Dataset, Int64


def with_names_of(dataset: Dataset, known: Mapping[str, Vocabulary]) -> Dataset:
    """The same data with a trained model's ids; lines with a name that it does not know are left out.

    Args:
        dataset: Freshly read; entities that ``known`` lacks stay as they are.
        known: The model's vocabularies; their counts stay, for what is drawn by them.

    Returns:
        The data set itself where all names are the same. ``counts`` is added ``<split>_of_new_names``: lines that
        were left out.

    Raises:
        DataError: If nothing is left to train on, or a graph or records of other names hang on the data.
    """
    other = {
        entity: known[entity].index(vocabulary.names)
        for entity, vocabulary in dataset.vocabularies.items()
        if entity in known and known[entity].digest != vocabulary.digest
    }
    if not other:
        return dataset
    if dataset.taxonomy is not None:
        raise DataError(
            "data of a taxonomy must have the names that the resumed run began with, got others; train anew"
        )
    if dataset.components:
        raise DataError(
            "records must have the values, bins and labels that the resumed run began with, got others; train anew"
        )
    splits, counts = {"training": dataset.train, **dataset.held_out}, dict(dataset.counts)
    for split, shards in splits.items():
        splits[split], dropped = _renumbered(shards, dataset.entity_of, other)
        counts[f"{split}_of_new_names"] = dropped
    train = splits.pop("training")
    past = None if dataset.past is None else _renumbered(dataset.past, dataset.entity_of, other)[0]
    if not train.num_examples:
        raise DataError(
            "no training example is left in the names of the resumed run: none of its names stands in these data"
        )
    vocabularies = {entity: known.get(entity, own) for entity, own in dataset.vocabularies.items()}
    return replace(
        dataset, train=train, held_out=splits, vocabularies=vocabularies, counts=counts, truth={}, past=past
    )


def _renumbered(
    shards: Shards, entity_of: Mapping[str, str], other: Mapping[str, Int64]
) -> tuple[Shards, int]:
    """Shards with new ids, and how many lines were left out."""
    columns, keep = dict(shards.columns), np.ones(shards.num_examples, dtype=np.bool_)
    for name, entity in entity_of.items():
        if entity not in other or name not in columns:
            continue
        ids = np.append(other[entity], OUT_OF_VOCABULARY)  # -1, a missing one, stays missing
        columns[name] = ids[columns[name]]
        if columns[name].ndim == 1:
            keep &= columns[name] != OUT_OF_VOCABULARY
    return keep_lines(Shards(columns, shards.offsets), keep), int((~keep).sum())
