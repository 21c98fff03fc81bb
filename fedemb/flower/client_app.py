"""A ``ClientApp`` that hosts the clients of its node: it turns messages into calls and results into replies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedemb.flower.codec import encode
from fedemb.flower.records import is_by_reference, pack, unpack
from fedemb.privacy.history import History, load_history, save_history
from fedemb.train.host import Host, load_kept, memory_of, memory_tensors, save_kept
from fedemb.train.optimizers import OptimizerMemory
from fedemb.train.personal import PersonalRows, personal_rows
from fedemb.types import Int64

PERSONAL = "fedemb.personal"
HISTORY = "fedemb.privacy"
OPTIMIZER = "fedemb.optimizer"


def _personal(host: Host, context: Context) -> dict[str, PersonalRows]:
    """Personal rows from the node's own state, where they survive from message to message."""
    if PERSONAL not in context.state:
        return personal_rows(host.kept_tables, host.first, host.num_clients)
    record = context.state[PERSONAL]
    assert isinstance(record, ArrayRecord)
    stored = unpack(record)
    return {
        table.name: PersonalRows(
            table, host.first, stored[f"{table.name}/points"], stored[f"{table.name}/known"]
        )
        for table in host.kept_tables
    }


def _keep(personal: dict[str, PersonalRows], context: Context, by_reference: bool) -> None:
    if personal:
        tensors = {f"{name}/points": rows.points for name, rows in personal.items()}
        tensors |= {f"{name}/known": rows.known for name, rows in personal.items()}
        context.state[PERSONAL] = pack(tensors, by_reference)


def _memory(host: Host, context: Context) -> OptimizerMemory | None:
    """Optimisers' state of the node's clients, if they keep any."""
    if not host.training.keep_state:
        return None
    record = context.state.get(OPTIMIZER)
    assert record is None or isinstance(record, ArrayRecord)
    return OptimizerMemory() if record is None else memory_of(unpack(record))


def _keep_memory(memory: OptimizerMemory | None, context: Context, by_reference: bool) -> None:
    if memory is not None:
        context.state[OPTIMIZER] = pack(memory_tensors(memory), by_reference)


def _history(host: Host, context: Context, config: ConfigRecord) -> History:
    """What was done to the node's clients' examples: by its own state, or its own disk where that is new."""
    record = context.state.get(HISTORY)
    if isinstance(record, ArrayRecord):
        return History.of(unpack(record))
    return load_history(_history_file(host, config))


def _history_file(host: Host, config: ConfigRecord) -> Path:
    return Path(str(config["privacy_folder"])) / f"clients-{host.first}-{host.num_clients}.safetensors"


def _charged(
    host: Host, context: Context, clients: Int64, config: ConfigRecord, by_reference: bool
) -> tuple[Int64, Tensor]:
    """Those of these clients that may take part, once that is written down, and those whose budget is spent."""
    if host.training.privacy is None or host.protection is None:
        return clients, torch.empty(0, dtype=torch.int64)
    claim, sizes = host.protection.claim, host.examples.sizes
    history = _history(host, context, config)
    spent = history.exhausted(clients, sizes[clients - host.first], claim)
    clients = np.setdiff1d(clients, spent, assume_unique=True)
    history = history.charged(clients, sizes[clients - host.first], claim)
    context.state[HISTORY] = pack(history.tensors(), by_reference)
    save_history(_history_file(host, config), history)
    return clients, torch.from_numpy(spent)


def _arrays(message: Message, name: str) -> ArrayRecord:
    record = message.content[name]
    if not isinstance(record, ArrayRecord):
        raise ValueError(f"a message must carry arrays under {name!r}, got {type(record).__name__}")
    return record


def _config(message: Message) -> ConfigRecord:
    record = message.content["config"]
    if not isinstance(record, ConfigRecord):
        raise ValueError(f"a message must carry its settings under 'config', got {type(record).__name__}")
    return record


