"""The vocabulary of fedemb: protocols and frozen dataclasses, no logic.

The first axis of whatever concerns clients is the clients of a cohort. What differs in length
from client to client is *ragged*: concatenated values plus ``offsets`` of shape ``(clients + 1,)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor, dtype

if TYPE_CHECKING:
    from fedemb.data.shards import Shards
    from fedemb.data.vocabulary import Vocabulary
    from fedemb.stages.spread import Layout

Int64 = npt.NDArray[np.int64]
Float = npt.NDArray[np.floating[Any]]
Batch = Mapping[str, Tensor]


@runtime_checkable
class Manifold(Protocol):
    """A space that the rows of a table live in. Points carry coordinates on their last axis.

    A *tangent* vector at ``x`` has as many coordinates as ``x``. A *frame* vector has ``dim``
    coordinates in an orthonormal basis of the tangent space at ``x``, so that its Euclidean norm
    is the Riemannian norm of the tangent vector: updates travel in that form.
    """

    @property
    def name(self) -> str: ...
    @property
    def curvature(self) -> float:
        """Sectional curvature: 0 for Euclidean, negative for hyperbolic spaces."""
        ...

    @property
    def dtype(self) -> dtype: ...
    def num_coordinates(self, dim: int) -> int: ...
    def origin(self, dim: int) -> Tensor: ...
    def project(self, x: Tensor) -> Tensor: ...
    def exp(self, x: Tensor, tangent: Tensor) -> Tensor: ...
    def log(self, x: Tensor, y: Tensor) -> Tensor: ...
    def distance(self, x: Tensor, y: Tensor) -> Tensor: ...
    def norm(self, x: Tensor, tangent: Tensor) -> Tensor: ...
    def transport(self, x: Tensor, y: Tensor, tangent: Tensor) -> Tensor: ...
    def riemannian_gradient(self, x: Tensor, gradient: Tensor) -> Tensor: ...
    def to_frame(self, x: Tensor, tangent: Tensor) -> Tensor: ...
    def from_frame(self, x: Tensor, frame: Tensor) -> Tensor: ...
    def centroid(self, points: Tensor, weights: Tensor) -> Tensor: ...
    def centroid_terms(self, points: Tensor) -> Tensor: ...
    def centroid_from_sum(self, total: Tensor) -> Tensor: ...
    def to_ball(self, x: Tensor) -> Tensor: ...
    def from_ball(self, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Table:
    """Rows keyed by entity.

    Attributes:
        name: Its name, unique within a task.
        num_rows: Rows of a shared table; rows *per client* of a personal one.
        dim: Dimensions of the manifold (a Lorentz row stores ``dim + 1`` coordinates).
        manifold: The space of the rows.
        init_scale: Rows start as ``exp_origin(u)``: ``u`` uniform in ``[-init_scale, init_scale]``
            per frame coordinate.
        shared: Whether the server holds it; a personal table never leaves its client.
        entity: The vocabulary that names the rows.
        num_slices: Rows of each entity, one after another: one for each slice of time.
        walk: Precision of the random walk that an entity's rows make from slice to slice; see walk.py.
    """

    name: str
    num_rows: int
    dim: int
    manifold: Manifold
    init_scale: float
    shared: bool = True
    entity: str = "item"
    num_slices: int = 1
    walk: float = 0.0


@dataclass(frozen=True)
class Dense:
    """A small parameter that every client holds whole, uniform in ``[-init_scale, init_scale]``."""

    name: str
    shape: tuple[int, ...]
    init_scale: float = 0.0


@dataclass(frozen=True)
class Exclusion:
    """Which sampled candidates a client knows to be true answers.

    The trainer adds a boolean column ``known`` ``(examples, candidates)``: whether the client's own
    examples hold the pair of the example's ``query`` and the candidate. It makes an example's loss depend on the
    client's other examples, so it cannot stand together with example-level differential privacy.

    Attributes:
        query: Column of the question; None where the client itself is the question.
        answer: Column of true answers.
        candidates: Column ``(examples, candidates)`` that ``sample`` drew; None: the candidates of a
            ``ListwiseTask``, and ``known`` stands there.
    """

    query: str | None
    answer: str
    candidates: str | None


class Task(Protocol):
    """What is learnt: tables, and a loss *per example* from the vectors that the example looks up.

    ``examples``, ``sample``, ``lookup`` and ``loss`` are pure. An example's loss depends on that
    example alone, never on its batch.
    """

    @property
    def tables(self) -> tuple[Table, ...]: ...
    @property
    def dense(self) -> tuple[Dense, ...]: ...
    @property
    def num_draws(self) -> int:
        """Uniform random numbers that an example is given anew in each epoch."""
        ...

    @property
    def exclusion(self) -> Exclusion | None:
        """Candidates that are not negatives after all, if the task wants to know."""
        ...

    def examples(self, shards: Shards) -> Shards:
        """Turns clients' data into clients' training examples (windows over a sequence, say)."""
        ...

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        """Adds what is random: ``uniforms`` ``(examples, num_draws)`` in [0, 1).

        A boolean column ``keep`` in the result drops examples from this epoch. Ids that are drawn, and say
        nothing about the client, stand in a column ``negatives`` and come last in ``lookup``.
        """
        ...

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        """Row ids ``(examples, k)`` for each table; for a personal table, ids within the client."""
        ...

    def loss(self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Loss ``(examples,)`` from ``vectors`` ``(examples, k, coordinates)``.

        ``dense[name]`` is ``(examples, *shape)``: the copy of the example's client.
        """
        ...


