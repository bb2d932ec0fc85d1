"""Calls of rpcs from HTTP: the pipeline with a context that is no connection of gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar, cast

from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from starlette.requests import Request

from kapell_server.rpc.calls import Context
from kapell_server.rpc.pipeline import UnaryCall, Welcome
from kapell_server.rpc.status import http_status_of

_R = TypeVar("_R", bound=Message)


class RefusedError(Exception):
    """The rpc was refused. `status` is what a gRPC client would have got."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status

    @property
    def http_status(self) -> int:
        """The HTTP status that says the same."""
        return http_status_of(self.status.code)


class _HttpContext:
    """What the pipeline asks of a call's context, answered from an HTTP request."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        header = self._request.headers.get("authorization")
        return (("authorization", header),) if header is not None else ()

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        client = self._request.client
        return f"http:{client.host}:{client.port}" if client is not None else "http:unknown"

    async def abort(self, _: Any, details: str, trailing_metadata: Any = ()) -> NoReturn:
        raise RefusedError(next((Status.FromString(value) for _, value in trailing_metadata), Status(message=details)))


class Door:
    """The unary rpcs of the server, by path, for endpoints."""

    def __init__(self, calls: Mapping[str, UnaryCall], welcomes: Mapping[str, Welcome]) -> None:
        self._calls = calls
        self._welcomes = welcomes

    async def welcome(self, path: str, request: Request) -> None:
        """Whether the sender may call the rpc at `path` at all: to be asked before a body is read.

        Raises RefusedError.
        """
        await self._welcomes[path](cast(Context, _HttpContext(request)))

    async def call(self, path: str, message: Message, request: Request, answer: type[_R]) -> _R:
        """Calls the rpc at `path` ("/kapell.v1.UsageService/RecordUsage") as the sender of the HTTP request.

        Raises RefusedError.
        """
        context = cast(Context, _HttpContext(request))
        return answer.FromString(await self._calls[path](message.SerializeToString(), context))
