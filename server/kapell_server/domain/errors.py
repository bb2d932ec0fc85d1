"""The one exception of the product: a reason, a text that says what to do, and data.

Raised by rules and engine; `rpc.status` alone turns it into a gRPC status. A programming
error is an assertion, never one of these.
"""

from __future__ import annotations

from collections.abc import Mapping

from kapell.v1.error_pb2 import ErrorReason

_PREFIX = "ERROR_REASON_"


class KapellError(Exception):
    """A refusal the caller can act upon.

    `reason` is a value of `ErrorReason`; `message` reads "what failed - why - what to do", under
    1 KiB and without secrets; `metadata` names the values a program needs (see error.proto);
    `violations` lists (field path, description) for REQUEST_INVALID; `retry_after` is seconds.
    """

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: tuple[tuple[str, str], ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_after = retry_after

    @property
    def reason_name(self) -> str:
        """The reason as clients see it, for example "LEASE_LOST"."""
        return ErrorReason.Name(self.reason).removeprefix(_PREFIX)
