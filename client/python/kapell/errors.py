"""What can go wrong, as exceptions: one class a family, so that callers catch what they can act upon.

Imports nothing heavy: the command line decides on exit codes with it before grpc is loaded.
`kapell.connection` makes these from failed calls; nothing else parses a gRPC status.

    KapellError
    ├─ InvalidRequest       the request breaks a rule; `violations` lists the fields
    ├─ OutOfRange           ├─ RevisionCompacted    the watch cannot go on from its revision
    ├─ Unauthenticated      no token, or one the server does not know
    ├─ PermissionDenied     the token may not do this
    ├─ NotFound
    ├─ Conflict             ├─ AlreadyExists  ├─ PreconditionFailed ── Deadlock
    │                       └─ Aborted ── LeaseLost, LockHeld, LockLost, FencingTokenStale
    ├─ Exhausted            a limit is reached; `retry_after` may say when to try again
    ├─ Unavailable          not reachable, or stopping ── ServerNotFound  no server is known
    ├─ DeadlineExceeded     ── WaitTimeout     the task goes on, the waiting is over
    ├─ Unsupported          the server does not know the method
    ├─ ClientClosed         the client was closed meanwhile
    └─ Internal             a defect, or an answer that is not Kapell's
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from kapell.v1.task_pb2 import Task


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One rule that a request broke."""

    field: str
    """Path of the field, as in "task.agent_type"."""
    description: str


class KapellError(Exception):
    """A failed call, or a refusal of the client itself.

    `reason` is a constant such as "TASK_NOT_FOUND" (see error.proto), or one of the client's own
    (SERVER_UNREACHABLE, SERVER_NOT_FOUND, ADDRESS_INVALID, ARGUMENT_INVALID, WAIT_TIMEOUT,
    CLIENT_CLOSED), or the name of `code` where the answer carried no reason. `message` says what
    failed, why, and what to do. `code` is the canonical name of the gRPC code, such as
    "NOT_FOUND". `from_server` is True when a Kapell server said it, False when the client or the
    network did. `retry_after` is seconds.
    """

    default_code = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        metadata: Mapping[str, str] | None = None,
        from_server: bool = False,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason or self.code
        self.metadata = dict(metadata or {})
        self.from_server = from_server
        self.violations = violations
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class InvalidRequest(KapellError):
    """The request breaks a rule of its message; sending it again is pointless."""

    default_code = "INVALID_ARGUMENT"


class OutOfRange(KapellError):
    """An offset or a revision lies outside of what there is."""

    default_code = "OUT_OF_RANGE"


class RevisionCompacted(OutOfRange):
    """The revision is older than the log, or of another log: take a new snapshot."""


class Unauthenticated(KapellError):
    """No token was sent, or the server does not know it."""

    default_code = "UNAUTHENTICATED"


class PermissionDenied(KapellError):
    """The token does not allow this call."""

    default_code = "PERMISSION_DENIED"


class NotFound(KapellError):
    """Nothing has this id."""

    default_code = "NOT_FOUND"


class Conflict(KapellError):
    """The state of things does not allow it; look again, then decide."""

    default_code = "ABORTED"


class AlreadyExists(Conflict):
    """The id is taken."""

    default_code = "ALREADY_EXISTS"


class PreconditionFailed(Conflict):
    """The resource is in a state, or the machine in a condition, that does not allow it."""

    default_code = "FAILED_PRECONDITION"


class Aborted(Conflict):
    """Somebody else was first."""

    default_code = "ABORTED"


class LeaseLost(Aborted):
    """The attempt is no longer this agent's: stop the work and forget it."""


class LockHeld(Aborted):
    """Somebody else holds a lock that is in the way, or asked for it before."""

    @property
    def path(self) -> str:
        """The path that was wanted."""
        return self.metadata.get("path", "")

    @property
    def held_path(self) -> str:
        """The path of the lock that is in the way."""
        return self.metadata.get("held_path", "")

    @property
    def holder(self) -> str:
        """Who has it, in words."""
        return self.metadata.get("holder", "")

    @property
    def since(self) -> datetime | None:
        """Since when."""
        return _instant(self.metadata.get("since", ""))

    @property
    def expire_time(self) -> datetime | None:
        """When it ends unless it is renewed; None where no time ends it."""
        return _instant(self.metadata.get("expire_time", ""))


class LockLost(Aborted):
    """The lock, or the session it hangs on, has ended: what it protects may be another's by now."""

    @property
    def lock_id(self) -> str:
        """Which lock; empty where it is a session."""
        return self.metadata.get("lock_id", "")


class FencingTokenStale(Aborted):
    """The token is not that of a lock which covers the path and is held now: do not touch it."""

    @property
    def path(self) -> str:
        """The path that was about to be touched."""
        return self.metadata.get("path", "")

    @property
    def current(self) -> int | None:
        """The token that is in force; None where none is."""
        text = self.metadata.get("current", "")
        return int(text) if text.isdecimal() else None


class Deadlock(PreconditionFailed):
    """The wait would never end: whoever holds waits for the caller. Release what is held, then ask for all at once."""

    @property
    def cycle(self) -> str:
        """Who waits for whom, hop by hop, in words."""
        return self.metadata.get("cycle", "")


class Exhausted(KapellError):
    """A limit is reached."""

    default_code = "RESOURCE_EXHAUSTED"


class Unavailable(KapellError):
    """The server cannot be reached or is stopping; the call may be repeated."""

    default_code = "UNAVAILABLE"


class ServerNotFound(Unavailable):
    """No server is running here and none was named."""


class DeadlineExceeded(KapellError):
    """The call was not done in time; a write may or may not have happened."""

    default_code = "DEADLINE_EXCEEDED"


class WaitTimeout(DeadlineExceeded):
    """The time to wait is over and the task has not ended. It goes on; `task` is how it stood last."""

    def __init__(self, message: str, *, task: Task) -> None:
        super().__init__(message, reason="WAIT_TIMEOUT", metadata={"task_id": task.task_id})
        self.task = task


class Unsupported(KapellError):
    """The server does not know the method; it may be older than this client."""

    default_code = "UNIMPLEMENTED"


class ClientClosed(KapellError):
    """The client was closed, before the call or during it."""

    default_code = "CANCELLED"

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="CLIENT_CLOSED")


class Internal(KapellError):
    """A defect of the server, or an answer that no Kapell server gives."""

    default_code = "INTERNAL"


_BY_CODE: dict[str, type[KapellError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": OutOfRange,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": PreconditionFailed,
    "ABORTED": Aborted,
    "RESOURCE_EXHAUSTED": Exhausted,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNIMPLEMENTED": Unsupported,
}
_BY_REASON: dict[str, type[KapellError]] = {
    "LEASE_LOST": LeaseLost,
    "LOCK_HELD": LockHeld,
    "LOCK_LOST": LockLost,
    "FENCING_TOKEN_STALE": FencingTokenStale,
    "DEADLOCK": Deadlock,
    "REVISION_COMPACTED": RevisionCompacted,
}


def error_class(code: str, reason: str) -> type[KapellError]:
    """The class for a canonical code name and a reason; `Internal` where none fits."""
    return _BY_REASON.get(reason) or _BY_CODE.get(code, Internal)


def _instant(text: str) -> datetime | None:
    from datetime import datetime

    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