@dataclass(frozen=True)
class Drawn:
    """How rows are drawn for every client and step: independently of the data, from a public distribution.

    Attributes:
        count: How many.
        cdf: ``(rows,)`` cumulative distribution over the table's rows; None: uniform.
    """

    count: int
    cdf: Tensor | None = None


@dataclass(frozen=True)
class Candidates:
    """Rows of one table that all examples of a client in a step are compared with.

    Attributes:
        points: ``(clients, most, coordinates)``; a client with fewer rows is filled up with its last one.
        weight: ``(clients, most)`` float64: how many of the table's rows it stands for. A drawn row: how often it was
            drawn over how often that was expected, so that weighted sums estimate those over the whole table. One of
            all that the client holds: 1. Filling, and a row that stands here already: 0.
        client: ``(examples,)`` position of the example's client on the first axis.
        place: ``(examples, k)`` where the example's own lookups stand among its client's rows; -1 where they do not.
        known: ``(examples, most)`` bool: answers that the client knows to be true; None without an ``Exclusion``.
    """

    points: Tensor
    weight: Tensor
    client: Tensor
    place: Tensor
    known: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """``(clients, most)`` bool: whether it is a row of its own, no filling and no repetition."""
        return self.weight > 0


@runtime_checkable
class ListwiseTask(Protocol):
    """A task whose loss compares an example with rows that it shares with all examples of its client in a step.

    One array serves them all, so there are many more negatives for the same time, and no per-example gradients
    of these rows.
    """

    @property
    def candidates(self) -> Mapping[str, Drawn | None]:
        """Per table, which rows: drawn for every client and step; None: every row that the client's examples look up
        in the round. An empty mapping: an ordinary task.
        """
        ...

    def loss(
        self,
        vectors: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        batch: Batch,
        candidates: Mapping[str, Candidates],
    ) -> Tensor:
        """As ``Task.loss``, given the rows of each of these tables."""
        ...


@runtime_checkable
class Recommender(Protocol):
    """A task that can rank a catalogue for a client."""

    @property
    def catalogue(self) -> str:
        """Name of the entity whose whole vocabulary is ranked."""
        ...

    def scores(
        self,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        history: Shards,
        now: Int64 | None = None,
    ) -> Tensor:
        """Scores ``(clients, catalogue)`` of every item for each client of ``history``.

        Args:
            tables: Shared tables, and dense parameters by name.
            personal: ``(clients, num_rows, coordinates)`` per personal table.
            history: What each client took before.
            now: ``(clients,)`` when each one is asked, in epoch seconds; None where there are no times.
        """
        ...


