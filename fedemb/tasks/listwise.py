"""Comparing examples with candidates that they share with all examples of their client in a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedemb.types import Candidates


@dataclass(frozen=True)
class Blocks:
    """Examples arranged as ``(clients, most examples)``, so that one batched product serves all clients.

    Attributes:
        client: ``(examples,)`` block of each example.
        position: ``(examples,)`` place in its block.
        shape: Clients, and examples of the largest one.
    """

    client: Tensor
    position: Tensor
    shape: tuple[int, int]

    @staticmethod
    def of(candidates: Candidates) -> Blocks:
        """The arrangement that goes with these candidates."""
        client, num_clients = candidates.client, len(candidates.points)
        if num_clients == 1:
            return Blocks(client, torch.arange(len(client), device=client.device), (1, len(client)))
        sizes = torch.bincount(client, minlength=num_clients)
        order = torch.argsort(client, stable=True)
        position = torch.empty_like(order)
        first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        position[order] = torch.arange(len(order), device=order.device) - first
        return Blocks(client, position, (num_clients, int(sizes.max())))

    def fill(self, values: Tensor) -> Tensor:
        """``(clients, most, ...)`` from ``(examples, ...)``; zero where there is no example."""
        if self.shape[0] == 1:  # a deployed client, or pooled data: nothing to fill up
            return values[None]
        blocks = values.new_zeros((*self.shape, *values.shape[1:]))
        return blocks.index_put((self.client, self.position), values)

    def take(self, blocks: Tensor) -> Tensor:
        """``(examples, ...)`` from ``(clients, most, ...)``."""
        return blocks[0] if self.shape[0] == 1 else blocks[self.client, self.position]


def not_looked_up(candidates: Candidates) -> Tensor:
    """Which candidates are negatives ``(examples, most)``: neither the example's own lookups nor known answers."""
    negative = candidates.present[candidates.client]
    if candidates.known is not None:
        negative = negative & ~candidates.known
    example = torch.arange(len(negative), device=negative.device)
    for place in candidates.place.unbind(1):
        found = place >= 0
        negative[example[found], place[found]] = False
    return negative
