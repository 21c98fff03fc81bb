"""Tensors in Flower's records, by value on a wire and by reference within a process.

Everything that reaches into Flower beyond its public names is in this file and in ``run/in_process.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

RAW = "fedemb.raw"
REFERENCE = "fedemb.reference"

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
}


def _by_reference(tensor: Tensor) -> Array:
    array = Array(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), REFERENCE, b"")
    array.data = tensor  # type: ignore[assignment]
    return array


def _by_value(tensor: Tensor) -> Array:
    data = tensor.detach().cpu().contiguous().numpy().tobytes()
    return Array(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), RAW, data)


def pack(tensors: Mapping[str, Tensor], by_reference: bool) -> ArrayRecord:
    """An array record of named tensors.

    Args:
        tensors: What to send.
        by_reference: Hand over the tensors themselves; only for a receiver in the same process.
    """
    record = ArrayRecord()
    for name, tensor in tensors.items():
        record[name] = _by_reference(tensor) if by_reference else _by_value(tensor)
    return record


def _tensor(name: str, array: Array) -> Tensor:
    if isinstance(array.data, Tensor):
        return array.data
    dtype = _DTYPES.get(array.dtype)
    if array.stype != RAW or dtype is None:
        raise ValueError(f"array {name} must be {RAW} of a known type, got {array.stype} of {array.dtype}")
    expected = int(np.prod(array.shape, dtype=object)) * dtype.itemsize
    if min(array.shape, default=0) < 0 or expected != len(array.data):
        raise ValueError(
            f"array {name} of shape {array.shape} must have {expected} bytes, got {len(array.data)}"
        )
    if not expected:
        return torch.empty(array.shape, dtype=dtype)
    return torch.frombuffer(bytearray(array.data), dtype=dtype).view(array.shape)


def unpack(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors of an array record.

    Raises:
        ValueError: If an array's bytes do not fit its shape or type.
    """
    return {name: _tensor(name, array) for name, array in record.items()}


def is_by_reference(record: ArrayRecord) -> bool:
    """Whether the record came from the same process, so that an answer may do the same."""
    return any(isinstance(array.data, Tensor) for array in record.values())
