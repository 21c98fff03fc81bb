"""What was done to each client's examples: kept with the client, over rounds and restarts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedemb.atomic import write_atomically
from fedemb.errors import RunError
from fedemb.privacy.accountant import epsilon, upper_bound, worst
from fedemb.privacy.claim import Claim, step_event
from fedemb.privacy.events import Composed, Event
from fedemb.types import Int64

_COLUMNS = ("client", "size", "batch_size", "epochs", "noise_multiplier")


@dataclass(frozen=True)
class History:
    """Lines of a ledger; all columns ``(lines,)``, one line for each client and way in which it was sampled.

    Attributes:
        client: Ids.
        size: Examples that it had.
        batch_size: Of its steps, on average; 0: all.
        epochs: That were run so, over all rounds.
        noise_multiplier: Of their noise.
    """

    client: Int64
    size: Int64
    batch_size: Int64
    epochs: Int64
    noise_multiplier: np.ndarray[tuple[int], np.dtype[np.float64]]

    @staticmethod
    def empty() -> History:
        """Nothing was done yet."""
        none = np.zeros(0, dtype=np.int64)
        return History(none, none, none, none, np.zeros(0))

    def charged(self, clients: Int64, sizes: Int64, claim: Claim) -> History:
        """The history with a round of these clients added."""
        facts, count = claim.facts, len(clients)
        new = History(
            clients,
            sizes,
            np.full(count, facts.batch_size, dtype=np.int64),
            np.full(count, facts.epochs, dtype=np.int64),
            np.full(count, claim.noise_multiplier),
        )
        both = [np.concatenate((getattr(self, name), getattr(new, name))) for name in _COLUMNS]
        kind = np.column_stack([both[0], both[1], both[2], both[4].view(np.int64)])
        lines, at = np.unique(kind, axis=0, return_inverse=True)
        epochs = np.bincount(at.ravel(), both[3], minlength=len(lines)).astype(np.int64)
        columns = [np.ascontiguousarray(lines[:, k]) for k in range(4)]
        return History(columns[0], columns[1], columns[2], epochs, columns[3].view(np.float64))

    def events(self) -> dict[int, Event]:
        """By client, what was done to each of its examples."""
        parts: dict[int, list[Event]] = {}
        for line, client in enumerate(self.client.tolist()):
            event = step_event(
                int(self.size[line]),
                int(self.batch_size[line]),
                int(self.epochs[line]),
                float(self.noise_multiplier[line]),
            )
            parts.setdefault(client, []).append(event)
        return {client: Composed(tuple(events)) for client, events in parts.items()}

    def spent(self, delta: float, accountant: str) -> float:
        """Epsilon of the client that spent most."""
        return worst(self.events().values(), delta, accountant)[0]

    def exhausted(self, clients: Int64, sizes: Int64, claim: Claim) -> Int64:
        """Those of these clients for whom one round more would exceed the limit; nobody where there is none."""
        settings, limit = claim.settings, claim.settings.limit
        if limit is None:
            return clients[:0]
        after = self.charged(clients, sizes, claim).events()
        found, known = [], {}  # type: list[int], dict[Event, bool]
        for client in clients.tolist():
            event = after[client]
            if event not in known:
                quick = upper_bound(event, settings.delta) <= limit
                known[event] = not quick and epsilon(event, settings.delta, settings.accountant) > limit
            if known[event]:
                found.append(client)
        return np.array(found, dtype=np.int64)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        return {name: torch.from_numpy(getattr(self, name)) for name in _COLUMNS}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> History:
        """The history that ``tensors`` named."""
        return replace(History.empty(), **{name: tensors[name].numpy() for name in _COLUMNS})


def save_history(path: Path, history: History) -> None:
    """Writes a history down, whole or not at all; to be done before anything that it tells of leaves the client."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: save_file(history.tensors(), partial))


def load_history(path: Path) -> History:
    """The history that stands there; an empty one where there is none.

    Raises:
        RunError: If it cannot be read: what was spent must not be forgotten.
    """
    if not path.is_file():
        return History.empty()
    try:
        return History.of(load_file(path))
    except (SafetensorError, OSError, KeyError) as error:
        raise RunError(
            f"{path} must say what was spent of clients' budgets, but cannot be read ({error})"
        ) from error
