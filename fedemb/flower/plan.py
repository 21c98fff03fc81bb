"""What a strategy is to do, and what it has counted so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedemb.flower.nodes import Nodes
from fedemb.privacy.guard import Guard
from fedemb.types import Aggregator, CohortSampler, Evaluation, ServerOptimizer, Stage, Stateful, Table


@dataclass(frozen=True)
class Plan:
    """What a run does, apart from where.

    Attributes:
        tables: The shared tables of the task.
        sampler: Who takes part.
        aggregator_of: Makes the aggregator once the nodes are known.
        stages: Server halves that run on the total, of this run alone.
        optimizer: The step on the tables.
        evaluation: Measures the model; None where there is nothing to measure.
        seed: The run's seed.
        evaluate_every: Rounds between evaluations; 0 for the end only.
        checkpoint_every: Rounds between checkpoints; 0 for none.
        num_nodes: Nodes to wait for.
        clients_per_wave: Clients whose updates are in memory together.
        timeout_seconds: How long to wait for replies.
        digest: Digest of the configuration.
        shapes: All tables in words, compared at the handshake.
        want_holders: Whether nodes are asked who holds which row.
        by_reference: Whether nodes live in this process.
        guard: Who keeps the books of privacy; None: nobody is protected.
    """

    tables: tuple[Table, ...]
    sampler: CohortSampler
    aggregator_of: Callable[[Nodes], Aggregator]
    stages: Sequence[Stage]
    optimizer: ServerOptimizer
    evaluation: Evaluation | None
    seed: int
    evaluate_every: int
    checkpoint_every: int
    num_nodes: int
    clients_per_wave: int
    timeout_seconds: float
    digest: str
    shapes: str
    want_holders: bool
    by_reference: bool
    guard: Guard | None = None

    @property
    def clip_norm(self) -> float | None:
        """The bound on updates that the server asks for in the next round; None: clients have their own."""
        return next((stage.clip_norm for stage in self.stages if isinstance(stage, Stateful)), None)


@dataclass
class Tally:
    """Running counts for the summary."""

    client_updates: int = 0
    examples: float = 0.0
    upload_bytes: int = 0
    download_bytes: int = 0
    upload_bytes_dense: int = 0
    train_seconds: float = 0.0
    rejected: dict[str, int] = field(default_factory=dict)