def make_client_app(host_of: Callable[[Context], Host], digest_of: Callable[[Context], str]) -> ClientApp:
    """The client app.

    Args:
        host_of: The host of the node that a context belongs to; cached by whoever passes it.
        digest_of: Digest of the node's configuration, compared with the server's at the handshake.
    """
    app = ClientApp()

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        """The hosted clients, how many examples each has, and what the node believes the model to be."""
        host = host_of(context)
        arrays = {"sizes": torch.from_numpy(host.sizes)}
        if _config(message)["holders"]:
            arrays |= {f"holders/{name}": counts for name, counts in host.holders().items()}
        if _config(message)["votes"]:
            arrays["votes"] = host.votes()
        facts = ConfigRecord({"first": host.first, "digest": digest_of(context), "tables": host.shapes})
        return Message(RecordDict({"arrays": pack(arrays, False), "facts": facts}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Updates of the clients named in the message."""
        host = host_of(context)
        model = _arrays(message, "model")
        by_reference = is_by_reference(model)
        received = unpack(model)
        personal, memory = _personal(host, context), _memory(host, context)
        clients, config = unpack(_arrays(message, "clients"))["clients"].numpy(), _config(message)
        clients, spent = _charged(host, context, clients, config, by_reference)
        if not len(clients):
            return Message(RecordDict({"spent": pack({"clients": spent}, False)}), reply_to=message)
        updates = host.train(
            {t.name: received[t.name] for t in host.task.tables if t.shared},
            {d.name: received[d.name] for d in host.task.dense},
            personal,
            clients,
            int(config["round"]),  # type: ignore[arg-type]
            memory,
            float(config["clip_norm"]) if "clip_norm" in config else None,  # type: ignore[arg-type]
        )
        _keep(personal, context, by_reference)
        _keep_memory(memory, context, by_reference)
        specs = {t.name: t for t in host.task.tables}
        content = pack(encode(updates, specs, by_reference), by_reference)
        gone = pack({"clients": spent}, False)
        return Message(RecordDict({"updates": content, "spent": gone}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Metrics per client, for the clients named in the message."""
        host = host_of(context)
        received = unpack(_arrays(message, "model"))
        clients = unpack(_arrays(message, "clients"))["clients"].numpy()
        config, personal = _config(message), _personal(host, context)
        if config["fine_tune"]:
            round = int(config["round"])  # type: ignore[arg-type]
            evaluated = host.evaluate_fine_tuned(received, personal, clients, round, _memory(host, context))
        else:
            evaluated = host.evaluate(received, personal, clients)
        arrays = {f"metric/{name}": torch.from_numpy(v) for name, v in evaluated.per_client.items()}
        if evaluated.weights is not None:
            arrays["weights"] = torch.from_numpy(evaluated.weights)
        record = pack({"clients": torch.from_numpy(clients), **arrays}, False)
        sums = pack({name: torch.from_numpy(count) for name, count in evaluated.sums.items()}, False)
        return Message(RecordDict({"per_client": record, "sums": sums}), reply_to=message)

    @app.query("fit")
    def fit(message: Message, context: Context) -> Message:
        """Sums over the clients named in the message, from which the server fits what the evaluation needs."""
        host = host_of(context)
        received = unpack(_arrays(message, "model"))
        clients = unpack(_arrays(message, "clients"))["clients"].numpy()
        found = host.fit_sums(received, _personal(host, context), clients)
        sums = pack({name: torch.from_numpy(count) for name, count in found.items()}, False)
        return Message(RecordDict({"sums": sums}), reply_to=message)

    @app.query("privacy")
    def privacy(message: Message, context: Context) -> Message:
        """What the examples of the client that spent most have cost, by the clients' own books."""
        host = host_of(context)
        assert host.protection is not None
        settings = host.protection.settings
        history = _history(host, context, _config(message))
        facts = ConfigRecord({"epsilon": history.spent(settings.delta, settings.accountant)})
        return Message(RecordDict({"facts": facts}), reply_to=message)

    @app.query("save")
    def save(message: Message, context: Context) -> Message:
        """Writes what only this node knows to its own disk."""
        host, config = host_of(context), _config(message)
        path, round = _file(host, config), int(config["round"])  # type: ignore[arg-type]
        save_kept(path, _personal(host, context), _memory(host, context), round)
        return Message(RecordDict(), reply_to=message)

    @app.query("restore")
    def restore(message: Message, context: Context) -> Message:
        """Reads it back."""
        host, config = host_of(context), _config(message)
        personal = _personal(host, context)
        memory = load_kept(_file(host, config), personal, host.training.keep_state)
        _keep(personal, context, bool(config["by_reference"]))
        _keep_memory(memory, context, bool(config["by_reference"]))
        return Message(RecordDict(), reply_to=message)

    return app


def _file(host: Host, config: ConfigRecord) -> Path:
    return (
        Path(str(config["folder"]))
        / f"personal-{host.first}-{host.num_clients}-{config['round']!s}.safetensors"
    )
