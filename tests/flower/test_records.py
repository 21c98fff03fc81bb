"""Tensors in Flower's records: the same values by reference and by value; nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord

from fedemb.aggregate.check import select
from fedemb.flower.codec import decode, encode, upload_bytes
from fedemb.flower.records import is_by_reference, pack, unpack
from fedemb.manifolds import Euclidean
from fedemb.types import RowUpdates, Table, Updates

TENSORS = {
    "a": torch.arange(6, dtype=torch.float64).view(2, 3),
    "b": torch.tensor([True, False]),
    "c": torch.empty((0, 4)),
    "d": torch.tensor(3, dtype=torch.int32),
}


@pytest.mark.parametrize("by_reference", [True, False])
def test_round_trip(by_reference: bool) -> None:
    record = pack(TENSORS, by_reference)
    assert is_by_reference(record) == by_reference
    for name, tensor in unpack(record).items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
        assert (tensor is TENSORS[name]) == by_reference
        tensor.clone()


def test_by_value_survives_flowers_own_serialisation() -> None:
    record = pack(TENSORS, False)
    children = dict(record.children)
    inflated = ArrayRecord.inflate(record.deflate(), children)
    assert all(torch.equal(t, TENSORS[n]) for n, t in unpack(inflated).items())


@pytest.mark.parametrize("fault", ["bytes", "dtype", "shape", "stype"])
def test_bytes_that_do_not_fit_are_refused(fault: str) -> None:
    record = pack(TENSORS, False)
    array = record["a"]
    if fault == "bytes":
        array.data = array.data[:-1]
    if fault == "dtype":
        array.dtype = "object"
    if fault == "shape":
        array.shape = (10**12, 10**12)
    if fault == "stype":
        array.stype = "pickle"
    with pytest.raises(ValueError, match="array a"):
        unpack(record)


def updates() -> Updates:
    rows = RowUpdates(
        torch.tensor([0, 5, 2]), torch.randn(3, 4), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 3])
    )
    return Updates(
        np.array([3, 8]),
        {"item": rows},
        {"map": torch.randn(2, 3)},
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        {"examples": torch.tensor([4.0, 5.0], dtype=torch.float64)},
    )


def test_codec_round_trip_and_size() -> None:
    tables = {"item": Table("item", 10, 4, Euclidean(), 0.1)}
    data = updates()
    tensors = encode(data, tables)
    back = decode(unpack(pack(tensors, False)))
    assert np.array_equal(back.clients, data.clients)
    assert torch.equal(back.tables["item"].rows, data.tables["item"].rows)
    assert torch.equal(back.tables["item"].values, data.tables["item"].values)
    assert torch.equal(back.tables["item"].counts, data.tables["item"].counts)
    assert torch.equal(back.dense["map"], data.dense["map"])
    alone = [encode(select(data, np.array([i])), tables) for i in range(2)]
    assert upload_bytes(data, tables) == sum(tensor.nbytes for one in alone for tensor in one.values())
    with pytest.raises(ValueError, match="must have the part 'weights'"):
        decode({name: value for name, value in tensors.items() if name != "weights"})
