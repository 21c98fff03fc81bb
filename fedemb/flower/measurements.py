"""What nodes reply when they are asked to measure, or to add up what a measurement has to fit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedemb.errors import RunError
from fedemb.evaluate.spread import added, overall
from fedemb.flower.records import unpack
from fedemb.types import Evaluated, Evaluation, Fitted, Int64


def evaluated_of(evaluation: Evaluation | None, replies: Iterable[Message]) -> Evaluated | None:
    """The measurement of all clients, in ascending order; None where nobody replied.

    Raises:
        RunError: If a node could not measure, or nodes measured different things.
    """
    good = [_checked(reply) for reply in replies]
    if not good:
        return None
    sums = _added([_arrays(reply, "sums") for reply in good])
    parts = [_arrays(reply, "per_client") for reply in good]
    whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    order = np.argsort(whole["clients"])
    whole = {name: values[order] for name, values in whole.items()}
    per_client = {n.removeprefix("metric/"): v for n, v in whole.items() if n.startswith("metric/")}
    weights = whole.get("weights")
    metrics = overall(evaluation, per_client, weights, [sums])
    return Evaluated(metrics, per_client, whole["clients"], weights, sums)


def fitted_of(evaluation: Fitted, replies: Iterable[Message]) -> dict[str, Tensor]:
    """What the evaluation fits to the sums of all nodes' clients.

    Raises:
        RunError: If a node could not add up, nobody replied, or nodes were set up otherwise.
    """
    parts = [_arrays(_checked(reply), "sums") for reply in replies]
    if not parts:
        raise RunError("no node replied in time when it was asked for what the evaluation has to fit")
    sums = _added(parts)
    if not sums:
        raise RunError("nodes must have the server's evaluation.calibrate, but they have nothing to fit")
    return evaluation.fitted(sums)


def _checked(reply: Message) -> Message:
    """The reply, unless it is an error."""
    if reply.has_error():
        lines = (reply.error.reason or "no reason given").strip().splitlines()
        raise RunError(f"node {reply.metadata.src_node_id} could not evaluate: {lines[-1]}")
    return reply


def _arrays(reply: Message, name: str) -> dict[str, Tensor]:
    record = reply.content[name]
    assert isinstance(record, ArrayRecord)
    return unpack(record)


def _added(parts: list[dict[str, Tensor]]) -> dict[str, Int64]:
    """The sums of all nodes."""
    shapes = [{name: count.shape for name, count in part.items()} for part in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise RunError("nodes must have the same settings of evaluation.*, but they measure different things")
    return added([{name: count.numpy() for name, count in part.items()} for part in parts])
