"""Federated embeddings of data that may not leave their owners.

>>> import fedemb
>>> run = fedemb.train(["task=hierarchical", "rounds=20"], folder="runs/mine")  # doctest: +SKIP
>>> ids, matrix = run.table("node")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedemb.model import Run, load
    from fedemb.run.experiment import train

__all__ = ["Run", "load", "train"]


def __getattr__(name: str) -> object:
    """Loads the interface when it is asked for: importing a part of fedemb does not import Flower."""
    if name == "train":
        return importlib.import_module("fedemb.train")
    if name in ("Run", "load"):
        return getattr(importlib.import_module("fedemb.model"), name)
    raise AttributeError(f"module 'fedemb' has no attribute {name!r}")