@runtime_checkable
class ContextPredictor(Task, Protocol):
    """A task that can say which item stands in the middle of a context, whoever's it is."""

    @property
    def by_context(self) -> bool:
        """Whether that is what it learns, with these settings."""
        ...

    def context_scores(self, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Scores ``(examples, items)`` of every item in the place of the example's column ``item``.

        Args:
            tables: Shared tables, and dense parameters by name.
            batch: Of its own examples, without what is drawn.
        """
        ...


@runtime_checkable
class Labeller(Task, Protocol):
    """A task that tells the labels of records from whichever of their components are there."""

    @property
    def components(self) -> tuple[Component, ...]: ...
    @property
    def label(self) -> Component: ...
    def label_scores(self, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Scores ``(records, labels)``: log odds of each one (``multi``), or up to a constant log probabilities.

        Args:
            tables: Shared tables, and dense parameters by name.
            batch: Of its own examples, without what is drawn.
        """
        ...

    def composed(self, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Vectors ``(records, coordinates)``."""
        ...


@runtime_checkable
class Uncertain(Protocol):
    """A task that says how much it knows of a record, besides the probabilities of its labels."""

    def uncertainties(self, tables: Mapping[str, Tensor], batch: Batch) -> Mapping[str, Tensor]:
        """Scores ``(records,)`` by name, higher for what is less to be trusted; always numbers.

        Args:
            tables: Shared tables, and dense parameters by name.
            batch: Of its own examples, without what is drawn.
        """
        ...


@runtime_checkable
class Temporal(Task, Protocol):
    """A task whose vectors depend on time. Its examples have columns ``time``, ``context`` ``(examples, k)``, what
    stands around them (-1 for nothing), and maybe ``age``, how many days ago that was.
    """

    @property
    def moves(self) -> bool:
        """Whether vectors do depend on it, with these settings."""
        ...

    @property
    def follow(self) -> tuple[str, ...]:
        """Names of rows that a report follows through time; empty: those that moved most."""
        ...

    @property
    def slices(self) -> Int64:
        """``(slices + 1,)`` ascending epoch seconds: where each slice of time begins, and the end of the last."""
        ...

    def vectors_at(self, tables: Mapping[str, Tensor], time: int) -> Tensor:
        """Vectors ``(rows, coordinates)`` of the main entity's rows at a point in time, in epoch seconds.

        Before the first slice they are those of the first one, after the last those of the last.
        """
        ...


@runtime_checkable
class LinkPredictor(Protocol):
    """A task that scores which entity completes a triple."""

    def score_answers(
        self,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        client: Tensor,
        anchor: Tensor,
        relation: Tensor,
        backward: Tensor,
        answers: Tensor | None = None,
    ) -> Tensor:
        """Scores ``(queries, entities)`` of every entity as the missing end, or ``(queries, k)`` of ``answers``.

        Args:
            tables: Shared tables.
            personal: ``(clients, num_rows, coordinates)`` per personal table.
            client: ``(queries,)`` position of the client that asks, on the first axis of ``personal``.
            anchor: ``(queries,)`` the known entity: the head, or the tail where ``backward``.
            relation: ``(queries,)``.
            backward: ``(queries,)`` bool: whether the head is asked for.
            answers: ``(queries, k)`` entities.
        """
        ...


@dataclass(frozen=True)
class RowUpdates:
    """What a cohort did to one table: ragged by client, rows sorted and unique in each client.

    Attributes:
        rows: ``(touched,)`` int64.
        values: ``(touched, dim)`` log of trained at received, in frame coordinates.
        counts: ``(touched,)`` how often the client's training examples looked the row up; 0 where it was only drawn
            as a negative.
        offsets: ``(clients + 1,)`` int64.
    """

    rows: Tensor
    values: Tensor
    counts: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Updates:
    """Trained minus received, for each client of a cohort.

    Attributes:
        clients: ``(clients,)`` int64 client ids, ascending.
        tables: Per shared table.
        dense: ``(clients, *shape)`` per dense parameter.
        weights: ``(clients,)`` weight of each client; the stage ``weight`` sets it.
        metrics: ``(clients,)`` per name: ``examples`` (trained on, all epochs) and ``loss`` (summed).
    """

    clients: Int64
    tables: Mapping[str, RowUpdates]
    dense: Mapping[str, Tensor]
    weights: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class RowTotal:
    """Sum of updates of one table.

    Attributes:
        rows: ``(touched,)`` ascending.
        steps: ``(touched, dim)``.
        weights: ``(touched,)`` what a mean was divided by; None where steps are sums, or means over all of a cohort.
    """

    rows: Tensor
    steps: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class Total:
    """What the aggregator hands to the server optimiser: one step per touched row, in frame coordinates.

    Attributes:
        tables: Per table.
        dense: Per dense parameter.
        num_clients: Clients whose updates are in it.
        clipped: How many of these were clipped, where they say so.
        aborted: Whether too few clients were left for anything to be learnt of the round.
    """

    tables: Mapping[str, RowTotal]
    dense: Mapping[str, Tensor]
    num_clients: int
    clipped: float = 0.0
    aborted: bool = False


@dataclass(frozen=True)
class Taxonomy:
    """A directed acyclic graph of ``is-a`` edges over one vocabulary.

    Attributes:
        child, parent: ``(pairs,)`` int64: every pair of the transitive closure.
        depth: ``(nodes,)`` int64: longest path up to a root, 0 for roots.
        direct: ``(pairs,)`` bool: whether the pair is an edge of the transitive reduction.
    """

    child: Int64
    parent: Int64
    depth: Int64
    direct: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Component:
    """A part of a record, any of which may be missing, or its label.

    Attributes:
        name: Its name, and that of the vocabulary of its values.
        kind: ``category``, ``multi``, ``number`` or ``text``.
        column: Of the shards: ids ``(examples, width)`` int32 of its values, filled up with -1; a number that is no
            id is ``(examples,)`` float32, NaN where it is missing.
        num_values: Different values, maybe none in training; 0 for a number that is no id.
        width: Most values of one record.
    """

    name: str
    kind: str
    column: str
    num_values: int
    width: int = 1


@dataclass(frozen=True)
class Dataset:
    """Prepared data: everything that a run needs to know about its clients' examples.

    Attributes:
        train: Training examples of all clients.
        vocabularies: Names of the rows, per entity.
        clients: Names of the clients, in the order of the shards; None where they have no names.
        held_out: Evaluation splits by name: ``validation``, ``test``, and ``out_of_distribution`` for records that no
            label fits. Same clients, same order.
        taxonomy: The graph behind the examples, where there is one.
        entity_of: The vocabulary that each id column of the shards refers to.
        counts: What was read, dropped and why, for the summary (``rows_read``, ``rows_cancelled``...).
        truth: What a generator knows and a file does not (``item_cluster``...).
        span: First and last time of the training events, in epoch seconds; None without times.
        past: The training events as they happened, for what is known of clients when they are measured, where ``train``
            holds something else (shuffled times); None: ``train``.
        slices: Where the slices of time of a finished run begin, and the end of the last (``Temporal``), where its
            rows are to be used; None: they are made for these data.
        components: What records are made of, where they are.
        label: What is to be known of a record: ``category`` for one label, ``multi`` for many.
    """

    train: Shards
    vocabularies: Mapping[str, Vocabulary]
    clients: Vocabulary | None = None
    held_out: Mapping[str, Shards] = field(default_factory=dict)
    taxonomy: Taxonomy | None = None
    entity_of: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    truth: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    span: tuple[int, int] | None = None
    past: Shards | None = None
    slices: Int64 | None = None
    components: tuple[Component, ...] = ()
    label: Component | None = None


class Source(Protocol):
    """Where data come from. ``seed`` drives whatever is random in reading and partitioning."""

    def load(self, partition: Partition, seed: int) -> Dataset: ...


class Partition(Protocol):
    """Makes clients where data have none."""

    def assign(
        self, columns: Mapping[str, npt.NDArray[Any]], taxonomy: Taxonomy | None, seed: int
    ) -> tuple[Int64, tuple[str, ...] | None]:
        """Client of each example ``(examples,)``, and the clients' names where they have any."""
        ...


@dataclass(frozen=True)
class Evaluated:
    """Result of an evaluation.

    Attributes:
        metrics: Over everything evaluated.
        per_client: ``(clients,)`` per name; NaN where a client has nothing to evaluate.
        clients: ``(clients,)`` ids.
        weights: ``(clients,)`` how much each client counts in ``metrics``; None: all alike.
        sums: What ``Pooled`` metrics follow from, summed over these clients.
    """

    metrics: Mapping[str, float]
    per_client: Mapping[str, Float]
    clients: Int64
    weights: Float | None = None
    sums: Mapping[str, Int64] = field(default_factory=dict)


class Evaluation(Protocol):
    """Measures a model. ``on_clients``: whether it needs clients' own data and runs where these are."""

    @property
    def on_clients(self) -> bool: ...
    def __call__(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Evaluated:
        """``tables`` holds shared tables and dense parameters by name, ``personal[name]`` is
        ``(clients, num_rows, coordinates)``.
        """
        ...


@runtime_checkable
class Pooled(Evaluation, Protocol):
    """An evaluation with metrics that are no means over clients but follow from counts that clients add up.

    Where a metric per client has the name of such a one, it is that of the client by itself.
    """

    @property
    def pooled_first(self) -> bool:
        """Whether they come before means over clients; curves and sweeps show the first metric of all."""
        ...

    def pooled(self, sums: Mapping[str, Int64]) -> dict[str, float]: ...


@runtime_checkable
class Fitted(Evaluation, Protocol):
    """An evaluation in two exchanges: what clients add up of their validation records decides numbers that the
    measurement of their test records needs.
    """

    def fit_sums(
        self, tables: Mapping[str, Tensor], personal: Mapping[str, Tensor], clients: Int64
    ) -> Mapping[str, Int64]:
        """Sums over these clients; arguments as those of the measurement."""
        ...

    def fitted(self, sums: Mapping[str, Int64]) -> dict[str, Tensor]:
        """Numbers by names that are no table's; they stand among ``tables`` when it measures."""
        ...


@dataclass(frozen=True)
class StageContext:
    """What a stage may know.

    Attributes:
        seed: The run's seed.
        round: The round.
        clip_norm: The bound that the server asks for in this round; None: the stage's own.
    """

    seed: int
    round: int
    clip_norm: float | None = None


class Stage(Protocol):
    """Both halves of one thing on an update's way: client half in order, server half in reverse."""

    @property
    def name(self) -> str: ...
    @property
    def bounded(self) -> bool:
        """Whether the whole update's norm is bounded after it."""
        ...

    def on_clients(self, updates: Updates, context: StageContext) -> Updates: ...
    def on_server(self, total: Total, context: StageContext) -> Total: ...


@runtime_checkable
class Stateful(Stage, Protocol):
    """A stage whose server half remembers something from round to round."""

    @property
    def clip_norm(self) -> float:
        """The bound on updates of the next round."""
        ...

    @property
    def confined(self) -> bool:
        """Whether its universe was chosen."""
        ...

    @property
    def layout(self) -> Layout:
        """Its universe."""
        ...

    def confine(self, rows: Mapping[str, Tensor]) -> None:
        """Leaves to it, per table, the rows ``(num_rows,)`` bool of a universe that was chosen."""
        ...

    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: Mapping[str, Tensor]) -> None: ...


class Aggregator(Protocol):
    """Turns a cohort's updates into a total. ``add`` may be called many times a round."""

    def add(self, updates: Updates, tables: Mapping[str, Tensor]) -> None: ...
    def finish(self, tables: Mapping[str, Tensor]) -> Total: ...


@dataclass(frozen=True)
class Participation:
    """How clients come to take part, for whoever accounts for it.

    Attributes:
        kind: ``full`` (everybody, always), ``poisson`` (a coin each), ``fixed`` (so many different ones, at random), or
            ``turns`` (in a fixed order, again and again).
        population: Clients who may take part.
        size: Clients of a cohort, on average.
        separation: Rounds from one participation of a client to its next at the least.
    """

    kind: str
    population: int
    size: float
    separation: int = 1


class CohortSampler(Protocol):
    """Who takes part in a round: ``(cohort,)`` ascending client ids."""

    def __call__(self, seed: int, round: int, eligible: Int64) -> Int64: ...
    def check(self, num_eligible: int) -> None:
        """Raises SettingError if cohorts cannot be drawn from so many clients."""
        ...

    def participation(self, num_eligible: int) -> Participation:
        """What an accountant needs to know of it."""
        ...


class ServerOptimizer(Protocol):
    """One step per touched row, in place; state per row, so untouched rows cost nothing."""

    def step(self, tables: Mapping[str, Tensor], dense: Mapping[str, Tensor], total: Total) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: Mapping[str, Tensor]) -> None: ...


class MetricsSink(Protocol):
    """Something that is told about each round as it happens (a log, a progress bar)."""

    def __call__(self, line: Mapping[str, Any]) -> None: ...
