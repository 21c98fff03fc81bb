"""The server's half of a run as a Flower ``Strategy``: samples clients, talks to nodes, adds up, steps.

cohort ── split by node ──> one message per node ──> replies ── check ──> aggregator ── stages ──> optimiser
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedemb.aggregate.check import reject, select
from fedemb.errors import DataError, RunError
from fedemb.evaluate.measure import measured
from fedemb.flower.codec import decode, model_bytes, upload_bytes
from fedemb.flower.measurements import evaluated_of, fitted_of
from fedemb.flower.nodes import describe_nodes
from fedemb.flower.plan import Plan, Tally
from fedemb.flower.records import pack, unpack
from fedemb.stages import on_server
from fedemb.train.rows import concatenate
from fedemb.types import (
    Evaluated,
    Fitted,
    Int64,
    MetricsSink,
    StageContext,
    Stateful,
    Updates,
)

_log = logging.getLogger("fedemb")


class FederatedEmbedding(Strategy):
    """Federated training of tables by rows.

    Args:
        plan: What to do.
        tables: Shared tables ``(num_rows, coordinates)``, trained in place.
        dense: Dense parameters, trained in place.
        on_round: Told about every round.
        on_checkpoint: Called with the round after every ``checkpoint_every`` rounds.
        first_round: Where to begin; 1 unless a run is resumed.
        personal_folder: Where nodes keep their personal rows at a checkpoint.
        privacy_folder: Where nodes write down what was done to their clients' examples.
    """

    def __init__(
        self,
        plan: Plan,
        tables: dict[str, Tensor],
        dense: dict[str, Tensor],
        on_round: MetricsSink,
        on_checkpoint: Callable[[int], None] | None = None,
        first_round: int = 1,
        personal_folder: str = "",
        privacy_folder: str = "",
    ) -> None:
        self.plan, self.tables, self.dense = plan, tables, dense
        self.on_round, self.on_checkpoint = on_round, on_checkpoint
        self.first_round, self.personal_folder = first_round, personal_folder
        self.privacy_folder = privacy_folder
        self.tally = Tally()
        self.finished_rounds = first_round - 1
        self.evaluated: Evaluated | None = None
        self.fitted: dict[
            str, Tensor
        ] = {}  # by the last evaluation, to the tables as they stand; empty: nothing
        self.cohort: Int64 = np.zeros(0, dtype=np.int64)
        self._specs = {table.name: table for table in plan.tables}
        self._limits = {table.name: (table.num_rows, table.dim) for table in plan.tables}
        self.cohort_seed = plan.seed if plan.guard is None else plan.guard.protection.cohort_seed(plan.seed)
        self._loss = 0.0
        self._examples = 0.0

    def prepare(self, grid: Grid) -> None:
        """Meets the nodes; ``start`` does so by itself."""
        plan, selects = self.plan, self._selects()
        self.nodes = describe_nodes(
            grid, plan.num_nodes, plan.digest, plan.shapes, plan.want_holders, plan.timeout_seconds, selects
        )
        if selects and self.nodes.votes is not None and plan.guard is not None:
            plan.guard.choose_universe(self.nodes.votes, plan.stages)
        self.eligible = np.flatnonzero(self.nodes.sizes > 0)
        if not len(self.eligible):
            raise DataError(
                f"no training example is left at any of {len(self.nodes.sizes)} clients for this task"
            )
        plan.sampler.check(len(self.eligible))
        self.aggregator = plan.aggregator_of(self.nodes)

    def _selects(self) -> bool:
        """Whether a universe is still to be chosen; a run that is taken up has one."""
        if self.plan.guard is None or self.plan.guard.protection.selection is None:
            return False
        return not any(isinstance(stage, Stateful) and stage.confined for stage in self.plan.stages)

    def _cohort(self, round: int) -> Int64:
        """Who takes part; by coins that nobody can foretell, where the claim of privacy rests on that."""
        return self.plan.sampler(self.cohort_seed, round, self.eligible)

    def model(self) -> ArrayRecord:
        """The shared model as it stands."""
        return pack({**self.tables, **self.dense}, self.plan.by_reference)

    def _messages(
        self, kind: str, round: int, arrays: ArrayRecord, clients: Int64, fine_tune: bool = False
    ) -> Iterator[tuple[Message, Int64]]:
        config = ConfigRecord({"round": round, "fine_tune": fine_tune, "privacy_folder": self.privacy_folder})
        if self.plan.clip_norm is not None:
            config["clip_norm"] = self.plan.clip_norm
        for node, part in self.nodes.split(clients):
            ids = pack({"clients": torch.from_numpy(part)}, self.plan.by_reference)
            content = RecordDict({"model": arrays, "clients": ids, "config": config})
            yield Message(content, node, kind, group_id=str(round)), part

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for every node that hosts somebody of the round's cohort."""
        self.cohort = self._cohort(server_round)
        return [message for message, _ in self._messages("train", server_round, arrays, self.cohort)]

    def _exchange(
        self, grid: Grid, messages: list[tuple[Message, Int64]], round: int
    ) -> tuple[list[Message], dict[int, str]]:
        """Replies that can be used, and the clients whose node failed."""
        if not messages:
            return [], {}
        asked = {message.metadata.dst_node_id: part for message, part in messages}
        good: list[Message] = []
        failed: dict[int, str] = {}
        for reply in grid.send_and_receive([m for m, _ in messages], timeout=self.plan.timeout_seconds):
            node = reply.metadata.src_node_id
            if reply.metadata.group_id != str(round) or node not in asked:
                continue
            part = asked.pop(node)
            if reply.has_error():
                lines = (reply.error.reason or "no reason given").strip().splitlines()
                failed |= {int(client): f"node failed: {lines[-1]}" for client in part}
            else:
                good.append(reply)
        for part in asked.values():
            failed |= {int(client): "no reply in time" for client in part}
        return good, failed

    def _fold(self, replies: Iterable[Message]) -> dict[int, str]:
        """Adds replies to the running total, clients in ascending order whatever node they sit on."""
        parts: list[Updates] = []
        reasons: dict[int, str] = {}
        for reply in replies:
            reasons |= _spent(reply)
            record = reply.content.get("updates")
            if record is None:  # of clients whose budgets are spent
                continue
            assert isinstance(record, ArrayRecord)
            try:
                updates = decode(unpack(record))
            except ValueError as error:
                reasons |= {int(c): str(error) for c in self.cohort if self._hosted_by(c, reply)}
                continue
            sound, faults = reject(updates, self._limits, self.dense)
            reasons |= faults
            if sound is not None:
                parts.append(sound)
        for updates in _in_order(parts):
            self.aggregator.add(updates, self.tables)
            self._count(updates)
        return reasons

    def _hosted_by(self, client: np.int64, reply: Message) -> bool:
        at = int(np.searchsorted(self.nodes.bounds, client, side="right")) - 1
        return self.nodes.ids[at] == reply.metadata.src_node_id

    def _count(self, updates: Updates) -> None:
        examples, loss = updates.metrics["examples"], updates.metrics["loss"]
        finite = torch.isfinite(loss)
        self._examples += float(examples[finite].sum())
        self._loss += float(loss[finite].sum())
        self.tally.examples += float(examples.sum())
        self.tally.client_updates += len(updates.clients)
        self.tally.upload_bytes += upload_bytes(updates, self._specs)
        self.tally.upload_bytes_dense += len(updates.clients) * model_bytes(self.tables, self.dense)

    def _reject(self, reasons: Mapping[int, str]) -> None:
        for reason in reasons.values():
            self.tally.rejected[reason] = self.tally.rejected.get(reason, 0) + 1

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Folds replies in, finishes the total and steps."""
        self._reject(self._fold(replies))
        self._finish(server_round)
        return self.model(), MetricRecord({"loss": self._loss / max(1.0, self._examples)})

    def _finish(self, round: int) -> bool:
        """Steps, unless too few clients were left; returns whether it did."""
        total = self.aggregator.finish(self.tables)
        if total.aborted:
            return False
        total = on_server(self.plan.stages, total, StageContext(self.plan.seed, round))
        self.plan.optimizer.step(self.tables, self.dense, total)
        return True

    def train_round(self, grid: Grid, round: int) -> dict[str, Any]:
        """One round: wave by wave, so that updates never pile up. Returns what happened."""
        begin = time.perf_counter()
        before = self.tally.client_updates
        up, down = self.tally.upload_bytes, self.tally.download_bytes
        self._loss = self._examples = 0.0
        self.fitted = {}
        cohort = self._cohort(round)
        waves = max(1, -(-len(cohort) // self.plan.clients_per_wave))
        reasons: dict[int, str] = {}
        arrays = self.model()
        for number in range(waves):
            self.cohort = cohort[number::waves]
            replies, failed = self._exchange(
                grid, list(self._messages("train", round, arrays, self.cohort)), round
            )
            reasons |= failed | self._fold(replies)
        self.tally.download_bytes += len(cohort) * model_bytes(self.tables, self.dense)
        self._reject(reasons)
        if len(cohort) and self.tally.client_updates == before:
            client, reason = next(iter(reasons.items()), (-1, "nobody answered"))
            raise RunError(
                f"round {round}: none of {len(cohort)} clients sent a usable update; client {client}: {reason}"
            )
        moved = self._finish(round)
        seconds = time.perf_counter() - begin
        self.tally.train_seconds += seconds
        self.finished_rounds = round
        line: dict[str, Any] = {
            "phase": "federated",
            "round": round,
            "loss": self._loss / self._examples if self._examples else None,
            "client_updates": self.tally.client_updates - before,
            "seconds": seconds,
            "upload_bytes": self.tally.upload_bytes - up,
            "download_bytes": self.tally.download_bytes - down,
        }
        if not moved:
            line["aborted"] = True
        if self.plan.guard is not None and self.plan.guard.protection.hides_cohorts:
            line |= dict.fromkeys(("client_updates", "upload_bytes", "download_bytes"))
        elif reasons:
            line["rejected"] = {str(client): reason for client, reason in list(reasons.items())[:20]}
        return line

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for every node, where clients measure the model on their own data."""
        if self.plan.evaluation is None or not self.plan.evaluation.on_clients:
            return []
        everybody = np.arange(len(self.nodes.sizes), dtype=np.int64)
        return [message for message, _ in self._messages("evaluate", server_round, arrays, everybody)]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Means over clients of what the replies say per client."""
        evaluated = evaluated_of(self.plan.evaluation, replies)
        if evaluated is None:
            return None
        self.evaluated = evaluated
        return _record(evaluated.metrics)

    def _fit(self, grid: Grid, round: int) -> dict[str, Tensor]:
        """What the evaluation needs to fit, from sums of the clients' own validation data."""
        evaluation = self.plan.evaluation
        if not isinstance(evaluation, Fitted):
            return {}
        everybody = np.arange(len(self.nodes.sizes), dtype=np.int64)
        messages = [message for message, _ in self._messages("query.fit", round, self.model(), everybody)]
        return fitted_of(evaluation, grid.send_and_receive(messages, timeout=self.plan.timeout_seconds))

    def evaluate(self, grid: Grid, round: int) -> Evaluated | None:
        """The model as it stands, measured at the server or on the clients."""
        if self.plan.evaluation is None:
            return None
        everybody = np.arange(len(self.nodes.sizes), dtype=np.int64)
        if not self.plan.evaluation.on_clients:
            self.evaluated = measured(self.plan.evaluation, {**self.tables, **self.dense}, {}, everybody)
        else:
            self.fitted = self._fit(grid, round)
            arrays = pack({**self.tables, **self.dense, **self.fitted}, self.plan.by_reference)
            messages = list(self.configure_evaluate(round, arrays, ConfigRecord(), grid))
            self.aggregate_evaluate(round, grid.send_and_receive(messages, timeout=self.plan.timeout_seconds))
        return self.evaluated

    def evaluate_fine_tuned(self, grid: Grid) -> Evaluated | None:
        """Every client's own copy of the model after more passes over its data; None where clients measure nothing."""
        if self.plan.evaluation is None or not self.plan.evaluation.on_clients:
            return None
        everybody = np.arange(len(self.nodes.sizes), dtype=np.int64)
        sent = self._messages("evaluate", self.finished_rounds + 1, self.model(), everybody, fine_tune=True)
        messages = [message for message, _ in sent]
        replies = grid.send_and_receive(messages, timeout=self.plan.timeout_seconds)
        return evaluated_of(self.plan.evaluation, replies)

    def _tell_nodes(self, grid: Grid, action: str, round: int) -> None:
        config = ConfigRecord(
            {"round": round, "folder": self.personal_folder, "by_reference": self.plan.by_reference}
        )
        messages = [
            Message(RecordDict({"config": config}), node, f"query.{action}") for node in self.nodes.ids
        ]
        for reply in grid.send_and_receive(messages, timeout=self.plan.timeout_seconds):
            if reply.has_error():
                raise RunError((reply.error.reason or f"a node could not {action}").strip().splitlines()[-1])

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Runs the rounds ``first_round .. num_rounds``.

        Args:
            grid: Any Flower grid.
            initial_arrays: Tables and dense parameters to begin with; the strategy's own if None.
            num_rounds: The last round.
            timeout: Not used; the plan has its own.
            train_config: Not used; nodes compose the same configuration as the server.
            evaluate_config: Not used, likewise.
            evaluate_fn: Called as Flower's own strategies do.

        Raises:
            RunError: If no client of a round sent a usable update, or a node cannot take part.
        """
        if initial_arrays is not None:
            for name, value in unpack(initial_arrays).items():
                (self.tables if name in self.tables else self.dense)[name].copy_(value)
        self.prepare(grid)
        if self.first_round > 1 and self.personal_folder:
            self._tell_nodes(grid, "restore", self.first_round - 1)
        result, guard = Result(), self.plan.guard
        if guard is not None:
            guard.plan(self.first_round, num_rounds)
        for round in range(self.first_round, num_rounds + 1):
            if guard is not None:
                if not guard.allows(round):
                    self._stopped(grid, round)
                    break
                guard.charge(round)
            line = self.train_round(grid, round)
            last = round == num_rounds
            if last or (self.plan.evaluate_every and round % self.plan.evaluate_every == 0):
                evaluated = self.evaluate(grid, round)
                line |= evaluated.metrics if evaluated else {}
                if evaluated:
                    result.evaluate_metrics_clientapp[round] = _record(evaluated.metrics)
            self.on_round({**line, "rounds": num_rounds})
            if evaluate_fn and (metrics := evaluate_fn(round, self.model())) is not None:
                result.evaluate_metrics_serverapp[round] = metrics
            if (
                self.on_checkpoint
                and self.plan.checkpoint_every
                and (round % self.plan.checkpoint_every == 0 or last)
            ):
                if self.personal_folder:
                    self._tell_nodes(grid, "save", round)
                self.on_checkpoint(round)
        if guard is not None and guard.protection.example_privacy() is not None:
            guard.from_clients = self._largest_epsilon(grid)
        result.arrays = self.model()
        return result

    def _stopped(self, grid: Grid, round: int) -> None:
        """Measures and keeps the model of a run that ends before it was to, for its budget is spent."""
        _log.warning("stopped before round %d, which would exceed the privacy budget", round)
        last = self.finished_rounds
        if last and self.evaluated is None:
            self.evaluate(grid, last)
        if last >= self.first_round and self.on_checkpoint and self.plan.checkpoint_every:
            if self.personal_folder:
                self._tell_nodes(grid, "save", last)
            self.on_checkpoint(last)

    def _largest_epsilon(self, grid: Grid) -> float:
        """The largest epsilon of any client's examples, by the clients' own books."""
        config = ConfigRecord({"privacy_folder": self.privacy_folder})
        messages = [Message(RecordDict({"config": config}), node, "query.privacy") for node in self.nodes.ids]
        found = []
        for reply in grid.send_and_receive(messages, timeout=self.plan.timeout_seconds):
            if reply.has_error():
                reason = (reply.error.reason or "a node could not say what was spent").strip()
                raise RunError(reason.splitlines()[-1])
            facts = reply.content["facts"]
            assert isinstance(facts, ConfigRecord)
            found.append(float(facts["epsilon"]))  # type: ignore[arg-type]
        return max(found, default=0.0)

    def summary(self) -> None:
        """Nothing: what a person sees is made in ``report/``."""


def _spent(reply: Message) -> dict[int, str]:
    """Clients of a reply that did not take part, for their own books say that their budget is spent."""
    record = reply.content.get("spent")
    if not isinstance(record, ArrayRecord):
        return {}
    return dict.fromkeys(unpack(record)["clients"].tolist(), "privacy budget spent")


def _record(metrics: Mapping[str, float]) -> MetricRecord:
    plain: dict[str, int | float | list[int] | list[float]] = {**metrics}
    return MetricRecord(plain)


def _in_order(parts: list[Updates]) -> list[Updates]:
    """The same clients in ascending order; a copy only where nodes' clients interleave."""
    parts = sorted(parts, key=lambda part: int(part.clients[0]))
    if all(a.clients[-1] < b.clients[0] for a, b in pairwise(parts)):
        return parts
    whole = concatenate(parts)
    return [select(whole, np.argsort(whole.clients))]
