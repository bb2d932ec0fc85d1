"""TokenService and AuditService, and the writing down of when tokens were used."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from kapell.v1 import audit_pb2, token_pb2

from kapell_server.clock import Clock
from kapell_server.domain.access import Caller, Keyring
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import stamp

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.rpc.auth import Authenticator
    from kapell_server.store.reads import Reads

_log = structlog.get_logger(__name__)

USES_INTERVAL = 60.0
"""So often is written down when tokens were last used, seconds."""


class TokenServicer:
    """The methods of TokenService. Changes go to the engine, which keeps no secret."""

    def __init__(
        self, engine: Engine, reads: Reads, *, keyring: Keyring, authenticator: Authenticator, clock: Clock
    ) -> None:
        self._engine = engine
        self._reads = reads
        self._keyring = keyring
        self._authenticator = authenticator
        self._clock = clock
        self.RevokeToken = engine.submit

    async def CreateToken(self, request: token_pb2.CreateTokenRequest, caller: Caller) -> token_pb2.CreateTokenResponse:
        """Adds the secret to the engine's answer, which is remembered without it."""
        response = token_pb2.CreateTokenResponse.FromString(await self._engine.submit(request, caller))
        response.secret = self._keyring.token_secret(response.token.token_id)
        return response

    async def ListTokens(self, request: token_pb2.ListTokensRequest, caller: Caller) -> token_pb2.ListTokensResponse:
        response = await self._reads.tokens.list(request, self._clock.now_ns())
        for token in response.tokens:
            used_ns = self._authenticator.uses.get(token.token_id)
            if used_ns is not None:
                stamp(token.last_used_time, used_ns)
        return response

    async def GetCaller(self, request: token_pb2.GetCallerRequest, caller: Caller) -> token_pb2.GetCallerResponse:
        response = token_pb2.GetCallerResponse(
            actor=caller.actor(), token_id=caller.token_id, scopes=sorted(caller.scopes)
        )
        if caller.expire_ns:
            stamp(response.expire_time, caller.expire_ns)
        return response


class AuditServicer:
    """The methods of AuditService."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    async def ListAuditEntries(
        self, request: audit_pb2.ListAuditEntriesRequest, caller: Caller
    ) -> audit_pb2.ListAuditEntriesResponse:
        return await self._reads.tokens.list_audit(request)


async def keep_uses(authenticator: Authenticator, reads: Reads) -> None:
    """Writes down when tokens were used, once a minute, until cancelled."""
    while True:
        await asyncio.sleep(USES_INTERVAL)
        await write_uses(authenticator, reads)


async def write_uses(authenticator: Authenticator, reads: Reads) -> None:
    """Writes down when tokens were used since the last time. A database that cannot is no reason to stop."""
    uses, authenticator.uses = authenticator.uses, {}
    if not uses:
        return
    try:
        await reads.tokens.note_uses(uses)
    except KapellError as error:
        authenticator.uses = {**uses, **authenticator.uses}
        _log.warning("when tokens were used was not written down", reason=error.reason_name)
