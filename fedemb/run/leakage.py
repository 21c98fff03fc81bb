"""What a server sees of one client under a pipeline, and what two attacks make of it.

    a client's update, as it arrives:     ──> how long is each row?       ──> rows that the client holds
    its own, or only the sum of a cohort  ──> along an example's gradient ──> whether it trained on the example

The rows that a client holds are what it bought, said or suffers from; a membership attack tells examples that it
trained on from those of others. Both are made with the protection and without.

Reference: the alignment of an update with an example's gradient, as Nasr, Shokri, Houmansadr, "Comprehensive Privacy
Analysis of Deep Learning", S&P 2019, and Yeom et al. 2018 to first order, use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from fedemb.atomic import write_atomically
from fedemb.build import Parts, build
from fedemb.config import config_of
from fedemb.data.shards import Shards
from fedemb.manifolds import Euclidean
from fedemb.model import Run
from fedemb.privacy.attacks import Float64, auc, true_positive_rate
from fedemb.privacy.noise import Noise
from fedemb.privacy.settings import DISTRIBUTED, EXAMPLE, LOCAL
from fedemb.train.epochs import examples_of
from fedemb.train.host import Host
from fedemb.train.local import gather
from fedemb.train.optimizers import SGD, Parameter
from fedemb.train.personal import PersonalRows, personal_rows
from fedemb.train.poisson import Sampling, poisson_epoch
from fedemb.train.private import ExamplePrivacy, PrivateSteps
from fedemb.types import Int64, Total, Updates

_ROUND = 1_000_000  # whose draws no round of training uses


@dataclass(frozen=True)
class Leak:
    """How well the attacks do.

    Attributes:
        seen: What the server sees, in words.
        rows_auc: Of telling rows that a client holds from others, mean over clients.
        rows_error: Its standard error over clients.
        members_auc: Of telling a client's examples from others', mean over clients.
        members_error: Its standard error over clients.
        members_found: Share of members that are found where one in a hundred of the others is taken for one.
    """

    seen: str
    rows_auc: float
    rows_error: float
    members_auc: float
    members_error: float
    members_found: float


def leakage(folder: Path, num_clients: int, seed: int) -> dict[str, Leak]:
    """What the pipeline of a run shows of a client at its last model, protected and not; also in ``leakage.json``.

    Args:
        folder: The run folder.
        num_clients: Clients that are attacked.
        seed: Of which ones.
    """
    config = config_of(folder)
    parts = build(config)
    tensors, dense = Run(folder).tensors()
    model = {**tensors, **dense}
    open_config = config.copy()
    open_config.privacy = OmegaConf.create({"name": "none", "uses_other_examples": False})
    if config.aggregate.name == "secure":
        open_config.aggregate.name, open_config.aggregate.clip_norm = "plain", None
    found = {"without": attacked(build(open_config), model, num_clients, seed)}
    if parts.protection is not None:
        found = {"protected": attacked(parts, model, num_clients, seed), **found}
    text = json.dumps({name: vars(leak) for name, leak in found.items()}, indent=2)
    write_atomically(folder / "leakage.json", lambda path: path.write_text(text))
    return found


def attacked(parts: Parts, model: Mapping[str, Tensor], num_clients: int, seed: int) -> Leak:
    """How well the attacks do against these parts at a model."""
    rng, sizes = np.random.default_rng(seed), parts.task.examples(parts.dataset.train).sizes
    eligible = np.flatnonzero(sizes > 1)
    chosen = np.sort(rng.choice(eligible, min(num_clients, len(eligible)), replace=False))
    host, personal = parts.host(0, 1), personal_rows(parts.task.tables, 0, len(sizes))
    mode = "none" if parts.protection is None else parts.protection.settings.name
    total = _sum_of(parts, model, personal, eligible) if mode == DISTRIBUTED else None
    rows, members, inside, outside = [], [], [], []
    for client in chosen:
        seen = total if total is not None else _of_one(parts, host, model, personal, client)
        rows.append(_rows_auc(parts, host, seen, client))
        others = np.setdiff1d(eligible, [client])
        own = host.examples.take(np.array([client]))
        strangers = _drawn(host.examples, rng.choice(others), own.num_examples, rng)
        there = _alignment(parts, model, personal, seen, own, client)
        elsewhere = _alignment(parts, model, personal, seen, strangers, client)
        members.append(auc(there, elsewhere))
        inside.append(there)
        outside.append(elsewhere)
    where = {
        DISTRIBUTED: f"the noisy sum of {len(eligible)} clients' updates",
        EXAMPLE: "the client's own update, trained under noise",
        LOCAL: "the client's own update, with its noise",
    }
    plain = "the client's own update" + ("" if mode == "none" else ", clipped: this server is trusted")
    found = true_positive_rate(np.concatenate(inside), np.concatenate(outside))
    return Leak(where.get(mode, plain), *_mean(rows), *_mean(members), found)


def _mean(values: list[float]) -> tuple[float, float]:
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std(ddof=1) / len(known) ** 0.5) if len(known) > 1 else float(
        "nan"
    )


def _updates(
    parts: Parts,
    host: Host,
    model: Mapping[str, Tensor],
    personal: Mapping[str, PersonalRows],
    clients: Int64,
) -> Updates:
    tables = {table.name: model[table.name] for table in parts.shared}
    dense = {part.name: model[part.name] for part in parts.task.dense}
    own = {
        name: PersonalRows(r.table, r.first, r.points.clone(), r.known.clone())
        for name, r in personal.items()
    }
    return host.train(tables, dense, own, clients, _ROUND)


def _of_one(
    parts: Parts,
    host: Host,
    model: Mapping[str, Tensor],
    personal: Mapping[str, PersonalRows],
    client: np.int64,
) -> dict[str, Tensor]:
    """A client's update as it arrives: ``(num_rows, dim)`` per table, NaN in rows that were not sent."""
    updates = _updates(parts, host, model, personal, np.array([client]))
    found = {}
    for table in parts.shared:
        rows = updates.tables[table.name]
        found[table.name] = torch.full((table.num_rows, table.dim), float("nan"), dtype=torch.float64)
        found[table.name][rows.rows] = rows.values.double()
    return {**found, **{name: value[0].double() for name, value in updates.dense.items()}}


