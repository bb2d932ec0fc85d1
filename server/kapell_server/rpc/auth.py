"""Who calls, and whether they may: the `authorization` header turned into a Caller.

Whether an agent of a genuine token still lives is for the engine to say: on every command of a
worker, and, asked by `pipeline`, on every other call. That is why `pipeline` may remember the
answer for a header.
"""

from __future__ import annotations

from kapell.v1.common_pb2 import Scope
from kapell.v1.error_pb2 import (
    ERROR_REASON_SCOPE_MISSING,
    ERROR_REASON_TOKEN_INVALID,
    ERROR_REASON_TOKEN_MISSING,
)

from kapell_server.domain import access
from kapell_server.domain.access import Caller, CallerKind, Keyring
from kapell_server.domain.errors import KapellError
from kapell_server.rpc.methods import Method

# The only method a spawn ticket opens.
TICKET_METHOD = "RegisterWorker"


class Authenticator:
    """Authenticates callers. With `required` false (--no-auth), callers without a token may do everything."""

    def __init__(self, keyring: Keyring, *, required: bool = True) -> None:
        self._keyring = keyring
        self._required = required

    def caller(self, header: str | bytes | None) -> Caller:
        """The caller of a call with this authorization header, None where there is none.

        Raises KapellError TOKEN_MISSING or TOKEN_INVALID.
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

    def _examine(self, header: str | bytes) -> Caller:
        text = header if isinstance(header, str) else header.decode(errors="replace")
        scheme, _, token = text.strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise KapellError(
                ERROR_REASON_TOKEN_MISSING,
                "The authorization header holds no bearer token. It must read `Bearer TOKEN`.",
            )
        caller = self._keyring.authenticate(token.strip())
        if caller is None:
            if not self._required and not token.strip().startswith(("kapell_agent_", "kapell_ticket_")):
                return _ANYBODY
            raise KapellError(
                ERROR_REASON_TOKEN_INVALID,
                "The token is not one of this server. Take the one from the file admin.token of the"
                " server's data directory; an agent must register again.",
            )
        return caller


def allowed(method: Method, caller: Caller) -> bool:
    """Whether the caller's token opens the method."""
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


_ANYBODY = access.user("anonymous")
