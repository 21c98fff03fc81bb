"""Which sampled candidates are true answers that the client itself knows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedemb.types import Exclusion


def _keys(client: Tensor, query: Tensor | None, answer: Tensor, bounds: tuple[int, int]) -> Tensor:
    queries, answers = bounds
    key: Tensor = client if query is None else client * queries + query
    while key.dim() < answer.dim():
        key = key.unsqueeze(-1)
    return key * answers + answer


def known_pairs(
    exclusion: Exclusion, columns: Mapping[str, Tensor], client: Tensor, bounds: tuple[int, int]
) -> Tensor:
    """Sorted keys of every (client, query, answer) in the examples."""
    query = columns[exclusion.query] if exclusion.query else None
    pairs: Tensor = torch.unique(_keys(client, query, columns[exclusion.answer], bounds))
    return pairs


def known_candidates(
    exclusion: Exclusion,
    batch: Mapping[str, Tensor],
    client: Tensor,
    bounds: tuple[int, int],
    known: Tensor,
) -> Tensor:
    """Whether each candidate ``(examples, candidates)`` is a true answer of the client's own.

    Args:
        exclusion: Names of the columns.
        batch: Examples with their candidates.
        client: ``(examples,)`` whose they are.
        bounds: Number of possible queries and of possible answers.
        known: From ``known_pairs``.
    """
    query = batch[exclusion.query] if exclusion.query else None
    assert exclusion.candidates is not None
    keys = _keys(client, query, batch[exclusion.candidates], bounds)
    at = torch.searchsorted(known, keys).clamp_(max=len(known) - 1)
    found: Tensor = known[at.view(-1)].view(keys.shape) == keys
    return found


def known_ranges(
    exclusion: Exclusion,
    batch: Mapping[str, Tensor],
    client: Tensor,
    bounds: tuple[int, int],
    known: Tensor,
) -> Tensor:
    """Where in ``known`` the true answers of each example stand: first and end ``(examples, 2)``.

    Args:
        exclusion: Names of the columns.
        batch: Examples.
        client: ``(examples,)`` whose they are.
        bounds: Number of possible queries and of possible answers.
        known: From ``known_pairs``.
    """
    query = batch[exclusion.query] if exclusion.query else None
    first = _keys(client, query, torch.zeros_like(client), bounds)
    return torch.stack(
        (torch.searchsorted(known, first), torch.searchsorted(known, first + bounds[1])), dim=1
    )


def known_answers(known: Tensor, ranges: Tensor, num_answers: int) -> tuple[Tensor, Tensor]:
    """Example and answer ``(pairs,)`` of all true answers in these ranges ``(examples, 2)``."""
    sizes = ranges[:, 1] - ranges[:, 0]
    example = torch.repeat_interleave(sizes)
    start = ranges[:, 0] - (sizes.cumsum(0) - sizes)
    at = torch.arange(len(example), device=ranges.device) + start[example]
    return example, known[at] % num_answers


def key_bounds(exclusion: Exclusion, columns: Mapping[str, Tensor], num_rows: int) -> tuple[int, int]:
    """Number of possible queries (from the examples) and answers (rows of the largest table)."""
    if not exclusion.query or not len(columns[exclusion.query]):
        return 1, num_rows
    return int(columns[exclusion.query].max()) + 1, num_rows
