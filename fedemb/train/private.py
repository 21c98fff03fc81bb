"""DP-SGD of a whole cohort at once: per-example gradients fall out of the looked-up vectors.

    batch of a step ── look-ups ──> vectors (examples, k) ── one backward pass ──> gradients (examples, k)
                                                                │ in the frame at each row; ids of an example that
                                                                │ repeat are added up; ONE norm over all tables,
                                                                ▼ personal ones too, and dense parameters
                  every row of the universe <── + noise ── sum of what was clipped, by client

Noise goes to every row of a client's copy in every step, whether the batch touched it or not: what is released tells
nothing about which rows a client's examples name. On a flat table under plain SGD the noise of steps is a sum, and
nobody sees a row between two look-ups; so it is owed until the row is looked up or the round ends, and paid as one draw
of the same distribution. On curved tables, and for optimisers with a state, every row moves in every step.

Reference: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, "Deep Learning with Differential Privacy", CCS 2016,
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedemb.manifolds import Euclidean
from fedemb.privacy.noise import Noise
from fedemb.train.epochs import Epoch, Examples
from fedemb.train.local import Local, candidates_of
from fedemb.train.optimizers import SGD, LocalOptimizer, Parameter
from fedemb.train.poisson import Sampling
from fedemb.train.ragged import add_rows_, localise
from fedemb.types import Candidates, Int64, ListwiseTask, Task

_BLOCK_VALUES = 1 << 18  # numbers of noise that are made at a time


@dataclass(frozen=True)
class ExamplePrivacy:
    """What protects a client's examples.

    Attributes:
        clip_norm: Largest norm of what one example adds to a step's sum of gradients, in frame coordinates.
        noise_multiplier: Standard deviation of the noise on that sum, over ``clip_norm``.
        noise: Where noise and coins come from.
        universe: Per shared table, whether each row ``(num_rows,)`` is one that may move; all rows of others.
        lazy: Whether noise is owed where that changes nothing; False pays it in every step.
    """

    clip_norm: float
    noise_multiplier: float
    noise: Noise
    universe: Mapping[str, Tensor] = field(default_factory=dict)
    lazy: bool = True

    def __post_init__(self) -> None:
        if not self.clip_norm > 0:
            raise ValueError(f"privacy.clip_norm must be a positive number, got {self.clip_norm}")
        if not 0 <= self.noise_multiplier < float("inf"):
            raise ValueError(f"privacy.noise_multiplier must be at least 0, got {self.noise_multiplier}")


@dataclass(frozen=True)
class PrivateSteps:
    """The steps of a round on a chunk's copies; ``owed_since`` holds the step up to which each row has its noise."""

    task: Task
    privacy: ExamplePrivacy
    optimizer: LocalOptimizer
    max_step: float | None
    rate: float
    dense_rate: float
    round: int
    clients: Int64
    sampling: Sampling
    divisor: Tensor
    locals_: list[Local]
    dense: Mapping[str, Parameter]
    owed_since: Mapping[str, Tensor]

    @staticmethod
    def of(
        task: Task,
        privacy: ExamplePrivacy,
        optimizer: LocalOptimizer,
        max_step: float | None,
        rate: float,
        dense_rate: float,
        round: int,
        clients: Int64,
        sampling: Sampling,
        summed: bool,
        locals_: list[Local],
        dense: Mapping[str, Parameter],
    ) -> PrivateSteps:
        """The steps, before the first one.

        Args:
            task: What is learnt.
            privacy: How it is protected.
            optimizer: The step on the rows.
            max_step: Largest distance that a row moves in one; None: no bound.
            rate: Learning rate.
            dense_rate: That of dense parameters.
            round: The round.
            clients: ``(clients,)`` ids.
            sampling: Of their examples.
            summed: Whether steps follow sums over examples, not means over as many as are expected.
            locals_: Copies of all rows of every table.
            dense: Copies ``(clients, numbers)`` of dense parameters.
        """
        device = next((local.keys.device for local in locals_), torch.device("cpu"))
        expected = torch.from_numpy(np.ones(len(clients)) if summed else sampling.expected)
        linear = privacy.lazy and isinstance(optimizer, SGD) and max_step is None
        owed = {
            local.table.name: torch.zeros(len(local.keys), dtype=torch.int64, device=device)
            for local in locals_
            if linear and isinstance(local.parameter.manifold, Euclidean)
        }
        return PrivateSteps(
            task, privacy, optimizer, max_step, rate, dense_rate, round, clients, sampling,
            expected.to(device), locals_, dense, owed,
        )  # fmt: skip

    @property
    def deviation(self) -> float:
        """Of the noise on a sum of gradients."""
        return self.privacy.noise_multiplier * self.privacy.clip_norm

    def step(self, examples: Examples, epoch: Epoch, number: int, step: int) -> Tensor:
        """One step of every client that has one, with or without examples; returns the loss of its examples."""
        lines = slice(epoch.steps[step], epoch.steps[step + 1])
        client = epoch.client[lines]
        done = self._steps_before(number, step)
        for local in self.locals_:
            if (
                local.table.name in self.owed_since and number + step
            ):  # before the first step, nothing is owed
                at = local.lookups[number][lines].reshape(-1)
                rows, _ = localise(torch.cat((at, self._drawn(local, epoch, number, step))), len(local.keys))
                self._pay(local, rows, done)
        loss, ids, gradients, of_dense = self.gradients(examples, epoch, number, step)
        factor = self._clip(ids, gradients, of_dense)
        active = torch.from_numpy(self.sampling.steps > step).to(self.divisor.device)
        shares = factor * (-self.rate / self.divisor)[client]
        for local in self.locals_:
            name, rows = local.table.name, ids[local.table.name].reshape(-1)
            gradient = gradients[name]  # autograd's own, and maybe shared between tables
            if name in self.owed_since:  # its noise is paid later
                steps = gradient * shares[:, None, None].to(gradient)
                add_rows_(local.parameter.points, rows, steps.flatten(0, 1))
            else:
                clipped = gradient * factor[:, None, None].to(gradient)
                self._move(local, rows, clipped.flatten(0, 1), active, done)
        for name, gradient in of_dense.items():
            clipped = gradient * factor[:, None].to(gradient)
            self._move_dense(name, client, clipped, active, done)
        return loss

    def finish(self, num_epochs: int) -> None:
        """Pays all noise that is still owed."""
        done = torch.from_numpy(self.sampling.steps * num_epochs)
        for local in self.locals_:
            if local.table.name in self.owed_since:
                self._pay(local, None, done.to(local.keys.device))

    def _steps_before(self, number: int, step: int) -> Tensor:
        """Steps ``(clients,)`` that each client has made before this one."""
        return torch.from_numpy(self.sampling.steps * number + step).to(self.divisor.device)

    def _drawn(self, local: Local, epoch: Epoch, number: int, step: int) -> Tensor:
        draw = epoch.draws.get(local.table.name)
        if draw is None:
            return local.keys[:0]
        return local.draws[number][draw.draw[draw.bounds[step] : draw.bounds[step + 1]]].reshape(-1)

    def _client_of(self, local: Local, rows: Tensor) -> Tensor:
        return rows // max(1, local.table.num_rows)

    def _noise(self, local: Local, rows: Tensor, done: Tensor) -> Tensor:
        """Standard normal numbers for these rows of the copy, after so many steps of their clients."""
        numbers: tuple[Int64, ...] = (rows.cpu().numpy(),)
        if self.privacy.noise.reproducible:  # keyed by what it is for, not by who else is in the chunk
            client = self._client_of(local, rows)
            row = (rows % local.table.num_rows).cpu().numpy()
            numbers = (self.clients[client.cpu().numpy()], done[client].cpu().numpy(), row)
        dtype = local.parameter.points.dtype
        found = self.privacy.noise.normal(
            f"example/{local.table.name}", local.table.dim, dtype, self.round, *numbers
        )
        return found.to(rows.device)

    def _pay(self, local: Local, rows: Tensor | None, done: Tensor) -> None:
        """Adds to these rows, or to all, the noise of the steps since they had theirs."""
        since, points = self.owed_since[local.table.name], local.parameter.points
        universe = self.privacy.universe.get(local.table.name) if local.table.shared else None
        size = max(1, _BLOCK_VALUES // max(1, points.shape[1]))
        for start in range(0, len(since if rows is None else rows), size):  # as much as a cache holds
            stop = min(start + size, len(since if rows is None else rows))
            part = torch.arange(start, stop, device=points.device) if rows is None else rows[start:stop]
            client = self._client_of(local, part)
            owed = done[client] - since[part]
            if universe is not None:
                owed = owed * universe.to(part.device)[part % local.table.num_rows]
            if self.deviation:
                scale = owed.double().sqrt() * (self.rate * self.deviation) / self.divisor[client]
                noise = self._noise(local, part, done).mul_(scale.to(points)[:, None])
                if rows is None:
                    points[start:stop] += noise
                else:
                    add_rows_(points, part, noise)
            since[part] = done[client]

    def gradients(
        self, examples: Examples, epoch: Epoch, number: int, step: int
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Loss ``(examples,)``, and per table rows ``(examples, k)`` and gradients ``(examples, k, dim)`` in the frame
        there, those of dense parameters ``(examples, numbers)``: each of its example's weighted loss alone.
        """
        start, stop = epoch.steps[step], epoch.steps[step + 1]
        size, client = stop - start, epoch.client[start:stop]
        ids: dict[str, Tensor] = {}
        vectors: dict[str, Tensor] = {}
        candidates: dict[str, Candidates] = {}
        for local in self.locals_:
            name, points = local.table.name, local.parameter.points
            ids[name] = local.lookups[number][start:stop]
            gathered = points.index_select(0, ids[name].reshape(-1))
            vectors[name] = gathered.view(*ids[name].shape, points.shape[1]).requires_grad_()
            found = candidates_of(self.task, local, examples, epoch, number, step) if size else None
            if found is not None:
                candidates[name], positions = of_each_example(*found)
                ids[name] = torch.cat((ids[name], positions), 1)
        own = {
            name: part.points.index_select(0, client).requires_grad_() for name, part in self.dense.items()
        }
        shaped = {part.name: own[part.name].view(size, *part.shape) for part in self.task.dense}
        batch = {name: column[start:stop] for name, column in epoch.columns.items()}
        if candidates and isinstance(self.task, ListwiseTask):
            loss = self.task.loss(vectors, shaped, batch, candidates)
        elif size:
            loss = self.task.loss(vectors, shaped, batch)
        else:  # an empty batch; a listwise task has nothing to compare
            loss = self.divisor.new_zeros(0) + 0 * sum(
                value.sum() for value in (*vectors.values(), *own.values())
            )
        compared = {name: found.points for name, found in candidates.items()}
        wanted = [*vectors.values(), *own.values(), *compared.values()]
        scale = epoch.scale[start:stop].to(loss.dtype)
        found_of = iter(torch.autograd.grad(loss, wanted, scale, materialize_grads=True))
        of_vectors, of_dense, of_compared = (
            {name: next(found_of) for name in parts} for parts in (vectors, own, compared)
        )
        gradients = {}
        for local in self.locals_:
            name, space = local.table.name, local.parameter.manifold
            gradient, points = of_vectors[name], vectors[name].detach()
            if name in compared:
                gradient = torch.cat((gradient, of_compared[name]), 1)
                points = torch.cat((points, compared[name].detach()), 1)
            gradients[name] = space.to_frame(points, space.riemannian_gradient(points, gradient))
            universe = self.privacy.universe.get(name) if local.table.shared else None
            if universe is not None:
                inside = universe.to(points.device)[ids[name] % local.table.num_rows]
                gradients[name] = gradients[name] * inside[:, :, None]
        return loss.detach(), ids, gradients, of_dense

    def _clip(
        self, ids: Mapping[str, Tensor], gradients: dict[str, Tensor], of_dense: dict[str, Tensor]
    ) -> Tensor:
        """Factors ``(examples,)`` that bound ALL of an example's gradients jointly."""
        squares = [squared_norms(ids[name], gradient) for name, gradient in gradients.items()]
        squares += [gradient.double().square().sum(1) for gradient in of_dense.values()]
        norms = torch.stack(squares).sum(0).sqrt() if squares else self.divisor[:0]
        sound = torch.isfinite(norms)
        if not bool(sound.all()):  # NaN would pass through a norm, and the other examples go down with it
            for held in (gradients, of_dense):
                for name, gradient in held.items():
                    kept = sound.view(-1, *(1,) * (gradient.dim() - 1))
                    held[name] = torch.where(kept, gradient, 0.0)
        return torch.where(sound, (self.privacy.clip_norm / norms).clamp(max=1.0), 0.0)

    def _move(self, local: Local, rows: Tensor, clipped: Tensor, active: Tensor, done: Tensor) -> None:
        """A step on a table's copy from gradients ``(look-ups, dim)`` of rows ``(look-ups,)``."""
        moved = torch.nonzero(self._moves(local, active)).view(-1)
        total = clipped.new_zeros((len(local.keys), clipped.shape[1]))
        total = add_rows_(total, rows, clipped).index_select(0, moved)
        if self.deviation:
            total += self._noise(local, moved, done + 1).mul_(self.deviation)
        total /= self.divisor[self._client_of(local, moved)].to(total)[:, None]
        self.optimizer.follow(local.parameter, moved, total, self.rate, self.max_step)

    def _moves(self, local: Local, active: Tensor) -> Tensor:
        """Whether each row of the copy moves in a step: all of the universe, of clients that have one."""
        moves = active.repeat_interleave(local.table.num_rows)
        universe = self.privacy.universe.get(local.table.name) if local.table.shared else None
        return moves if universe is None else moves & universe.to(moves.device).repeat(len(active))

    def _move_dense(self, name: str, client: Tensor, clipped: Tensor, active: Tensor, done: Tensor) -> None:
        parameter, moved = self.dense[name], torch.nonzero(active).view(-1)
        total = add_rows_(clipped.new_zeros((len(active), clipped.shape[1])), client, clipped)
        total = total.index_select(0, moved)
        if self.deviation:
            numbers = (self.clients[moved.cpu().numpy()], done[moved].cpu().numpy() + 1)
            noise = self.privacy.noise.normal(
                f"example/{name}", total.shape[1], total.dtype, self.round, *numbers
            )
            total += noise.to(total.device).mul_(self.deviation)
        total /= self.divisor[moved].to(total)[:, None]
        self.optimizer.follow(parameter, moved, total, self.dense_rate)


def of_each_example(shared: Candidates, positions: Tensor) -> tuple[Candidates, Tensor]:
    """The same candidates, a copy for each example: gradients are its own; and its rows ``(examples, most)``."""
    client = shared.client
    own = replace(
        shared,
        points=shared.points.detach().index_select(0, client).requires_grad_(),
        weight=shared.weight.index_select(0, client),
        client=torch.arange(len(client), device=client.device),
    )
    return own, positions.view(len(shared.points), -1).index_select(0, client)


def squared_norms(ids: Tensor, gradients: Tensor) -> Tensor:
    """Squared norm ``(examples,)`` of each example's gradient of a table, rows that it names more than once added up.

    Args:
        ids: ``(examples, k)`` rows.
        gradients: ``(examples, k, dim)``.
    """
    squares: Tensor = torch.linalg.vecdot(gradients, gradients).double().sum(1)
    if ids.shape[1] < 2:
        return squares
    ordered, order = ids.sort(1)
    repeats = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if not bool(repeats.any()):
        return squares
    again = torch.nonzero(repeats).view(-1)
    ordered, order = ordered[again], order[again]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = first.view(-1).cumsum(0) - 1
    parts = gradients[again].gather(1, order[:, :, None].expand(-1, -1, gradients.shape[2]))
    added = parts.new_zeros((int(place[-1]) + 1, gradients.shape[2]))
    added = add_rows_(added, place, parts.flatten(0, 1))
    example = torch.arange(len(again), device=ids.device)[:, None].expand_as(first)[first]
    own = torch.zeros(len(again), dtype=torch.float64, device=ids.device)
    squares[again] = own.scatter_add_(0, example, torch.linalg.vecdot(added, added).double())
    return squares
