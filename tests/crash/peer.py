"""One client of the bare protocol that asks until it is answered, as every official client does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from kapell.connection import translate
from kapell.errors import KapellError
from kapell.v1.agent_pb2_grpc import AgentServiceStub
from kapell.v1.event_pb2_grpc import EventServiceStub
from kapell.v1.task_pb2_grpc import TaskServiceStub
from kapell.v1.worker_pb2_grpc import WorkerServiceStub

from tests.crash.journal import Journal

CALL_SECONDS = 5.0
# More than any number of restarts of a storm; a server that is never there again ends the test.
MOST_TRIES = 200

OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
)


class Peer:
    """Stubs over one channel, with one token; every request and answer is noted in the journal."""

    def __init__(self, channel: grpc.aio.Channel, token: str, journal: Journal, *, agent_id: str = "") -> None:
        self._channel = channel
        self._journal = journal
        self._agent_id = agent_id
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.tasks: Any = TaskServiceStub(channel)
        self.agents: Any = AgentServiceStub(channel)
        self.events: Any = EventServiceStub(channel)
        self.worker: Any = WorkerServiceStub(channel)

    def with_token(self, token: str, *, agent_id: str = "") -> Peer:
        """The same connection with another token."""
        return Peer(self._channel, token, self._journal, agent_id=agent_id)

    async def ask(self, kind: str, method: Any, request: Message) -> Any:
        """Repeats the very same request until the server answers it; the answer.

        Raises KapellError where the answer is a refusal.
        """
        for _ in range(MOST_TRIES):
            try:
                return await self.ask_once(kind, method, request)
            except KapellError as error:
                if error.from_server and error.code != "UNAVAILABLE":
                    raise
        raise AssertionError(f"{kind} was not answered in {MOST_TRIES} tries")

    async def ask_once(self, kind: str, method: Any, request: Message, *, seconds: float = CALL_SECONDS) -> Any:
        """One try. Raises KapellError, with `from_server` false where the outcome is not known."""
        self._journal.sent(kind)
        try:
            # Waiting for the connection is what spares a loop of tries while the server is away.
            response = await method(request, metadata=self.metadata, timeout=seconds, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            failure = translate(error)
            if not failure.from_server:
                self._journal.interrupted(kind)
            raise failure from None
        self._journal.answered(kind, request, response, agent_id=self._agent_id)
        return response

    async def read(self, method: Any, request: Message) -> Any:
        """A question that changes nothing; not noted."""
        return await method(request, metadata=self.metadata, timeout=30, wait_for_ready=True)


@asynccontextmanager
async def connected(address: str, token: str, journal: Journal) -> AsyncIterator[Peer]:
    """A peer with a channel of its own, closed afterwards."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        yield Peer(channel, token, journal)
