"""What every call passes through: observe, errors, authentication, scope, parsing, validation.

Each rpc is wrapped once, at registration, into a single coroutine; a call costs a few
microseconds here and allocates next to nothing. The request arrives as bytes and is parsed here,
not by grpc, so that a damaged or too large message is refused like any other bad request. Unary
calls and streams pass the same steps, so no policy can skip a watch.

Cancellation (the client left, or the server stops) is never turned into an answer and always
raised on. The exceptions are calls that `calls` has cancelled itself: one that was too slow is
answered with DEADLINE_EXCEEDED, long ones with SERVER_DRAINING when the server stops.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from time import perf_counter
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from kapell.v1.common_pb2 import SCOPE_APPROVE
from kapell.v1.error_pb2 import (
    ERROR_REASON_DEADLINE_EXCEEDED,
    ERROR_REASON_PAYLOAD_TOO_LARGE,
    ERROR_REASON_SERVER_DRAINING,
    ERROR_REASON_TOO_MANY_WATCHES,
)

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.workers.worker import token_of_the_past
from kapell_server.rpc import auth, validation
from kapell_server.rpc.auth import Authenticator
from kapell_server.rpc.calls import Context, LongCall, OpenCalls
from kapell_server.rpc.methods import Method
from kapell_server.rpc.status import DETAILS_KEY, as_kapell_error, code_of, status_of
from kapell_server.telemetry import CallStats, Telemetry

_log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_STREAMS = 10_000
REMEMBERED_CALLERS = 1024  # by each method
# While draining, agents may still finish and say goodbye.
WORKER_SERVICE = "kapell.v1.WorkerService"
# Who calls these is audited with the address the call came from; so is whoever may approve.
APPROVAL_SERVICE = "kapell.v1.ApprovalService"
# A long poll answers this much before its client's deadline, seconds, so that the answer arrives.
ANSWER_MARGIN = 0.25

Response = Message | bytes
Unary = Callable[[Any, Caller], Awaitable[Response]]
Waiting = Callable[[Any, Caller, float], Awaitable[Response]]
Stream = Callable[[Any, Caller], AsyncGenerator[Response, None]]
UnaryCall = Callable[[bytes, Context], Awaitable[bytes]]
StreamCall = Callable[[bytes, Context], Awaitable[None]]

W = TypeVar("W", bound=Callable[..., Any])


def waits(handle: W) -> W:
    """Marks a servicer method that bounds its own wait.

    It gets a third argument, the seconds until its client's deadline (infinite without one), and
    must answer before; the default deadline does not apply to it.
    """
    handle.bounds_its_wait = True  # type: ignore[attr-defined]
    return handle


class Pipeline:
    """Wraps servicer methods. `draining` refuses new calls except those of agents.

    `lives` tells whether an instance of an agent has not ended: its token is good for no longer.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        calls: OpenCalls,
        telemetry: Telemetry,
        *,
        lives: Callable[[str, int], bool] = lambda agent_id, instance: True,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        self.draining = False
        self._authenticator = authenticator
        self._calls = calls
        self._telemetry = telemetry
        self._lives = lives
        self._max_streams = max_streams

    def unary(self, method: Method, handle: Unary) -> UnaryCall:
        """The rpc that answers with `handle`, within 30 s unless the client says otherwise."""
        admit = self._admission(method)
        stats = self._telemetry.of(method.path)
        observe = stats.observe
        open_calls = self._calls.unary
        overdue = self._calls.overdue

        async def call(data: bytes, context: Context) -> bytes:
            task = current_task()
            assert task is not None
            begun = perf_counter()
            open_calls[task] = (begun, context)
            try:
                caller, request = admit(data, context)
                response = await handle(request, caller)
                return response if response.__class__ is bytes else response.SerializeToString()  # type: ignore[union-attr]
            except asyncio.CancelledError:
                if task not in overdue:
                    raise
                task.uncancel()
                return await self._refuse(method, stats, context, self._too_slow(method))
            except Exception as error:
                return await self._refuse(method, stats, context, error)
            finally:
                del open_calls[task]
                if overdue:
                    overdue.discard(task)
                observe(perf_counter() - begun)

        return call

    def waiting(self, method: Method, handle: Waiting) -> UnaryCall:
        """The rpc that answers with `handle`, which is marked with `waits`."""
        admit = self._admission(method)
        stats = self._telemetry.of(method.path)
        open_calls = self._calls.waiting

        async def call(data: bytes, context: Context) -> bytes:
            task = current_task()
            assert task is not None
            begun = perf_counter()
            open_calls[task] = poll = LongCall()
            try:
                caller, request = admit(data, context)
                response = await handle(request, caller, _patience(context))
                return response if response.__class__ is bytes else response.SerializeToString()  # type: ignore[union-attr]
            except asyncio.CancelledError:
                if poll.ended_with is None:
                    raise
                task.uncancel()
                return await self._refuse(method, stats, context, poll.ended_with)
            except Exception as error:
                return await self._refuse(method, stats, context, error)
            finally:
                del open_calls[task]
                stats.observe(perf_counter() - begun)

        return call

    def stream(self, method: Method, handle: Stream) -> StreamCall:
        """The rpc that sends what `handle` yields; the generator is closed whatever ends the call."""
        admit = self._admission(method)
        stats = self._telemetry.of(method.path)
        streams = self._calls.streams

        async def call(data: bytes, context: Context) -> None:
            task = current_task()
            assert task is not None
            begun = perf_counter()
            streams[task] = stream = LongCall()
            try:
                if len(streams) > self._max_streams:
                    raise _too_many_streams(self._max_streams)
                caller, request = admit(data, context)
                responses = handle(request, caller)
                try:
                    await _send_all(responses, context, stream)
                finally:
                    await responses.aclose()
            except asyncio.CancelledError:
                if stream.ended_with is None or stream.blocked_since:
                    raise
                task.uncancel()
                await self._refuse(method, stats, context, stream.ended_with)
            except grpc.aio.BaseError:
                raise  # the client left while a message was being sent
            except Exception as error:
                await self._refuse(method, stats, context, error)
            finally:
                del streams[task]
                stats.observe(perf_counter() - begun)

        return call

    def _admission(self, method: Method) -> Callable[[bytes, Context], tuple[Caller, Any]]:
        """The steps before the servicer: who calls, whether they may, and a request that is valid."""
        parse = method.request.FromString
        collect_violations = validation.collect_violations
        for_agents = method.service == WORKER_SERVICE
        is_audited = method.scope == SCOPE_APPROVE or method.service == APPROVAL_SERVICE
        let_in: dict[str | bytes | None, Caller] = {}

        def admit(data: bytes, context: Context) -> tuple[Caller, Any]:
            if self.draining and not for_agents:
                raise draining()
            header = None
            for key, value in context.invocation_metadata() or ():
                if key == "authorization":
                    header = value
                    break
            caller = let_in.get(header)
            if caller is None:
                caller = self._let_in(method, header, let_in)
            if caller.instance and not for_agents and not self._lives(caller.agent_id, caller.instance):
                raise token_of_the_past(caller.agent_id)
            if is_audited:
                caller = replace(caller, peer=_peer(context))
            if len(data) > MAX_MESSAGE_BYTES:
                raise _too_large(method, len(data))
            try:
                request = parse(data)
            except DecodeError:
                raise validation.unreadable(method.request) from None
            violations = collect_violations(request)
            if violations:
                raise validation.refusal(violations)
            return caller, request

        return admit

    def _let_in(self, method: Method, header: str | bytes | None, let_in: dict[str | bytes | None, Caller]) -> Caller:
        """The caller behind the header, if they may call the method.

        The same few tokens come with every call, so who was let in is remembered. Who was refused
        is not, so guessing cannot push real tokens out.
        """
        caller = self._authenticator.caller(header)
        if not auth.allowed(method, caller):
            raise auth.refusal(method, caller)
        if len(let_in) >= REMEMBERED_CALLERS:
            let_in.clear()
        let_in[header] = caller
        return caller

    async def _refuse(self, method: Method, stats: CallStats, context: Context, error: Exception) -> bytes:
        """Ends the call with the error's status; never returns."""
        shown = as_kapell_error(error)
        if shown is not error:
            _log.error("call failed", method=method.path, **shown.metadata, exc_info=error)
        stats.count_error(shown.reason)
        status = status_of(shown)
        await context.abort(code_of(shown), status.message, ((DETAILS_KEY, status.SerializeToString()),))
        raise AssertionError("abort returned")

    def _too_slow(self, method: Method) -> KapellError:
        return KapellError(
            ERROR_REASON_DEADLINE_EXCEEDED,
            f"{method.name} was not done within {self._calls.unary_limit:g} s, the limit of calls without a"
            " deadline. Whether it took effect is open: repeat it with the same request_id, or give it"
            " a longer deadline.",
        )


