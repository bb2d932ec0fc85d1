"""Who calls, and whether they may: the `authorization` header turned into a Caller.

Whether an agent of a genuine token still lives is for the engine to say: on every command of a
worker, and, asked by `pipeline`, on every other call. That is why `pipeline` may remember the
answer for a header, until `version` changes: a token was made or revoked, or the owner's replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from kapell.v1.common_pb2 import SCOPE_SPAWN_INLINE, Scope
from kapell.v1.error_pb2 import (
    ERROR_REASON_SCOPE_MISSING,
    ERROR_REASON_TOKEN_INVALID,
    ERROR_REASON_TOKEN_MISSING,
)
from kapell.v1.token_pb2 import Token

from kapell_server.domain import access
from kapell_server.domain.access import Caller, CallerKind, Keyring, LeaseId
from kapell_server.domain.errors import KapellError
from kapell_server.domain.tokens import token as tokens
from kapell_server.domain.workers.speaking import attempt_of_the_past
from kapell_server.rpc.methods import Method

# The only method a spawn ticket opens.
TICKET_METHOD = "RegisterWorker"

_OURS = ("kapell_agent_", "kapell_ticket_", "kapell_token_", "kapell_attempt_")
FindToken = Callable[[str], tuple[Token, bytes] | None]
"""A token of a user by its id, and what proves it."""


class Authenticator:
    """Authenticates callers. With `required` false (--no-auth), callers without a token may do everything.

    `find` knows the tokens of users, and `version` changes with them; `holder` knows the agent that has an attempt.
    `uses` has when each token was last used, as token id to ns, for somebody to write down and clear.
    """

    def __init__(
        self,
        keyring: Keyring,
        *,
        required: bool = True,
        find: FindToken = lambda token_id: None,
        version: Callable[[], int] = lambda: 0,
        holder: Callable[[LeaseId], str] = lambda lease_id: "",
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._keyring = keyring
        self._required = required
        self._find = find
        self._version = version
        self._holder = holder
        self._now_ns = now_ns
        self.uses: dict[str, int] = {}

    def version(self) -> tuple[int, int]:
        """Changes when an answer of `caller` may be another than before."""
        return self._keyring.version, self._version()

    def caller(self, header: str | bytes | None) -> Caller:
        """The caller of a call with this authorization header, None where there is none.

        Raises KapellError TOKEN_MISSING, TOKEN_INVALID or TOKEN_EXPIRED.
        """
        if header is not None:
            return self._examine(header)
        if not self._required:
            return _ANYBODY
        raise KapellError(
            ERROR_REASON_TOKEN_MISSING,
            "No token was sent. Send `authorization: Bearer TOKEN` with the call; the token of the"
            " server's owner is in the file admin.token of its data directory.",
        )

    def check_time(self, caller: Caller) -> None:
        """Notes that a user's token is being used. Raises TOKEN_EXPIRED where its time is over."""
        now_ns = self._now_ns()
        if caller.expire_ns and caller.expire_ns <= now_ns:
            found = self._find(caller.token_id)
            raise tokens.expired(found[0]) if found is not None else _invalid()
        self.uses[caller.token_id] = now_ns

    def _examine(self, header: str | bytes) -> Caller:
        text = header if isinstance(header, str) else header.decode(errors="replace")
        scheme, _, token = text.strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise KapellError(
                ERROR_REASON_TOKEN_MISSING,
                "The authorization header holds no bearer token. It must read `Bearer TOKEN`.",
            )
        if token.startswith("kapell_token_"):
            return self._user(token)
        caller = self._keyring.authenticate(token)
        if caller is None:
            if not self._required and not token.startswith(_OURS):
                return _ANYBODY
            raise _invalid()
        if caller.lease is not None:
            agent_id = self._holder(caller.lease)
            if not agent_id:
                raise attempt_of_the_past(caller.lease)
            return replace(caller, agent_id=agent_id)
        return caller

    def _user(self, secret: str) -> Caller:
        token_id = secret.removeprefix("kapell_").partition(".")[0]
        found = self._find(token_id)
        if found is None or not tokens.proves(secret, found[1]):
            raise _invalid()
        token = found[0]
        if token.HasField("revoke_time"):
            raise KapellError(
                ERROR_REASON_TOKEN_INVALID, f"The token {token_id} was revoked. Ask for a new one.", metadata={}
            )
        if tokens.has_expired(token, self._now_ns()):
            raise tokens.expired(token)
        return tokens.caller_of(token)


def allowed(method: Method, caller: Caller) -> bool:
    """Whether the caller's token opens the method. What programs may call is for the fence to say."""
    if caller.kind is CallerKind.PROGRAM:
        return True
    return method.scope in caller.scopes and (caller.kind is not CallerKind.TICKET or method.name == TICKET_METHOD)


def refusal(method: Method, caller: Caller) -> KapellError:
    """SCOPE_MISSING for a caller whose token does not open the method."""
    scope = Scope.Name(method.scope).removeprefix("SCOPE_").lower()
    if caller.kind is CallerKind.TICKET:
        text = (
            f"A spawn ticket opens {TICKET_METHOD} only, not {method.name}."
            " Register, then use the agent_token of the answer."
        )
    else:
        text = (
            f"{method.name} needs the scope `{scope}`, which the token of {caller.name} does not hold."
            " Use a token that has it, such as the one in admin.token."
        )
    return KapellError(ERROR_REASON_SCOPE_MISSING, text, metadata={"scope": scope})


def check_inline(caller: Caller) -> None:
    """Whether the caller may spawn agents from a spec of its own. Raises SCOPE_MISSING."""
    if SCOPE_SPAWN_INLINE not in caller.scopes:
        raise KapellError(
            ERROR_REASON_SCOPE_MISSING,
            f"A spec of one's own may name any command, so it needs the scope `spawn_inline`, which the token of"
            f" {caller.name} does not hold. Spawn a profile, or use a token that has the scope.",
            metadata={"scope": "spawn_inline"},
        )


def _invalid() -> KapellError:
    return KapellError(
        ERROR_REASON_TOKEN_INVALID,
        "The token is not one of this server. Take the one from the file admin.token of the"
        " server's data directory; an agent must register again.",
    )


_ANYBODY = access.user("anonymous")
