"""The slow, obvious way: one client after another, one batch after another, autograd on full tables.

Candidates of a listwise loss are looked up again in every batch, all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedemb.data.shards import Shards
from fedemb.seeds import bits, stream_keys, uniforms
from fedemb.train.candidates import candidate_tables
from fedemb.train.optimizers import SGD, Adagrad, Adam
from fedemb.train.rows import LocalTraining
from fedemb.types import Candidates, Drawn, Table, Task


@dataclass
class ClientResult:
    tables: dict[str, Tensor]
    personal: dict[str, Tensor]
    dense: dict[str, Tensor]
    counts: dict[str, Tensor]
    moved: dict[str, set[int]]
    loss: float
    examples: int


def _step_rows(settings: LocalTraining, manifold, points, gradient, touched, state, rate) -> None:
    """One optimiser step on the touched rows of a full table, row by row."""
    for row in touched:
        x, g = points[row], gradient[row]
        tangent = manifold.riemannian_gradient(x, g)
        optimizer = settings.optimizer
        if isinstance(optimizer, SGD):
            move = -rate * tangent
            if settings.max_step is not None:
                move = move * min(1.0, settings.max_step / max(float(manifold.norm(x, move)), 1e-300))
            points[row] = manifold.project(manifold.exp(x, move))
            continue
        frame = manifold.to_frame(x, tangent)
        entry = state.setdefault(row, {"m": 0.0, "v": 0.0, "t": 0})
        if isinstance(optimizer, Adagrad):
            entry["v"] = entry["v"] + frame**2
            step = frame / (entry["v"].sqrt() + optimizer.epsilon)
        else:
            assert isinstance(optimizer, Adam)
            entry["t"] += 1
            entry["m"] = optimizer.beta1 * entry["m"] + (1 - optimizer.beta1) * frame
            entry["v"] = optimizer.beta2 * entry["v"] + (1 - optimizer.beta2) * frame**2
            m = entry["m"] / (1 - optimizer.beta1 ** entry["t"])
            v = entry["v"] / (1 - optimizer.beta2 ** entry["t"])
            step = m / (v.sqrt() + optimizer.epsilon)
        step = -rate * step
        if settings.max_step is not None:
            step = step * min(1.0, settings.max_step / max(float(step.norm()), 1e-300))
        points[row] = manifold.project(manifold.exp(x, manifold.from_frame(x, step)))


def _drawn(
    table: Table, drawn: Drawn, step: int, seed: int, round: int, epoch: int, client: int
) -> tuple[list[int], list[float]]:
    """One row from each of equally likely ranges of a table, and how many rows each stands for."""
    count = min(drawn.count, table.num_rows)
    key = stream_keys(seed, f"candidates/{table.name}", round, epoch, client)
    numbers = uniforms(key, count, step * count)[0]
    chance, rows = [1 / table.num_rows] * table.num_rows, []
    if drawn.cdf is not None:
        cdf = drawn.cdf.tolist()
        chance = [after - before for before, after in pairwise([0.0, *cdf])]
    for n, u in enumerate(numbers):
        row, left = 0, (n + u) / count
        while row < table.num_rows - 1 and left >= sum(chance[: row + 1]):
            row += 1
        rows.append(row)
    return rows, [1 / (count * chance[row]) for row in rows]


def _candidates(
    leaves: dict[str, Tensor],
    rows: dict[str, tuple[list[int], list[float]]],
    ids: dict[str, Tensor],
    known: list[set[int]] | None,
) -> dict[str, Candidates]:
    """These rows of each table beside the lookups of a batch; ``known``: true answers of each example."""
    found = {}
    for name, (ours, stands_for) in rows.items():
        place = torch.tensor(
            [[ours.index(i) if i in ours else -1 for i in line] for line in ids[name].tolist()]
        )
        weight = [
            0.0 if row in ours[:n] else sum(w for r, w in zip(ours, stands_for, strict=True) if r == row)
            for n, row in enumerate(ours)
        ]
        true = None
        if known is not None:
            first = [row not in ours[:n] for n, row in enumerate(ours)]
            true = torch.tensor(
                [[row in k and new for row, new in zip(ours, first, strict=True)] for k in known]
            )
        client = torch.zeros(len(place), dtype=torch.int64)
        found[name] = Candidates(
            leaves[name][ours][None], torch.tensor([weight], dtype=torch.float64), client, place, true
        )
    return found


def train_client(
    task: Task,
    tables: dict[str, Tensor],
    dense: dict[str, Tensor],
    personal: dict[str, Tensor],
    shard: Shards,
    client: int,
    settings: LocalTraining,
    seed: int,
    round: int,
    frozen: frozenset[str] = frozenset(),
    seen_lines: Sequence[int] | None = None,
    first_epoch: int = 0,
) -> ClientResult:
    """Trains one client on copies of the full tables (``personal``: its own rows).

    ``frozen`` stays as it is, and of the client's examples only ``seen_lines`` are trained on.
    """
    from fedemb.manifolds import Euclidean

    spaces = {t.name: t.manifold for t in task.tables}
    points = {t.name: (tables if t.shared else personal)[t.name].clone() for t in task.tables}
    own = {name: value.clone() for name, value in dense.items()}
    states: dict[str, dict] = {name: {} for name in [*points, *own]}
    counts = {t.name: torch.zeros(len(points[t.name])) for t in task.tables}
    moved: dict[str, set[int]] = {t.name: set() for t in task.tables}
    columns = {name: torch.from_numpy(np.asarray(c)) for name, c in shard.columns.items()}
    n, total, seen = shard.num_examples, 0.0, 0
    rate = settings.rate(round)
    epochs, known = [], None
    for epoch in range(first_epoch, first_epoch + settings.epochs):
        key = stream_keys(seed, "sample", round, epoch, client)
        draws = torch.zeros((n, task.num_draws), dtype=torch.float64)
        for line in range(n):
            if task.num_draws:
                draws[line] = torch.from_numpy(uniforms(key, task.num_draws, line * task.num_draws)[0])
        batch = dict(task.sample(columns, draws))
        if task.exclusion:
            e = task.exclusion
            pairs = {
                (int(columns[e.query][i]) if e.query else 0, int(columns[e.answer][i])) for i in range(n)
            }
            queries = [int(columns[e.query][i]) if e.query else 0 for i in range(n)]
            if e.candidates is not None:
                candidates = batch[e.candidates]
                batch["known"] = torch.tensor(
                    [[(queries[i], int(c)) in pairs for c in candidates[i]] for i in range(n)]
                ).reshape(candidates.shape)
            else:
                known = [{answer for query, answer in pairs if query == queries[i]} for i in range(n)]
        keep = batch.pop("keep", torch.ones(n, dtype=torch.bool))
        shuffle = stream_keys(seed, "shuffle", round, epoch, client)
        order = [i for i in range(n) if keep[i] and (seen_lines is None or i in seen_lines)]
        order.sort(key=lambda i: int(bits(shuffle, 1, i)[0, 0]))
        epochs.append((batch, order))
    held = {}
    for table, drawn in candidate_tables(task):
        if drawn is None:
            ids = [
                task.lookup({n: c[order] for n, c in batch.items()})[table.name] for batch, order in epochs
            ]
            mine = sorted({int(i) for part in ids for i in part.flatten()})
            held[table.name] = mine, [1.0] * len(mine)
    for epoch, (batch, order) in enumerate(epochs, first_epoch):
        size = settings.batch_size or max(1, len(order))
        for start in range(0, len(order), size):
            lines = torch.tensor(order[start : start + size])
            part = {name: column[lines] for name, column in batch.items()}
            leaves = {name: value.clone().requires_grad_() for name, value in points.items()}
            dense_leaves = {name: value.clone().requires_grad_() for name, value in own.items()}
            ids = task.lookup(part)
            vectors = {name: leaves[name][ids[name]] for name in points}
            expanded = {name: v.expand(len(lines), *v.shape) for name, v in dense_leaves.items()}
            rows = dict(held)
            for table, drawn in candidate_tables(task):
                if drawn is not None:
                    rows[table.name] = _drawn(table, drawn, start // size, seed, round, epoch, client)
            if rows:
                own_known = None if known is None else [known[i] for i in lines.tolist()]
                loss = task.loss(vectors, expanded, part, _candidates(leaves, rows, ids, own_known))
            else:
                loss = task.loss(vectors, expanded, part)
            total += float(loss.detach().sum())
            seen += len(lines)
            weights = part["weight"] if "weight" in part else torch.ones_like(loss)
            (loss * weights / len(lines)).sum().backward()
            for name in points.keys() - frozen:
                touched = sorted({*ids[name].flatten().tolist(), *rows.get(name, ([], []))[0]})
                moved[name] |= set(touched)
                negatives = part["negatives"].shape[1] if "negatives" in part else 0
                seen_ids = ids[name][:, : max(1, ids[name].shape[1] - negatives)]
                counts[name] += torch.bincount(seen_ids.flatten(), minlength=len(points[name]))
                with torch.no_grad():
                    _step_rows(
                        settings, spaces[name], points[name], leaves[name].grad, touched, states[name], rate
                    )
            for name in own.keys() - frozen:
                gradient = dense_leaves[name].grad
                flat, grad = own[name].view(1, -1), gradient.reshape(1, -1)
                with torch.no_grad():
                    free = replace(settings, max_step=None)
                    _step_rows(free, Euclidean(flat.dtype), flat, grad, [0], states[name], rate)
    shared = {t.name: points[t.name] for t in task.tables if t.shared}
    private = {t.name: points[t.name] for t in task.tables if not t.shared}
    return ClientResult(shared, private, own, counts, moved, total, seen)


def reconstruct_and_train(
    task: Task,
    tables: dict[str, Tensor],
    dense: dict[str, Tensor],
    personal: dict[str, Tensor],
    shard: Shards,
    client: int,
    settings: LocalTraining,
    seed: int,
    round: int,
) -> ClientResult:
    """Singhal et al. 2021, algorithm 1, for one client whose personal rows begin as ``personal``."""
    n = shard.num_examples
    key = stream_keys(seed, "support", round, client)
    order = sorted(range(n), key=lambda line: float(uniforms(key, 1, line)[0, 0]))
    support = query = order
    if settings.support_share < 1 and n > 1:
        size = min(max(int(n * settings.support_share + 0.5), 1), n - 1)
        support, query = order[:size], order[size:]
    names = frozenset(table.name for table in task.tables if not table.shared)
    others = frozenset(table.name for table in task.tables if table.shared) | dense.keys()
    rate, epochs = settings.reconstruction_learning_rate, settings.reconstruction_epochs
    assert rate is not None
    first = replace(settings, epochs=epochs, learning_rate=rate, burn_in_rounds=0, decay=1.0)
    found = train_client(
        task, tables, dense, personal, shard, client, first, seed, round, others, support
    ).personal
    return train_client(
        task, tables, dense, found, shard, client, settings, seed, round, names, query, epochs
    )
