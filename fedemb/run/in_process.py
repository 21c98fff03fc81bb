"""A Flower ``Grid`` without Ray and without a network: messages are handed over by reference, one after another.

Flower's messages ask for a process-wide task identity and for ids that only its own grids may set; both
are Flower's internals, and this is the one place that touches them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_SERVER_NODE = 1
_CLIENT_APP_FAILED = 1


@dataclass
class InProcessGrid(Grid):
    """Nodes of this process.

    Attributes:
        app: The client app that every node runs.
        contexts: Node id to the node's context: its state lives as long as the grid.
        raise_errors: Let an exception in a node end the run, as a program's own defect should. Otherwise the
            server gets an error reply, as it does from a node elsewhere.
    """

    app: ClientApp
    contexts: Mapping[int, Context]
    raise_errors: bool = True
    _replies: dict[str, Message] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, _SERVER_NODE, 1

    def set_run(self, run: Run) -> None:
        """Nothing to set: there is one run in a process."""

    @property
    def run(self) -> Run:
        """A run without a bundle."""
        return Run.create_empty(run_id=1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes."""
        return list(self.contexts)

    def _deliver(self, message: Message) -> Message:
        identity = str(next(self._numbers))
        message.metadata.__dict__["_message_id"] = identity
        node = message.metadata.dst_node_id
        inbox = Message(RecordDict(dict(message.content)), node, message.metadata.message_type)
        inbox.__dict__["_metadata"] = message.metadata
        try:
            reply = self.app(inbox, self.contexts[node])
        except Exception as error:
            if self.raise_errors:
                raise
            reply = Message(Error(_CLIENT_APP_FAILED, repr(error)), reply_to=message)
        return reply

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delivers messages; their replies wait to be pulled."""
        ids = []
        for message in messages:
            reply = self._deliver(message)
            ids.append(message.metadata.message_id)
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these messages; each can be pulled once."""
        return [self._replies.pop(identity) for identity in message_ids if identity in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Replies in the order of the messages, each as soon as it is there."""
        return map(self._deliver, messages)


def in_process_grid(app: ClientApp, num_nodes: int, raise_errors: bool = True) -> InProcessGrid:
    """A grid of ``num_nodes`` nodes that know their place among them."""
    contexts = {}
    for node in range(num_nodes):
        config: dict[str, bool | bytes | float | int | str] = {
            "partition-id": node,
            "num-partitions": num_nodes,
        }
        contexts[2 + node] = Context(1, 2 + node, config, RecordDict(), {})  # type: ignore[arg-type]
    return InProcessGrid(app, contexts, raise_errors)


GridUser = Callable[[Grid], None]
