"""SecretService: seals a value before anything else sees it; lists past the engine.

The engine gets a keyed hash in the value's place, so that a repeated request_id is recognised and no
fingerprint of a value is ever stored.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kapell.v1 import secret_pb2

from kapell_server.domain.access import Caller
from kapell_server.domain.secrets.secret import RotateKeyCommand, SetSecretCommand

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.reads import Reads
    from kapell_server.vault import Vault


class SecretServicer:
    """The methods of SecretService."""

    def __init__(self, engine: Engine, reads: Reads, vault: Vault) -> None:
        self._engine = engine
        self._reads = reads
        self._vault = vault
        self._rotating = asyncio.Lock()
        self.DeleteSecret = engine.submit

    async def SetSecret(self, request: secret_pb2.SetSecretRequest, caller: Caller) -> bytes:
        sealed = b""
        # Not while the key changes: what was sealed with the old one must be there to be sealed anew.
        async with self._rotating:
            if request.WhichOneof("source") == "value":
                sealed = self._vault.seal(request.value, request.name)
                request.value = self._vault.mark_of(request.value)
            return await self._engine.submit(SetSecretCommand(request, sealed), caller)

    async def ListSecrets(
        self, request: secret_pb2.ListSecretsRequest, _caller: Caller
    ) -> secret_pb2.ListSecretsResponse:
        return await self._reads.standing.list_secrets(request)

    async def RotateSecretKey(self, request: secret_pb2.RotateSecretKeyRequest, caller: Caller) -> bytes:
        """Both keys are in the file until every value is committed under the new one: a crash loses nothing."""
        async with self._rotating:
            self._vault.begin_rotation()
            answer = await self._engine.submit(RotateKeyCommand(request), caller)
            self._vault.end_rotation(self._engine.sealed_values())
            return answer
