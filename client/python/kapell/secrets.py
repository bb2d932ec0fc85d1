"""The face for secrets: set, list, delete. Values go to the server only and never come back from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from kapell.connection import Connection
from kapell.messages import new_request_id
from kapell.v1 import secret_pb2 as pb
from kapell.v1.secret_pb2_grpc import SecretServiceStub

if TYPE_CHECKING:
    from kapell.v1.secret_pb2_grpc import SecretServiceAsyncStub


class Secrets:
    """`client.secrets`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> SecretServiceAsyncStub:
        return self._connection.stub(SecretServiceStub)

    async def set(
        self,
        name: str,
        value: str | None = None,
        *,
        environment_variable: str | None = None,
        file: str | None = None,
        description: str = "",
        etag: str = "",
        request_id: str = "",
    ) -> pb.Secret:
        """Creates or replaces a secret: a value, or a variable or an absolute path where the server finds it."""
        request = pb.SetSecretRequest(
            name=name, description=description, etag=etag, request_id=request_id or new_request_id()
        )
        if value is not None:
            request.value = value
        if environment_variable is not None:
            request.environment_variable = environment_variable
        if file is not None:
            request.file = file
        return (await self._connection.call(self._stub.SetSecret, request)).secret

    async def list(self, *, page_size: int = 0, page_token: str = "") -> pb.ListSecretsResponse:
        """One page of secrets without their values, newest first."""
        request = pb.ListSecretsRequest(page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListSecrets, request)

    async def iterate(self, *, page_size: int = 200) -> AsyncIterator[pb.Secret]:
        """All secrets, page by page."""
        page_token = ""
        while True:
            page = await self.list(page_size=page_size, page_token=page_token)
            for secret in page.secrets:
                yield secret
            page_token = page.next_page_token
            if not page_token:
                return

    async def delete(self, name: str, *, request_id: str = "") -> pb.DeleteSecretResponse:
        """Forgets a secret. Attempts of tasks that name it fail from then on."""
        request = pb.DeleteSecretRequest(name=name, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.DeleteSecret, request)

    async def rotate_key(self, *, request_id: str = "") -> pb.RotateSecretKeyResponse:
        """Makes a new key and has all values encrypted with it."""
        request = pb.RotateSecretKeyRequest(request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.RotateSecretKey, request)
