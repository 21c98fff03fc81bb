"""Measuring a model that is in one place: what the measurement needs to fit is fitted there first."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedemb.types import Evaluated, Evaluation, Fitted, Int64


def measured(
    evaluation: Evaluation, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
) -> Evaluated:
    """The measurement of these clients with a model of theirs; arguments as those of ``Evaluation``."""
    if isinstance(evaluation, Fitted):
        tables = {**tables, **evaluation.fitted(evaluation.fit_sums(tables, personal, clients))}
    return evaluation(tables, personal, clients)