def _sum_of(
    parts: Parts, model: Mapping[str, Tensor], personal: Mapping[str, PersonalRows], clients: Int64
) -> dict[str, Tensor]:
    """All that a server sees of a round in which everybody takes part, where it sees sums alone."""
    aggregator = parts.aggregator_of({}, len(clients))
    for part in np.array_split(clients, max(1, len(clients) // 64)):
        aggregator.add(_updates(parts, parts.host(0, 1), model, personal, part), model)
    total: Total = aggregator.finish(model)
    found = {}
    for table in parts.shared:
        found[table.name] = torch.full((table.num_rows, table.dim), float("nan"), dtype=torch.float64)
        found[table.name][total.tables[table.name].rows] = total.tables[table.name].steps.double()
    return {**found, **{name: value.double() for name, value in total.dense.items()}}


def _rows_auc(parts: Parts, host: Host, seen: Mapping[str, Tensor], client: np.int64) -> float:
    """Of the length of what is seen of a row of the main table, for rows that the client's examples name."""
    table = parts.shared[0]
    alone = replace(host, shards=host.shards.take(np.array([client])), first=int(client))
    held = (alone.holders()[table.name] > 0).numpy()
    lengths = seen[table.name].norm(dim=1)
    scores = torch.where(torch.isnan(lengths), -1.0, lengths).numpy()  # what was not sent was not touched
    return auc(scores[held], scores[~held])


def _drawn(examples: Shards, client: np.int64, count: int, rng: np.random.Generator) -> Shards:
    """So many examples of another client, as those of one."""
    own = examples.take(np.array([client]))
    at = np.sort(rng.choice(own.num_examples, min(count, own.num_examples), replace=False))
    return Shards({name: column[at] for name, column in own.columns.items()}, np.array([0, len(at)]))


def _alignment(
    parts: Parts,
    model: Mapping[str, Tensor],
    personal: Mapping[str, PersonalRows],
    seen: Mapping[str, Tensor],
    examples: Shards,
    client: np.int64,
) -> Float64:
    """How much each example's loss falls along what is seen, over the length of its gradient ``(examples,)``.

    Personal rows are the client's as they begin, which is more than a server has.
    """
    task, clients = parts.task, np.array([client])
    ready = examples_of(task, examples, clients)
    epoch = poisson_epoch(task, ready, 0, parts.seed, parts.seed, _ROUND, 0, clients)
    tables = {table.name: model[table.name] for table in parts.shared}
    locals_ = [
        gather(table, [epoch], clients, tables, personal, parts.seed, torch.device("cpu"), None, True)
        for table in task.tables
    ]
    dense = {
        part.name: Parameter(model[part.name].reshape(1, -1).clone(), Euclidean(model[part.name].dtype))
        for part in task.dense
    }
    steps = PrivateSteps.of(
        task, ExamplePrivacy(1.0, 0.0, Noise(0)), SGD(), None, 0.0, 0.0, _ROUND, clients,
        Sampling.of(examples.sizes, 0), True, locals_, dense,
    )  # fmt: skip
    _, ids, gradients, of_dense = steps.gradients(ready, epoch, 0, 0)
    falls = torch.zeros(examples.num_examples, dtype=torch.float64)
    squares = torch.zeros_like(falls)
    for table in parts.shared:
        own = torch.nan_to_num(seen[table.name])[ids[table.name]]
        gradient = gradients[table.name].double()
        falls -= (own * gradient).sum((1, 2))
        squares += gradient.square().sum((1, 2))
    for name, gradient in of_dense.items():
        falls -= (seen[name].reshape(1, -1) * gradient.double()).sum(1)
        squares += gradient.double().square().sum(1)
    return np.asarray((falls / squares.sqrt().clamp(min=1e-30)).numpy())


def table_of(found: Mapping[str, Leak]) -> str:
    """The report for a terminal."""
    lines = []
    for name, leak in found.items():
        lines += [
            f"{name}: the server sees {leak.seen}",
            f"  which rows the client holds: AUC {leak.rows_auc:.3f} ± {leak.rows_error:.3f}",
            f"  which examples are its own:  AUC {leak.members_auc:.3f} ± {leak.members_error:.3f}; "
            f"{100 * leak.members_found:.1f} % are found with 1 % false alarms",
        ]
    return "\n".join([*lines, "(0.5 is a coin)"])
