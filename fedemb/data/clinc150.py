"""CLINC150 as its authors publish it: queries, their intents, and queries that no intent fits."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedemb.data.partition import Natural
from fedemb.data.parts import part_rules
from fedemb.data.record_rows import PART, PARTITION
from fedemb.data.record_splits import PUBLISHED
from fedemb.data.records import Records
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset, Partition

logger = logging.getLogger("fedemb")

QUERIES, DOMAINS = "data_full.json", "domains.json"
IN_SCOPE = {"train": "train", "val": "validation", "test": "test"}
OUT_OF_SCOPE = "oos_test"
UNUSED = ("oos_train", "oos_val")
_TEXT = "text"


@dataclass(frozen=True)
class Clinc150:
    """Queries to an assistant and which of 150 intents each has, as ``Records`` with the label ``category``.

    Clients are the ten domains that the intents belong to; another partition may go by the columns ``domain`` and
    ``label``. Splits are the published ones; a few queries stand in two of them word for word. The out-of-scope queries
    of the test are ``out_of_distribution``, dealt out evenly. Those for training and for validation (100 each) are not
    used: they are for models that learn out-of-scope as one more intent.

    Attributes:
        path: The folder of ``data_full.json`` and ``domains.json``; or a file such as the former, beside the latter.
        components: Ways of reading a query, each of kind ``text`` and of the column ``text``; see ``parts.PartRule``.

    Reference: Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", EMNLP 2019.
    """

    path: str
    components: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, rule in part_rules(self.components).items():
            for setting, value in (("kind", rule.kind), ("column", rule.column or name)):
                if value != _TEXT:
                    raise SettingError(
                        f"data.components.{name}.{setting} must be text, for a query is nothing else, got {value!r}"
                    )

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The queries.

        Raises:
            DataError: If a file is missing or not as published.
            SettingError: If the partition does not suit the data.
        """
        folder = Path(self.path)
        file = folder / QUERIES if folder.is_dir() else folder
        splits, domains = _read(file), _read(file.parent / DOMAINS)
        domain_of = _domains(file.parent / DOMAINS, domains)
        ids, texts, intents, owners, parts = [], [], [], [], []
        for published, split in {**IN_SCOPE, OUT_OF_SCOPE: "out_of_distribution"}.items():
            for number, (text, intent) in enumerate(_queries(file, splits, published)):
                known = published in IN_SCOPE
                if known and intent not in domain_of:
                    raise DataError(
                        f"{file.parent / DOMAINS} must name the domain of every intent, but {intent!r} of {published} "
                        f"in {file} has none"
                    )
                ids.append(f"{published}/{number}")
                texts.append(text or None)
                intents.append(intent)
                owners.append(domain_of[intent] if known else None)
                parts.append(PUBLISHED[split])
        counts = {"rows_read": len(ids)}
        for published in UNUSED:
            counts[f"{published}_not_used"] = (
                len(_queries(file, splits, published)) if published in splits else 0
            )
        rows = {
            "id": pa.array(ids, pa.string()),
            "label": pa.array(intents, pa.string()),
            "split": pa.array(parts, pa.int8()),
            _role(partition): pa.array(owners, pa.string()),
            **{PART + name: pa.array(texts, pa.string()) for name in self.components},
        }
        return Records(str(file), self.components).made_of(rows, partition, seed, counts)


def _role(partition: Partition) -> str:
    """What a query's domain is good for: it is the client, or what a partition goes by."""
    column = getattr(partition, "column", None)
    if column not in (None, "domain", "label"):
        raise SettingError(f"partition.column must be domain or label where data=clinc150, got {column!r}")
    if isinstance(partition, Natural):
        return "client"
    return PARTITION if column == "domain" else "domain"


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    if not path.is_file():
        raise DataError(
            f"data.path must be the folder of {QUERIES} and {DOMAINS}, or such a file beside {DOMAINS}; "
            f"there is no file {path}"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"data file {path} must be JSON, but line {error.lineno}: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"data file {path} must be JSON in UTF-8, found {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"data file {path} must hold an object as published, found {type(found).__name__}")
    return found


def _domains(path: Path, domains: Mapping[str, Any]) -> dict[str, str]:
    """The domain of each intent."""
    domain_of: dict[str, str] = {}
    for domain, intents in domains.items():
        if not isinstance(intents, list) or not all(isinstance(intent, str) for intent in intents):
            raise DataError(
                f"data file {path} must hold a list of intents for each domain, got {intents!r:.60}"
            )
        for intent in intents:
            if domain_of.setdefault(intent, domain) != domain:
                raise DataError(
                    f"data file {path} must have each intent in one domain, but {intent!r} is in "
                    f"{domain_of[intent]!r} and in {domain!r}"
                )
    return domain_of


def _queries(path: Path, splits: Mapping[str, Any], split: str) -> list[tuple[str, str]]:
    """Text and intent of each query of a published split."""
    rows = splits.get(split)
    if not isinstance(rows, list):
        there = ", ".join(splits) or "nothing"
        raise DataError(f"data file {path} must hold a list {split!r} of queries; there is {there}")
    if not rows:
        raise DataError(f"data file {path} must hold queries of {split!r}, found none")
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, list) and len(row) == 2 and all(isinstance(cell, str) for cell in row)):
            raise DataError(
                f"data file {path}: each of {split!r} must be [text, intent], but number {number} is {row!r:.60}"
            )
    return [(text, intent) for text, intent in rows]
