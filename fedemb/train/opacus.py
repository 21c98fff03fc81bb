"""DP-SGD of one client after another through Opacus: the reference that the cohort trainer is compared with.

Each client's local model is a module of its own: an ``nn.Embedding`` of all rows for each table, whose entries are
offsets in the frame at each row, and dense parameters. Opacus records per-example gradients, clips them jointly, adds
the noise and steps; then rows move by the exponential map and the offsets begin at zero again. So its norms are the
Riemannian ones, on every manifold.

Reference: Yousefpour et al., "Opacus: User-Friendly Differential Privacy Library in PyTorch", 2021.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedemb.data.shards import Shards
from fedemb.seeds import stream_keys
from fedemb.train.epochs import Epoch, Examples, examples_of
from fedemb.train.local import Local, candidates_of, gather
from fedemb.train.optimizers import SGD
from fedemb.train.personal import PersonalRows
from fedemb.train.poisson import Sampling, poisson_epoch
from fedemb.train.private import of_each_example
from fedemb.train.rows import SUM, LocalTraining, concatenate, row_updates
from fedemb.types import Candidates, Dense, Int64, ListwiseTask, Manifold, Task, Updates


class _InFrame(torch.autograd.Function):
    """The points themselves; backwards, their gradients become those of offsets in the frame at each."""

    @staticmethod
    def forward(ctx: Any, offsets: Tensor, points: Tensor, manifold: Manifold) -> Tensor:
        """Points ``(examples, k, coordinates)`` for offsets ``(examples, k, dim)`` that are zero."""
        ctx.save_for_backward(points)
        ctx.manifold = manifold
        return points.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        """The Riemannian gradient ``(examples, k, dim)`` in the frame."""
        (points,) = ctx.saved_tensors
        manifold = ctx.manifold
        frame = manifold.to_frame(points, manifold.riemannian_gradient(points, gradients[0]))
        return frame.contiguous(), None, None


class _Copies(nn.Module):
    """A dense parameter, a copy for each example."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.reshape(1, -1).clone())

    def forward(self, size: Tensor) -> Tensor:
        """``(examples, numbers)`` for as many examples as ``size`` ``(examples, 1)`` has rows."""
        return self.value.expand(len(size), -1) + 0 * size


