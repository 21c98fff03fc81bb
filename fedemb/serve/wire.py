"""Messages between the process that answers and the one that learns: JSON and tensors, nothing pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fedemb.serve.rows import Change
from fedemb.serve.state import tables_of


def send(connection: Connection, kind: str, **facts: Any) -> None:
    """Sends a message without tensors."""
    connection.send_bytes(json.dumps({"kind": kind, **facts}).encode())


def receive(connection: Connection) -> dict[str, Any]:
    """The next message.

    Raises:
        EOFError: If the other side is gone.
    """
    try:
        message: dict[str, Any] = json.loads(connection.recv_bytes())
    except ConnectionResetError as error:
        raise EOFError from error
    return message


def send_change(connection: Connection, change: Change, **facts: Any) -> None:
    """Sends a window's change; ``receive`` announces it, ``receive_change`` takes it."""
    tensors: dict[str, Tensor] = {f"rows/{name}": rows for name, rows in change.rows.items()}
    tensors |= {f"table/{name}": values.cpu().contiguous() for name, values in change.values.items()}
    tensors |= {f"dense/{name}": value.cpu().contiguous() for name, value in change.dense.items()}
    send(connection, "change", number=change.number, sequence=change.sequence, **facts)
    connection.send_bytes(save(tensors))


def receive_change(connection: Connection, facts: Mapping[str, Any]) -> Change:
    """The change that ``facts`` announced."""
    tensors = load(connection.recv_bytes())
    values, dense = tables_of(tensors)
    rows = {name.removeprefix("rows/"): value for name, value in tensors.items() if name.startswith("rows/")}
    return Change(facts["number"], facts["sequence"], rows, values, dense)
