"""Which components of which records are taken away: at random, from clients, or column by column."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedemb.errors import SettingError
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Int64


def keys_of(names: Sequence[str]) -> Int64:
    """A number for each name, the same on every machine: 63 bits of its BLAKE2b digest.

    >>> keys_of(["A00001"]).tolist()
    [2554162873531981245]
    """
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.array([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=np.int64)


@dataclass(frozen=True)
class Lacking:
    """Components that records are made to lack, in training and in what is held out alike.

    A draw depends on the seed, the component, and the record's or its client's key, on nothing else.

    Attributes:
        random: Probability that a record lacks a component, for each of both.
        client: Probability that all records of a client lack a component, for each of both.
        column: Per component, the share of clients whose records all lack it (in expectation).
    """

    random: float = 0.0
    client: float = 0.0
    column: Mapping[str, float] = field(default_factory=dict)

    def check(self, components: Sequence[str]) -> None:
        """Refuses shares that are none, and components that there are not.

        Raises:
            SettingError: If there is one.
        """
        for name in self.column:
            if name not in components:
                near = difflib.get_close_matches(name, components, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise SettingError(
                    f"data.missing.column must name components ({', '.join(components)}), got {name!r}{hint}"
                )
        shares = {"random": self.random, "client": self.client}
        shares |= {f"column.{name}": share for name, share in self.column.items()}
        for name, share in shares.items():
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise SettingError(f"data.missing.{name} must be a number in [0, 1], got {share!r}")

    def lacks(self, component: str, records: Int64, clients: Int64, seed: int) -> npt.NDArray[np.bool_]:
        """Which records ``(records,)`` lack a component, given their keys and those of their clients."""
        lost = np.zeros(len(records), dtype=np.bool_)
        for purpose, keys, share in (
            ("random", records, self.random),
            ("client", clients, self.client),
            ("column", clients, self.column.get(component, 0.0)),
        ):
            if share:
                lost |= uniforms(stream_keys(seed, f"missing/{purpose}/{component}", keys), 1)[:, 0] < share
        return lost
