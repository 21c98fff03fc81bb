"""A part of a client's round: what moves in it, and which of the client's examples it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedemb.data.shards import ragged_indices
from fedemb.seeds import stream_keys, uniforms
from fedemb.types import Int64

ALL, SUPPORT, QUERY = "all", "support", "query"


@dataclass(frozen=True)
class Phase:
    """One pass of local training; a stateful client's round is a single one, in which everything moves.

    Attributes:
        frozen: Names of the tables and dense parameters that stay as they are.
        part: Which examples are seen: ``all``, ``support`` or ``query``.
        support_share: Share of a client's examples that is support; 1: all are both support and query.
        first_epoch: Number of the first epoch, so that no phase of a round draws what another one drew.
    """

    frozen: frozenset[str] = frozenset()
    part: str = ALL
    support_share: float = 1.0
    first_epoch: int = 0

    def seen(self, offsets: Int64, clients: Int64, seed: int, round: int) -> npt.NDArray[np.bool_] | None:
        """Whether each example ``(examples,)`` of these clients is seen; None: all are."""
        if self.part == ALL or self.support_share == 1:
            return None
        support = in_support(offsets, clients, self.support_share, seed, round)
        alone = np.diff(offsets) == 1
        return support if self.part == SUPPORT else ~support | np.repeat(alone, np.diff(offsets))


def in_support(offsets: Int64, clients: Int64, share: float, seed: int, round: int) -> npt.NDArray[np.bool_]:
    """Whether each example ``(examples,)`` is in its client's support set of this round.

    Drawn at random and anew in each round, without regard to who else is in the chunk. A client with two examples or
    more has one at least on either side; a single example is support (and ``Phase`` makes it query as well).

    Args:
        offsets: ``(clients + 1,)`` of the examples.
        clients: ``(clients,)`` ids.
        share: Of the client's examples, in (0, 1).
        seed: The run's seed.
        round: The round.

    >>> in_support(np.array([0, 4, 5]), np.array([7, 9]), 0.5, 0, 1).tolist().count(True)
    3
    """
    sizes = np.diff(offsets)
    rank, _ = _shuffled(offsets, stream_keys(seed, "support", round, clients))
    wanted = np.floor(sizes * share + 0.5).clip(1, np.maximum(sizes - 1, 1))
    return np.asarray(rank < np.repeat(wanted, sizes))


def in_turn(offsets: Int64, clients: Int64, share: float, seed: int, round: int) -> npt.NDArray[np.bool_]:
    """Whether it is the turn ``(examples,)`` of each example in this round, where a round takes a share of them.

    In ``1 / share`` rounds each has its turn once, in an order that is drawn anew after that; a client's examples are
    spread over the rounds as evenly as they can be. Nothing depends on who else is in the chunk.

    Args:
        offsets: ``(clients + 1,)`` of the examples.
        clients: ``(clients,)`` ids.
        share: Of a client's examples, in (0, 1]; ``1 / share`` is rounded to a whole number.
        seed: The run's seed.
        round: The round, from 1.

    >>> turns = [in_turn(np.array([0, 4, 5]), np.array([7, 9]), 0.5, 0, round) for round in (1, 2)]
    >>> [int(turn[:4].sum()) for turn in turns], (turns[0] ^ turns[1]).all()
    ([2, 2], np.True_)
    """
    num_turns = max(1, round_half_up(1 / share))
    cycle, turn = divmod(round - 1, num_turns)
    sizes = np.diff(offsets)
    rank, position = _shuffled(offsets, stream_keys(seed, "turn", cycle, clients))
    shift = uniforms(stream_keys(seed, "turn/shift", cycle, clients), 1)[:, 0]
    place = (rank + shift[position]) / np.repeat(np.maximum(sizes, 1), sizes)
    return np.asarray((place * num_turns).astype(np.int64) % num_turns == turn)


def _shuffled(offsets: Int64, keys: npt.NDArray[np.uint64]) -> tuple[Int64, Int64]:
    """Place of each example in a random order of its client's, from each client's key, and place of its client."""
    sizes = np.diff(offsets)
    position = np.repeat(np.arange(len(sizes)), sizes)
    within = ragged_indices(np.zeros_like(sizes), sizes)
    draws = uniforms(keys[position], 1, within)[:, 0]
    rank = np.empty_like(within)
    rank[np.lexsort((draws, position))] = within
    return rank, position


def round_half_up(value: float) -> int:
    """The nearest whole number; of two, the larger one."""
    return int(np.floor(value + 0.5))


WHOLE = Phase()
