"""The face for the server itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.connection import Connection
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
