"""Updates as named tensors, in the form in which they travel, and how many bytes that is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedemb.types import RowUpdates, Table, Updates

_INT32_ROWS = 2**31 - 1


def encode(updates: Updates, tables: Mapping[str, Table], by_reference: bool = False) -> dict[str, Tensor]:
    """Named tensors of an update: row ids in 32 bits where the table's height allows, counts in float32.

    ``by_reference`` leaves every tensor as it is.
    """
    out: dict[str, Tensor] = {"clients": torch.from_numpy(updates.clients), "weights": updates.weights}
    for name, rows in updates.tables.items():
        ids, counts = rows.rows, rows.counts
        if not by_reference:
            ids = ids.int() if tables[name].num_rows <= _INT32_ROWS else ids
            counts = counts.float()
        out |= {f"rows/{name}": ids, f"values/{name}": rows.values, f"counts/{name}": counts}
        out[f"offsets/{name}"] = rows.offsets
    out |= {f"dense/{name}": value for name, value in updates.dense.items()}
    out |= {f"metrics/{name}": value for name, value in updates.metrics.items()}
    return out


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def decode(tensors: Mapping[str, Tensor]) -> Updates:
    """What ``encode`` was given, up to the precision of counts.

    Raises:
        ValueError: If a part is missing. Shapes and contents are checked by ``aggregate.check``.
    """
    try:
        tables = {
            name: RowUpdates(
                ids.long(),
                tensors[f"values/{name}"],
                tensors[f"counts/{name}"].to(tensors[f"values/{name}"].dtype),
                tensors[f"offsets/{name}"],
            )
            for name, ids in _group(tensors, "rows/").items()
        }
        return Updates(
            tensors["clients"].numpy(),
            tables,
            _group(tensors, "dense/"),
            tensors["weights"],
            _group(tensors, "metrics/"),
        )
    except KeyError as error:
        raise ValueError(f"an update must have the part {error.args[0]!r}, got {sorted(tensors)}") from error


def upload_bytes(updates: Updates, tables: Mapping[str, Table]) -> int:
    """Bytes that these clients would send as nodes of their own: the encoded tensors, without Flower's framing.

    So the figure depends on clients alone, not on how many of them share a node, nor on the runner.
    """
    num_clients = len(updates.clients)
    total = updates.clients.nbytes + updates.weights.nbytes
    for name, rows in updates.tables.items():
        id_bytes = 4 if tables[name].num_rows <= _INT32_ROWS else 8
        row_bytes = id_bytes + 4 + rows.values.shape[1] * rows.values.element_size()
        total += len(rows.rows) * row_bytes + num_clients * 2 * rows.offsets.element_size()
    return total + sum(value.nbytes for value in (*updates.dense.values(), *updates.metrics.values()))


def model_bytes(tables: Mapping[str, Tensor], dense: Mapping[str, Tensor]) -> int:
    """Bytes of the shared model: what a client downloads, and what a dense update would upload."""
    return sum(value.nbytes for value in (*tables.values(), *dense.values()))