async def _send_all(responses: AsyncGenerator[Response, None], context: Context, stream: LongCall) -> None:
    write = context.write
    async for response in responses:
        stream.blocked_since = perf_counter()
        await write(response if response.__class__ is bytes else response.SerializeToString())  # type: ignore[union-attr]
        stream.blocked_since = 0.0
        if stream.ended_with is not None:
            raise stream.ended_with


def _patience(context: Context) -> float:
    """Seconds a long poll may take so that its answer still arrives in time."""
    remaining = context.time_remaining()
    if remaining is None:
        return float("inf")
    return max(0.0, remaining - min(ANSWER_MARGIN, remaining / 4))


def _peer(context: Context) -> str:
    """The address a call came from, as "ipv4:127.0.0.1:50122"."""
    return str(context.peer() or "")[:100]


def draining() -> KapellError:
    """SERVER_DRAINING, for calls that come too late."""
    return KapellError(
        ERROR_REASON_SERVER_DRAINING,
        "The server is stopping and takes no new calls. Try again in a moment; if it does not come back, start it.",
    )


def _too_large(method: Method, size: int) -> KapellError:
    return KapellError(
        ERROR_REASON_PAYLOAD_TOO_LARGE,
        f"The message of {method.name} has {size:,} bytes; at most {MAX_MESSAGE_BYTES:,} are taken."
        " Send less at a time, or hand over a reference to large content instead of the content.",
        metadata={"limit": str(MAX_MESSAGE_BYTES)},
    )


def _too_many_streams(limit: int) -> KapellError:
    return KapellError(
        ERROR_REASON_TOO_MANY_WATCHES,
        f"{limit:,} streams are open, as many as the server serves. Close some, or follow several things by one watch.",
        metadata={"limit": str(limit)},
    )
