"""What every call passes through: observe, errors, authentication, scope, limits, parsing, validation, fence.

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
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from kapell.v1.common_pb2 import SCOPE_APPROVE
from kapell.v1.error_pb2 import (
    ERROR_REASON_DEADLINE_EXCEEDED,
    ERROR_REASON_PAYLOAD_TOO_LARGE,
    ERROR_REASON_RATE_LIMITED,
    ERROR_REASON_SERVER_DRAINING,
    ERROR_REASON_TOO_MANY_WATCHES,
)

from kapell_server.domain.access import Caller, CallerKind
from kapell_server.domain.errors import KapellError
from kapell_server.domain.tokens.audit import audited_method
from kapell_server.domain.workers.speaking import attempt_of_the_past
from kapell_server.domain.workers.worker import token_of_the_past
from kapell_server.rpc import auth, fence, validation, well_formed
from kapell_server.rpc.auth import Authenticator
from kapell_server.rpc.calls import Context, LongCall, OpenCalls
from kapell_server.rpc.fence import Fence
from kapell_server.rpc.limits import CallLimits, Share, Shares
from kapell_server.rpc.logins import FailedLogins
from kapell_server.rpc.methods import Method
from kapell_server.rpc.status import DETAILS_KEY, as_kapell_error, code_of, status_of
from kapell_server.telemetry import CallStats, Telemetry

_log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_STREAMS = 10_000
REMEMBERED_CALLERS = 1024  # by each method
# While draining, agents may still finish and say goodbye.
WORKER_SERVICE = "kapell.v1.WorkerService"
# Services and methods whose calls are audited with the address they came from; so is whoever may approve.
_ASKING = frozenset({"kapell.v1.ApprovalService", "kapell.v1.TaskService", "CreateChildTasks"})
# A long poll answers this much before its client's deadline, seconds, so that the answer arrives.
ANSWER_MARGIN = 0.25
# How long a refusal for asking too much is held back, seconds: longer the more of them wait already, so that those
# who repeat at once cost no more for being many.
HOLD = 0.25
LONGEST_HOLD = 2.0
REFUSALS_A_SECOND = 400
MOST_HELD = 5_000

Response = Message | bytes
Unary = Callable[[Any, Caller], Awaitable[Response]]
Waiting = Callable[[Any, Caller, float], Awaitable[Response]]
Stream = Callable[[Any, Caller], AsyncGenerator[Response, None]]
UnaryCall = Callable[[bytes, Context], Awaitable[bytes]]
StreamCall = Callable[[bytes, Context], Awaitable[None]]
Welcome = Callable[[Context], Awaitable[None]]
NoteRefusal = Callable[[Method, Caller, str, KapellError], None]
"""A caller was refused a method, from a peer."""

W = TypeVar("W", bound=Callable[..., Any])


def waits(handle: W) -> W:
    """Marks a servicer method that bounds its own wait.

    It gets a third argument, the seconds until its client's deadline (infinite without one), and
    must answer before; the default deadline does not apply to it.
    """
    handle.bounds_its_wait = True  # type: ignore[attr-defined]
    return handle


@dataclass(frozen=True, slots=True)
class _Guest:
    """Who was let in by a method, and what there is of the server for them."""

    caller: Caller
    share: Share


class Pipeline:
    """Wraps servicer methods. `draining` refuses new calls except those of agents.

    `lives` tells whether an instance of an agent, or an attempt, has not ended: its token is good for no longer.
    `agents_fence` is what agents are checked by; without one they are checked by the rules alone.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        calls: OpenCalls,
        telemetry: Telemetry,
        *,
        lives: Callable[[Caller], bool] = lambda caller: True,
        max_streams: int = MAX_STREAMS,
        agents_fence: Fence | None = None,
        limits: CallLimits | None = None,
        logins: FailedLogins | None = None,
        note_refusal: NoteRefusal = lambda method, caller, peer, error: None,
    ) -> None:
        self.draining = False
        self._authenticator = authenticator
        self._calls = calls
        self._telemetry = telemetry
        self._lives = lives
        self._max_streams = max_streams
        self._fence = agents_fence
        self._shares = Shares(limits or CallLimits())
        self._logins = logins or FailedLogins()
        self._note_refusal = note_refusal
        self._held = 0
        calls.check = self._refusal_by_now

    def unary(self, method: Method, handle: Unary) -> UnaryCall:
        """The rpc that answers with `handle`, within 30 s unless the client says otherwise."""
        admit, take, check = self._admission(method), _taking(method), self._fence_of(method)
        # What asks for approvals, decides them or makes them needless is kept with where it came from.
        recorded = bool(audited_method(method.request)) or method.scope == SCOPE_APPROVE
        recorded = recorded or method.service in _ASKING or method.name in _ASKING
        stats = self._telemetry.of(method.path)
        observe = stats.observe
        open_calls = self._calls.unary
        overdue = self._calls.overdue

        async def call(data: bytes, context: Context) -> bytes:
            task = current_task()
            assert task is not None
            begun = perf_counter()
            open_calls[task] = (begun, context)
            share: Share | None = None
            try:
                guest = admit(context)
                if (delay := guest.share.delay(begun)) > 0:
                    await asyncio.sleep(delay)
                if not guest.share.enter():
                    await guest.share.line_up()
                share = guest.share
                request = take(data)
                caller = guest.caller
                if check is not None and caller.is_fenced:
                    await check(request, caller)
                if recorded:
                    caller = replace(caller, peer=context.peer())
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
                if share is not None:
                    share.leave()
                del open_calls[task]
                if overdue:
                    overdue.discard(task)
                observe(perf_counter() - begun)

        return call

    def waiting(self, method: Method, handle: Waiting) -> UnaryCall:
        """The rpc that answers with `handle`, which is marked with `waits`."""
        admit, take, check = self._admission(method), _taking(method), self._fence_of(method)
        stats = self._telemetry.of(method.path)
        open_calls = self._calls.waiting

        async def call(data: bytes, context: Context) -> bytes:
            task = current_task()
            assert task is not None
            begun = perf_counter()
            open_calls[task] = poll = LongCall()
            share: Share | None = None
            try:
                guest = admit(context)
                if (delay := guest.share.delay(begun)) > 0:
                    await asyncio.sleep(delay)
                guest.share.open_poll()
                share, caller = guest.share, guest.caller
                request = take(data)
                if check is not None and caller.is_fenced:
                    await check(request, caller)
                poll.guest = guest
                poll.header = _header_of(context)
                poll.for_agents = method.service == WORKER_SERVICE
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
                if share is not None:
                    share.polls -= 1
                del open_calls[task]
                stats.observe(perf_counter() - begun)

        return call

    def stream(self, method: Method, handle: Stream) -> StreamCall:
        """The rpc that sends what `handle` yields; the generator is closed whatever ends the call."""
        admit, take, check = self._admission(method), _taking(method), self._fence_of(method)
        stats = self._telemetry.of(method.path)
        streams = self._calls.streams

        async def call(data: bytes, context: Context) -> None:
            task = current_task()
            assert task is not None
            begun = perf_counter()
            streams[task] = stream = LongCall()
            share: Share | None = None
            try:
                if len(streams) > self._max_streams:
                    raise _too_many_streams(self._max_streams)
                guest = admit(context)
                if guest.caller.is_fenced and len(streams) > self._max_streams - self._max_streams // 4:
                    raise _too_many_streams(self._max_streams - self._max_streams // 4)  # the rest is for users
                if (delay := guest.share.delay(begun)) > 0:
                    await asyncio.sleep(delay)
                guest.share.open_watch()
                share, caller = guest.share, guest.caller
                request = take(data)
                if check is not None and caller.is_fenced:
                    await check(request, caller)
                stream.guest = guest
                stream.header = _header_of(context)
                stream.for_agents = method.service == WORKER_SERVICE
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
                if share is not None:
                    share.watches -= 1
                del streams[task]
                stats.observe(perf_counter() - begun)

        return call

    def welcome(self, method: Method) -> Welcome:
        """Refuses by the caller alone, as the rpc would: for whoever has much to read before there is a request."""
        admit = self._admission(method)
        stats = self._telemetry.of(method.path)

        async def ask(context: Context) -> None:
            try:
                admit(context)
            except KapellError as error:
                await self._refuse(method, stats, context, error)

        return ask

    def _admission(self, method: Method) -> Callable[[Context], _Guest]:
        """The steps before a request is looked at: who calls, and whether they may."""
        for_agents = method.service == WORKER_SERVICE
        version = self._authenticator.version
        check_time = self._authenticator.check_time
        let_in: dict[str | bytes | None, _Guest] = {}
        known_version = version()

        def admit(context: Context) -> _Guest:
            nonlocal known_version
            if self.draining and not for_agents:
                raise draining()
            header = _header_of(context)
            if (now_version := version()) != known_version:
                known_version = now_version
                let_in.clear()
            guest = let_in.get(header)
            if guest is None:
                guest = self._let_in(method, header, let_in, context)
            caller = guest.caller
            if caller.token_id:
                check_time(caller)
            if caller.is_fenced and not (for_agents and caller.instance) and not self._lives(caller):
                raise _of_the_past(caller)
            return guest

        return admit

    def _let_in(
        self, method: Method, header: str | bytes | None, let_in: dict[str | bytes | None, _Guest], context: Context
    ) -> _Guest:
        """The caller behind the header, if they may call the method.

        The same few tokens come with every call, so who was let in is remembered. Who was refused
        is not, so guessing cannot push real tokens out.
        """
        try:
            caller = self._authenticator.caller(header)
        except KapellError as error:
            raise self._logins.judge(error, context.peer(), method.name, perf_counter()) from None
        refusal = None
        if not auth.allowed(method, caller):
            refusal = auth.refusal(method, caller)
        elif caller.is_fenced and fence.is_closed(method, caller):
            refusal = fence.not_for_agents(method, caller)
        if refusal is not None:
            self._note_refusal(method, caller, context.peer(), refusal)
            raise refusal
        if len(let_in) >= REMEMBERED_CALLERS:
            let_in.clear()
        guest = let_in[header] = _Guest(caller, self._shares.of(caller))
        return guest

    def _fence_of(self, method: Method) -> fence.Check | None:
        return self._fence.check_of(method) if self._fence is not None else None

    def _refusal_by_now(self, call: LongCall) -> KapellError | None:
        """Why whoever began a long call may not go on with it; None while they may. Asked once a second."""
        guest: _Guest | None = call.guest
        if guest is None:
            return None
        caller = guest.caller
        if caller.kind is not CallerKind.USER:
            gone = caller.is_fenced and not self._lives(caller)
            # What an agent that ends has to be told comes over its own streams.
            return _of_the_past(caller) if gone and not (call.for_agents and caller.instance) else None
        version = self._authenticator.version()
        if call.version == version and not caller.expire_ns:
            return None
        try:
            self._authenticator.caller(call.header)
        except KapellError as error:
            return error
        call.version = version
        return None

    async def _refuse(self, method: Method, stats: CallStats, context: Context, error: Exception) -> bytes:
        """Ends the call with the error's status; never returns."""
        shown = as_kapell_error(error)
        if shown is not error:
            _log.error("call failed", method=method.path, **shown.metadata, exc_info=error)
        stats.count_error(shown.reason)
        if shown.reason == ERROR_REASON_RATE_LIMITED and self._held < MOST_HELD:
            self._held += 1
            try:
                await asyncio.sleep(hold(self._held))
            finally:
                self._held -= 1
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


def hold(held: int) -> float:
    """Seconds that a refusal is held back where `held` are, itself among them."""
    return min(LONGEST_HOLD, max(HOLD, held / REFUSALS_A_SECOND))


def _taking(method: Method) -> Callable[[bytes], Any]:
    """Turns the bytes of a request into one that is valid."""
    parse = method.request.FromString
    collect_violations = validation.collect_violations
    timed = well_formed.may_be_misshapen(method.request)

    def take(data: bytes) -> Any:
        if len(data) > MAX_MESSAGE_BYTES:
            raise _too_large(method, len(data))
        try:
            request = parse(data)
        except DecodeError:
            raise validation.unreadable(method.request) from None
        violations = collect_violations(request)
        if violations:
            raise validation.refusal(violations)
        if timed and (misshapen := well_formed.violations(request)):
            raise validation.refusal_of(misshapen)
        return request

    return take


def _of_the_past(caller: Caller) -> KapellError:
    return token_of_the_past(caller.agent_id) if caller.lease is None else attempt_of_the_past(caller.lease)


def _header_of(context: Context) -> str | bytes | None:
    """The authorization header; the first, where there are several."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            return value
    return None


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
