"""Who this process is to the server: registered once, again when the server asks, for its whole life.

Every call of a worker goes through here. `insist` repeats a call until it is answered, through
restarts of the server, and raises only what time cannot mend. Registering uses the credential the
process was started with (a ticket, or a user's token); everything else the agent's own token.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from kapell.connection import Connection, Stream, backoff
from kapell.discovery import Endpoint
from kapell.errors import DeadlineExceeded, Exhausted, Internal, KapellError, Unauthenticated, Unavailable
from kapell.messages import seconds
from kapell.v1.approval_pb2_grpc import ApprovalServiceStub
from kapell.v1.artifact_pb2_grpc import ArtifactServiceStub
from kapell.v1.task_pb2_grpc import TaskServiceStub
from kapell.v1.worker_pb2 import RegisterWorkerRequest, WatchDirectivesRequest, WatchDirectivesResponse
from kapell.v1.worker_pb2_grpc import WorkerServiceStub

if TYPE_CHECKING:
    from grpc import aio

    from kapell.v1.approval_pb2_grpc import ApprovalServiceAsyncStub
    from kapell.v1.artifact_pb2_grpc import ArtifactServiceAsyncStub
    from kapell.v1.task_pb2_grpc import TaskServiceAsyncStub
    from kapell.v1.worker_pb2_grpc import WorkerServiceAsyncStub

_log = logging.getLogger("kapell.worker")

CALL_TIMEOUT = 10.0
_PASSING_LIMITS = frozenset({"QUEUE_FULL", "STORAGE_FULL"})
_TRIES_AT_DEFECTS = 10

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")


def new_instance_key() -> str:
    """What tells this process from every other one."""
    return uuid.uuid4().hex


class Session:
    """The registration and the connection of one worker."""

    def __init__(self, endpoint: Endpoint, registration: RegisterWorkerRequest) -> None:
        self.agent_id = ""
        self.log_id = ""
        self.slots = 1
        self.heartbeat_interval = 3.0
        self.generation = 0
        """Grows with each registration."""
        self._endpoint = endpoint
        self._registration = registration
        self._connection = Connection(Endpoint(address=endpoint.address))
        self._renewing = asyncio.Lock()
        self._in_trouble = False

    @property
    def connection(self) -> Connection:
        """The connection, with the agent's own token."""
        return self._connection

    @property
    def stub(self) -> WorkerServiceAsyncStub:
        return self._connection.stub(WorkerServiceStub)

    @property
    def artifacts(self) -> ArtifactServiceAsyncStub:
        return self._connection.stub(ArtifactServiceStub)

    @property
    def approvals(self) -> ApprovalServiceAsyncStub:
        return self._connection.stub(ApprovalServiceStub)

    @property
    def tasks(self) -> TaskServiceAsyncStub:
        return self._connection.stub(TaskServiceStub)

    async def register(self) -> None:
        """Makes this process an agent. Waits for a server that is away; raises KapellError when refused."""
        await self._renew(self.generation)

    async def insist(
        self,
        method: aio.UnaryUnaryMultiCallable[_Request, _Response],
        make_request: Callable[[], _Request],
        *,
        timeout: float = CALL_TIMEOUT,
        bears_defects: bool = False,
        bears_full_disks: bool = True,
    ) -> _Response:
        """Calls until there is an answer, registering anew where the server has forgotten us.

        `make_request` is called for each try, because the agent's id may change. Raises KapellError
        for a refusal that repeating cannot mend; an INTERNAL counts as one after ten tries, unless
        `bears_defects`, and STORAGE_FULL unless `bears_full_disks`. `timeout` is for one try.
        """
        failures = 0
        while True:
            generation = self.generation
            try:
                answer = await self._connection.call(method, make_request(), timeout=timeout)
            except KapellError as error:
                failures += 1
                if error.reason == "STORAGE_FULL" and not bears_full_disks:
                    raise
                if _forgot_us(error):
                    await self._renew(generation)
                elif not is_passing(error, 0 if bears_defects else failures):
                    raise
                self._note_trouble(error)
                await asyncio.sleep(error.retry_after or backoff(failures))
            else:
                self._note_recovery()
                return answer

    async def once(
        self,
        method: aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> _Response:
        """Calls one time; raises KapellError."""
        return await self._connection.call(method, request, timeout=timeout)

    def directives(self) -> Stream[WatchDirectivesResponse]:
        """Opens the stream of hints."""
        request = WatchDirectivesRequest(agent_id=self.agent_id)
        return self._connection.stream(self.stub.WatchDirectives, request)

    async def close(self) -> None:
        """Closes the connection."""
        await self._connection.close()

    async def _renew(self, generation: int) -> None:
        async with self._renewing:
            if self.generation != generation:
                return
            # A channel of its own, so that calls under way never carry the wrong credential.
            async with Connection(self._endpoint) as door:
                await self._register_through(door)

    async def _register_through(self, door: Connection) -> None:
        failures = 0
        while True:
            try:
                method = door.stub(WorkerServiceStub).RegisterWorker
                answer = await door.call(method, self._registration, timeout=CALL_TIMEOUT)
                break
            except KapellError as error:
                failures += 1
                if not is_passing(error, failures):
                    raise
                self._note_trouble(error)
                await asyncio.sleep(error.retry_after or backoff(failures))
        self._connection.use_token(answer.agent_token)
        self.agent_id = answer.agent.agent_id
        self.log_id = answer.log_id
        self.slots = answer.agent.slots_total or 1
        self.heartbeat_interval = seconds(answer.heartbeat_interval) or 3.0
        self.generation += 1
        self._note_recovery()
        _log.info("registered as %s at %s", self.agent_id, self._endpoint.address)

    def _note_trouble(self, error: KapellError) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            _log.warning("the server does not answer, trying again until it does: %s", error)

    def _note_recovery(self) -> None:
        if self._in_trouble:
            self._in_trouble = False
            _log.info("the server answers again")


def is_passing(error: KapellError, failures: int) -> bool:
    """Whether the same call may succeed later. A defect of the server gets so many tries and no more."""
    match error:
        case Unavailable() | DeadlineExceeded():
            return True
        case Exhausted():
            return error.reason in _PASSING_LIMITS
        case Internal():
            return failures < _TRIES_AT_DEFECTS
    return False


def _forgot_us(error: KapellError) -> bool:
    return isinstance(error, Unauthenticated) or error.reason == "AGENT_NOT_FOUND"
