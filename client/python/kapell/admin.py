"""The face for the server itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.connection import Connection
from kapell.errors import InvalidRequest
from kapell.messages import Seconds, duration, new_request_id
from kapell.v1 import admin_pb2 as pb
from kapell.v1.admin_pb2_grpc import AdminServiceStub

if TYPE_CHECKING:
    from kapell.v1.admin_pb2_grpc import AdminServiceAsyncStub


class Admin:
    """`client.admin`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> AdminServiceAsyncStub:
        return self._connection.stub(AdminServiceStub)

    async def server_info(self, *, timeout: float | None = None) -> pb.GetServerInfoResponse:
        """Version, limits and capabilities of the server, and who it takes the caller for."""
        return await self._connection.call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), timeout=timeout)

    async def diagnostics(self) -> pb.GetDiagnosticsResponse:
        """What the server is busy with right now."""
        return await self._connection.call(self._stub.GetDiagnostics, pb.GetDiagnosticsRequest())

    async def compact_events(
        self, *, before_revision: int | None = None, older_than: Seconds | None = None, request_id: str = ""
    ) -> pb.CompactEventsResponse:
        """Drops the events before a revision, or those older than so many seconds; one of the two.

        Watches that are behind get RevisionCompacted. A `request_id` makes it repeatable by hand; left out,
        each call gets its own. Raises RevisionInFuture for a revision that the log does not have yet.
        """
        if (before_revision is None) is (older_than is None):
            raise InvalidRequest(
                "either before_revision or older_than says which events go - pass exactly one of them",
                reason="ARGUMENT_INVALID",
            )
        request = pb.CompactEventsRequest(older_than=duration(older_than), request_id=request_id or new_request_id())
        if before_revision is not None:
            request.before_revision = before_revision
        return await self._connection.call(self._stub.CompactEvents, request)