class _Model(nn.Module):
    """What a client trains: offsets of the rows of each table, and dense parameters."""

    def __init__(self, locals_: list[Local], dense: tuple[Dense, ...], values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.offsets = nn.ModuleDict()
        for local in locals_:
            table = local.table
            rows = nn.Embedding(len(local.keys), table.dim, dtype=table.manifold.dtype)
            nn.init.zeros_(rows.weight)
            self.offsets[f"table/{table.name}".replace(".", "_")] = rows
        self.copies = nn.ModuleDict(
            {f"dense/{d.name}".replace(".", "_"): _Copies(values[d.name]) for d in dense}
        )

    def forward(self, ids: Mapping[str, Tensor], size: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Offsets ``(examples, k, dim)`` by table, and copies ``(examples, numbers)`` of dense parameters."""
        offsets = {name: self.offsets[f"table/{name}".replace(".", "_")](rows) for name, rows in ids.items()}
        copies = {key.removeprefix("dense/"): module(size) for key, module in self.copies.items()}
        return offsets, copies


def _per_example(layer: _Copies, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Gradients ``(examples, 1, numbers)`` of a dense parameter: those of its copies."""
    return {layer.value: backprops[:, None, :]}


def train_with_opacus(
    task: Task,
    tables: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    personal: Mapping[str, PersonalRows],
    shards: Shards,
    clients: Int64,
    settings: LocalTraining,
    seed: int,
    round: int,
) -> Updates:
    """What ``train_cohort`` returns of clients whose examples are protected, by Opacus and one client after another.

    Batches are those of the cohort trainer; the noise is Opacus's own.

    Args:
        task: What is learnt.
        tables: Shared tables as received; not changed.
        dense: Dense parameters as received; not changed.
        personal: Personal tables; the rows of these clients are changed in place.
        shards: Training examples of these clients, in their order.
        clients: ``(clients,)`` ids, ascending.
        settings: Local training, with ``privacy`` and plain SGD.
        seed: The run's seed.
        round: The round.

    Raises:
        ValueError: If nobody is to be protected, or the optimiser is another one.
    """
    if settings.privacy is None:
        raise ValueError("train_with_opacus needs settings.privacy, got None; use train_cohort")
    if not isinstance(settings.optimizer, SGD) or settings.max_step is not None:
        raise ValueError("train_with_opacus needs train.optimizer=sgd and train.max_step=null")
    return concatenate(
        [
            _train_client(task, tables, dense, personal, shards.take(np.array([at])), clients[at : at + 1], settings,
                          seed, round)
            for at in range(len(clients))
        ]
    )  # fmt: skip


def _train_client(
    task: Task,
    tables: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    personal: Mapping[str, PersonalRows],
    shard: Shards,
    client: Int64,
    settings: LocalTraining,
    seed: int,
    round: int,
) -> Updates:
    private = settings.privacy
    assert private is not None
    sampling, examples = Sampling.of(shard.sizes, settings.batch_size), examples_of(task, shard, client)
    coins = private.noise.coins(seed)
    epochs = [
        poisson_epoch(task, examples, settings.batch_size, seed, coins, round, number, client)
        for number in range(settings.epochs)
    ]
    cpu = torch.device("cpu")
    locals_ = [
        gather(table, epochs, client, tables, personal, seed, cpu, None, True) for table in task.tables
    ]
    model = _Model(locals_, task.dense, dense)
    divisor = 1.0 if settings.reduction == SUM else float(sampling.expected[0])
    optimizer, wrapped = _opacus(model, settings, divisor, seed, round, int(client[0]))
    loss, count = 0.0, 0
    for number, epoch in enumerate(epochs):
        for step in range(len(epoch.steps) - 1):
            losses = _step(task, wrapped, locals_, examples, epoch, number, step, private.universe)
            _advance(optimizer, model, locals_, private.universe)
            loss, count = loss + float(losses.sum()), count + len(losses)
    for local in locals_:
        if not local.table.shared:
            personal[local.table.name].put(local.keys, local.parameter.points)
    values = zip(task.dense, model.copies.parameters(), strict=True)
    moved = {part.name: value.detach() for part, value in values}
    return Updates(
        clients=client,
        tables={local.table.name: row_updates(local, epochs, 1) for local in locals_ if local.table.shared},
        dense={d.name: (moved[d.name] - dense[d.name].reshape(1, -1)).view(1, *d.shape) for d in task.dense},
        weights=torch.ones(1, dtype=torch.float64),
        metrics={"examples": torch.tensor([float(count)]).double(), "loss": torch.tensor([loss]).double()},
    )


def _opacus(
    model: _Model, settings: LocalTraining, divisor: float, seed: int, round: int, client: int
) -> tuple[Any, Any]:
    """Opacus's optimiser, and the model that records per-example gradients."""
    with warnings.catch_warnings():  # what its import says of torch's own future
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule
        from opacus.optimizers import DPOptimizer
    private = settings.privacy
    assert private is not None
    GradSampleModule.GRAD_SAMPLERS[_Copies] = _per_example
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    groups = [{"params": list(model.offsets.parameters()), "lr": settings.rate(round) / divisor}]
    if len(model.copies):
        groups.append({"params": list(model.copies.parameters()), "lr": settings.dense_rate(round) / divisor})
    generator = None
    if private.noise.reproducible:
        key = stream_keys(private.noise.seed or 0, "opacus", round, np.array([client]))[0]
        generator = torch.Generator().manual_seed(int(key) >> 1)
    optimizer = DPOptimizer(
        torch.optim.SGD(groups),
        noise_multiplier=private.noise_multiplier,
        max_grad_norm=private.clip_norm,
        expected_batch_size=1,
        loss_reduction="sum",
        generator=generator,
    )
    return optimizer, wrapped


def _step(
    task: Task,
    model: Any,
    locals_: list[Local],
    examples: Examples,
    epoch: Epoch,
    number: int,
    step: int,
    universe: Mapping[str, Tensor],
) -> Tensor:
    """Leaves per-example gradients of a batch with the model; returns the loss of its examples."""
    start, stop = epoch.steps[step], epoch.steps[step + 1]
    size = stop - start
    if not size:  # a step of noise alone; hooks fail on nothing
        for parameter in model.parameters():
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        return torch.zeros(0)
    ids = {local.table.name: local.lookups[number][start:stop] for local in locals_}
    drawn: dict[str, Candidates] = {}
    for local in locals_:
        found = candidates_of(task, local, examples, epoch, number, step)
        if found is not None:
            name = local.table.name
            drawn[name], positions = of_each_example(*found)
            ids[name] = torch.cat((ids[name], positions), 1)
    offsets, copies = model(ids, torch.zeros((size, 1)))
    vectors = {}
    for local in locals_:
        name, width = local.table.name, local.lookups[number].shape[1]
        own = _masked(offsets[name], ids[name], local, universe)
        points = local.parameter.points[ids[name]]
        whole = _InFrame.apply(own, points, local.table.manifold)  # type: ignore[no-untyped-call]
        vectors[name] = whole[:, :width]
        if name in drawn:
            drawn[name] = replace(drawn[name], points=whole[:, width:])
    shaped = {part.name: copies[part.name].view(size, *part.shape) for part in task.dense}
    batch = {name: column[start:stop] for name, column in epoch.columns.items()}
    listwise = bool(drawn) and isinstance(task, ListwiseTask)
    loss: Tensor = task.loss(vectors, shaped, batch, drawn) if listwise else task.loss(vectors, shaped, batch)  # type: ignore[call-arg]
    unused = sum(value.sum() for value in (*vectors.values(), *copies.values()))
    weighted = (loss * epoch.scale[start:stop].to(loss.dtype)).sum() + 0.0 * unused
    with warnings.catch_warnings():  # ids have no gradients, which is as it should be
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        torch.autograd.backward(weighted)
    return loss.detach()


def _masked(offsets: Tensor, ids: Tensor, local: Local, universe: Mapping[str, Tensor]) -> Tensor:
    """Offsets through which no gradient reaches rows outside of the universe."""
    if not local.table.shared or local.table.name not in universe:
        return offsets
    inside = universe[local.table.name][ids % local.table.num_rows][..., None]
    return torch.where(inside, offsets, offsets.detach())


def _advance(optimizer: Any, model: _Model, locals_: list[Local], universe: Mapping[str, Tensor]) -> None:
    """Opacus's step, and rows moved by what it made of their offsets."""
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for local in locals_:
            table, points = local.table, local.parameter.points
            weight = model.offsets[f"table/{table.name}".replace(".", "_")].weight
            assert isinstance(weight, Tensor)
            step = weight.detach().clone()
            if table.shared and table.name in universe:
                step[~universe[table.name]] = 0
            moved = table.manifold.project(
                table.manifold.exp(points, table.manifold.from_frame(points, step))
            )
            points.copy_(torch.where((step != 0).any(1, keepdim=True), moved, points))
            weight.zero_()
