"""Weighted means and sums of updates that arrive in the clear: which clients count for a row, and how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedemb.manifolds import Euclidean
from fedemb.train.ragged import add_rows_, localise
from fedemb.types import Manifold, RowTotal, RowUpdates, Table, Total, Updates

ROW_RULES = ("ratio", "uniform", "fedavg", "sum", "heat", "population")
MEANS = ("tangent", "centroid", "coordinates")
_ONLY_DRAWN = 2.0**-20  # weight of a client that only drew a row as a negative

PointMap = Callable[[Tensor], Tensor]


def _point_maps(mean: str, space: Manifold) -> tuple[PointMap, PointMap] | None:
    """What is added up for a point, and the point that a mean of these stands for; None: deltas are averaged."""
    if mean == "tangent" or isinstance(space, Euclidean):
        return None
    if mean == "coordinates":
        return space.to_ball, space.from_ball
    return space.centroid_terms, space.centroid_from_sum


@dataclass(frozen=True)
class _Running:
    """Running sums of the touched rows of one table: ``rows`` ascending, ``values`` and ``weights`` beside them."""

    rows: Tensor
    values: Tensor
    weights: Tensor


def _added(
    running: _Running | None, rows: Tensor, values: Tensor, weights: Tensor, num_rows: int
) -> _Running:
    """The sums with these on top, added one after another whatever parts they come in."""
    before = rows[:0] if running is None else running.rows
    touched, position = localise(torch.cat((before, rows)), num_rows)
    old, new = position[: len(before)], position[len(before) :]
    sums, totals = values.new_zeros((len(touched), values.shape[1])), weights.new_zeros(len(touched))
    if running is not None:
        sums[old], totals[old] = running.values, running.weights
    return _Running(
        touched, add_rows_(sums, new, values * weights[:, None]), totals.scatter_add_(0, new, weights)
    )


@dataclass
class Plain:
    """Adds updates up as they come, in the order of clients, and divides by the row rule's denominator.

    For a row r, clients c of the cohort K that hold it (touched it) with delta D[c, r]:

    - ``ratio``: sum of n[c, r] D / sum of n[c, r], n the lookups of r in c's training examples.
    - ``uniform``: sum of D / number of holders (FedE: Chen et al., "FedE: Embedding Knowledge Graphs in
      Federated Setting", 2021, eq. 4).
    - ``fedavg``: sum of w[c] D / sum of w[c] over the WHOLE cohort: who did not touch a row votes for
      leaving it (McMahan et al., "Communication-Efficient Learning...", 2017, algorithm 1).
    - ``sum``: sum of w[c] D with weights in [0, 1]: ``fedavg`` with a server learning rate times the cohort. Local
      steps count fully, as if one machine had made them all from the same start.
    - ``heat``: sum of D / max(1, |K| h[r] / N), h[r] the clients among all N that hold r: the
      Horvitz-Thompson estimate of the holders' mean over the population, clipped so that a row with less than one
      expected holder is not blown up (Ding et al., "Federated Submodel Optimization for Hot and Cold Data
      Features", NeurIPS 2022, eq. 5, without the clip).
    - ``population``: sum of w[c] D * h[r] / max(1, |K| h[r] / N): the sum over all holders of the population, estimated
      from those in the cohort; ``sum`` where everybody takes part.

    A client that only drew r as a negative is no holder: to ``ratio``, ``uniform`` and ``heat`` it weighs 2^-20, so it
    is heard where nobody holds r.

    Dense parameters are averaged with the weights of the stage ``weight`` (``sum``: added up; ``population``: and times
    N / |K|).

    On a curved table deltas are frame vectors at the received row, so all of this is linear and the mean is
    the *tangent* mean. ``mean="centroid"`` takes the Lorentzian centroid of the trained points instead (Law
    et al., "Lorentzian Distance Learning for Hyperbolic Representations", ICML 2019, eq. 11).
    ``mean="coordinates"`` averages the trained points' coordinates, as a strategy that knows nothing of manifolds
    would: those in the Poincaré ball, or means and standard deviations of Gaussians. It is a bad mean, offered for
    comparison only: points far out end up too near the origin (what that costs: experiments/server_mean), and evidence
    does not add up. On a Euclidean table all three are the same.

    Attributes:
        tables: The shared tables.
        rows: A rule from above.
        mean: ``tangent``, ``centroid`` or ``coordinates``.
        holders: ``(num_rows,)`` per table: clients of the population that hold each row, for ``heat`` and
            ``population``.
        num_clients: Clients of the population, likewise.
        public_weight: What ``fedavg`` divides by, whoever came: privacy allows no divisor that follows from data. None:
            the sum of weights.
    """

    tables: tuple[Table, ...]
    rows: str = "ratio"
    mean: str = "tangent"
    holders: Mapping[str, Tensor] = field(default_factory=dict)
    num_clients: int = 0
    public_weight: float | None = None

    def __post_init__(self) -> None:
        if self.rows not in ROW_RULES:
            raise ValueError(f"aggregate.rows must be one of {', '.join(ROW_RULES)}, got {self.rows!r}")
        if self.mean not in MEANS:
            raise ValueError(f"aggregate.mean must be one of {', '.join(MEANS)}, got {self.mean!r}")
        if self.mean != "tangent" and self.rows in ("sum", "heat", "population"):
            raise ValueError(
                f"aggregate.mean={self.mean} averages points, but aggregate.rows={self.rows} does not average; "
                "use rows=ratio, uniform or fedavg, or mean=tangent"
            )
        self._tables = {table.name: table for table in self.tables}
        self._maps = {table.name: _point_maps(self.mean, table.manifold) for table in self.tables}
        self._running: dict[str, _Running] = {}
        self._dense: dict[str, Tensor] = {}
        self._weight = 0.0
        self._cohort = 0
        self._clipped = 0.0

    def _row_weights(self, rows: RowUpdates, clients: Tensor) -> Tensor:
        if self.rows == "ratio":
            return rows.counts.clamp_min(_ONLY_DRAWN)
        if self.rows in ("fedavg", "sum", "population"):
            own = torch.repeat_interleave(
                clients.to(rows.values.device), rows.offsets.diff().to(rows.values.device)
            )
            return own.to(rows.values.dtype)
        return (rows.counts > 0).to(rows.counts).clamp_min(_ONLY_DRAWN)

    def add(self, updates: Updates, tables: Mapping[str, Tensor]) -> None:
        """Adds a part of the cohort.

        Args:
            updates: Checked updates.
            tables: The tables that the clients received.
        """
        for name, rows in updates.tables.items():
            values, space, maps = rows.values, self._tables[name].manifold, self._maps[name]
            if maps is not None:
                terms, _ = maps
                start = tables[name].index_select(0, rows.rows)
                values = terms(space.exp(start, space.from_frame(start, values)))
            weights = self._row_weights(rows, updates.weights)
            before, num_rows = self._running.get(name), self._tables[name].num_rows
            self._running[name] = _added(before, rows.rows, values, weights, num_rows)
        for name, value in updates.dense.items():
            weighted = torch.tensordot(updates.weights.to(value), value, dims=1)
            self._dense[name] = self._dense[name] + weighted if name in self._dense else weighted
        self._weight += float(updates.weights.sum())
        self._cohort += len(updates.clients)
        if "clipped" in updates.metrics:
            self._clipped += float(updates.metrics["clipped"].sum())

    def _divisor(self) -> float:
        return self._weight if self.public_weight is None else self.public_weight

    def _denominator(self, name: str, rows: Tensor, weights: Tensor) -> Tensor:
        if self.rows == "sum":
            return torch.ones_like(weights)
        if self.rows == "fedavg":
            return torch.full_like(weights, self._divisor())
        if self.rows == "heat":
            expected = self.holders[name].to(weights)[rows] * (self._cohort / max(1, self.num_clients))
            return expected.clamp_(min=1.0)
        if self.rows == "population":
            held = self.holders[name].to(weights)[rows].clamp_(min=1.0)
            return (held * (self._cohort / max(1, self.num_clients))).clamp_(min=1.0) / held
        return weights

    def _row_total(self, name: str, running: _Running, table: Tensor) -> RowTotal:
        space, maps = self._tables[name].manifold, self._maps[name]
        touched, sums, weights = running.rows, running.values, running.weights
        denominator = self._denominator(name, touched, weights)
        counted = denominator > 0
        if not bool(counted.all()):
            touched, sums, denominator, weights = (x[counted] for x in (touched, sums, denominator, weights))
        own = weights if self.rows in ("ratio", "uniform") else None
        if maps is None:
            return RowTotal(touched, sums / denominator[:, None], own)
        terms, from_mean = maps
        start = table.index_select(0, touched)
        absent = (denominator - weights).clamp_(min=0)
        end = from_mean((sums + absent[:, None] * terms(start)) / denominator[:, None])
        return RowTotal(touched, space.to_frame(start, space.log(start, end)), own)

    def finish(self, tables: Mapping[str, Tensor]) -> Total:
        """The round's total; the next ``add`` starts a new one."""
        totals = {
            name: self._row_total(name, running, tables[name]) for name, running in self._running.items()
        }
        divisor = self._divisor()
        if self.rows in ("sum", "population"):
            divisor = 1.0 if self.rows == "sum" else self._cohort / max(1, self.num_clients)
        dense = {name: value / divisor for name, value in self._dense.items() if divisor > 0}
        total = Total(totals, dense, self._cohort, self._clipped)
        self._running, self._dense, self._weight, self._cohort, self._clipped = {}, {}, 0.0, 0, 0.0
        return total
