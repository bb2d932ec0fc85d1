"""The one table from reasons to gRPC codes, and the one place that builds a status.

Every failure leaves the server as google.rpc.Status with exactly one ErrorInfo (domain
"kapell.dev") and, where it helps, BadRequest, ResourceInfo, PreconditionFailure or RetryInfo.
Trailers over 16 KiB make gRPC hide the real error, so the text is cut at 1 KiB and the details
at 2 KiB: first the tail of the violations goes, never the ErrorInfo.
"""

from __future__ import annotations

import errno
import secrets
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from kapell.v1 import error_pb2 as reasons

from kapell_server.domain.errors import KapellError

DOMAIN = "kapell.dev"
MAX_TEXT_BYTES = 1024
MAX_DETAIL_BYTES = 2048
MAX_VALUE_BYTES = 160
MAX_METADATA = 6

DETAILS_KEY = "grpc-status-details-bin"
# For a path that is no rpc; the only failure without a reason, since nobody of ours has seen the call.
UNKNOWN_METHOD = StatusCode.UNIMPLEMENTED


@dataclass(frozen=True, slots=True)
class Row:
    """How a reason looks on the wire.

    `resource` is the (type, metadata key of the name) of a ResourceInfo; `retry_after` the
    seconds of RetryInfo where the error names none.
    """

    code: StatusCode
    resource: tuple[str, str] | None = None
    retry_after: float | None = None


_HTTP: dict[int, int] = {
    StatusCode.INVALID_ARGUMENT.value[0]: 400,
    StatusCode.UNAUTHENTICATED.value[0]: 401,
    StatusCode.PERMISSION_DENIED.value[0]: 403,
    StatusCode.NOT_FOUND.value[0]: 404,
    StatusCode.ALREADY_EXISTS.value[0]: 409,
    StatusCode.ABORTED.value[0]: 409,
    StatusCode.FAILED_PRECONDITION.value[0]: 400,
    StatusCode.OUT_OF_RANGE.value[0]: 400,
    StatusCode.RESOURCE_EXHAUSTED.value[0]: 429,
    StatusCode.UNIMPLEMENTED.value[0]: 501,
    StatusCode.UNAVAILABLE.value[0]: 503,
    StatusCode.DEADLINE_EXCEEDED.value[0]: 504,
}
"""As google.api.http has it."""


def http_status_of(code: int) -> int:
    """The HTTP status that says the same as a google.rpc.Code."""
    return _HTTP.get(code, 500)


_TASK = ("kapell.v1.Task", "task_id")
_AGENT = ("kapell.v1.Agent", "agent_id")
_TEMPLATE = ("kapell.v1.Template", "template_id")
_QUEUE = ("kapell.v1.Queue", "agent_type")
_BUDGET = ("kapell.v1.Budget", "budget_id")
_ARTIFACT = ("kapell.v1.Artifact", "artifact_id")
_APPROVAL = ("kapell.v1.Approval", "approval_id")

TABLE: dict[reasons.ErrorReason.ValueType, Row] = {
    reasons.ERROR_REASON_REQUEST_INVALID: Row(StatusCode.INVALID_ARGUMENT),
    reasons.ERROR_REASON_PAGE_TOKEN_INVALID: Row(StatusCode.INVALID_ARGUMENT),
    reasons.ERROR_REASON_REQUEST_ID_REUSED: Row(StatusCode.INVALID_ARGUMENT),
    reasons.ERROR_REASON_TOKEN_MISSING: Row(StatusCode.UNAUTHENTICATED),
    reasons.ERROR_REASON_TOKEN_INVALID: Row(StatusCode.UNAUTHENTICATED),
    reasons.ERROR_REASON_SCOPE_MISSING: Row(StatusCode.PERMISSION_DENIED),
    reasons.ERROR_REASON_NOT_OWNER: Row(StatusCode.PERMISSION_DENIED, _AGENT),
    reasons.ERROR_REASON_TASK_NOT_FOUND: Row(StatusCode.NOT_FOUND, _TASK),
    reasons.ERROR_REASON_AGENT_NOT_FOUND: Row(StatusCode.NOT_FOUND, _AGENT),
    reasons.ERROR_REASON_ATTEMPT_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.TaskAttempt", "task_id")),
    reasons.ERROR_REASON_PROFILE_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.AgentProfile", "profile")),
    reasons.ERROR_REASON_ID_TAKEN: Row(StatusCode.ALREADY_EXISTS),
    reasons.ERROR_REASON_TASK_STATE_CONFLICT: Row(StatusCode.FAILED_PRECONDITION, _TASK),
    reasons.ERROR_REASON_AGENT_STATE_CONFLICT: Row(StatusCode.FAILED_PRECONDITION, _AGENT),
    reasons.ERROR_REASON_PROGRAM_NOT_FOUND: Row(StatusCode.FAILED_PRECONDITION, ("program", "program")),
    reasons.ERROR_REASON_ETAG_MISMATCH: Row(StatusCode.ABORTED),
    reasons.ERROR_REASON_LEASE_LOST: Row(StatusCode.ABORTED),
    reasons.ERROR_REASON_REVISION_COMPACTED: Row(StatusCode.OUT_OF_RANGE),
    reasons.ERROR_REASON_REVISION_IN_FUTURE: Row(StatusCode.OUT_OF_RANGE),
    reasons.ERROR_REASON_LOG_OFFSET_GAP: Row(StatusCode.OUT_OF_RANGE),
    reasons.ERROR_REASON_AGENT_LIMIT: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_QUEUE_FULL: Row(StatusCode.RESOURCE_EXHAUSTED, retry_after=0.2),
    reasons.ERROR_REASON_TOO_MANY_WATCHES: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_PAYLOAD_TOO_LARGE: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_STORAGE_FULL: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_SERVER_DRAINING: Row(StatusCode.UNAVAILABLE, retry_after=1.0),
    reasons.ERROR_REASON_STORAGE_BUSY: Row(StatusCode.UNAVAILABLE, retry_after=1.0),
    reasons.ERROR_REASON_DEADLINE_EXCEEDED: Row(StatusCode.DEADLINE_EXCEEDED),
    reasons.ERROR_REASON_TEMPLATE_NOT_FOUND: Row(StatusCode.NOT_FOUND, _TEMPLATE),
    reasons.ERROR_REASON_TEMPLATE_PARAMETERS_INVALID: Row(StatusCode.INVALID_ARGUMENT),
    reasons.ERROR_REASON_TEMPLATE_IN_USE: Row(StatusCode.FAILED_PRECONDITION, _TEMPLATE),
    reasons.ERROR_REASON_TEMPLATE_BUILT_IN: Row(StatusCode.FAILED_PRECONDITION, _TEMPLATE),
    reasons.ERROR_REASON_DEPENDENCY_CYCLE: Row(StatusCode.INVALID_ARGUMENT),
    reasons.ERROR_REASON_DEPENDENCY_FAILED: Row(StatusCode.FAILED_PRECONDITION, _TASK),
    reasons.ERROR_REASON_CHILD_LIMIT: Row(StatusCode.RESOURCE_EXHAUSTED, _TASK),
    reasons.ERROR_REASON_TOO_MANY_MATCHES: Row(StatusCode.FAILED_PRECONDITION),
    reasons.ERROR_REASON_QUEUE_DRAINING: Row(StatusCode.FAILED_PRECONDITION, _QUEUE),
    reasons.ERROR_REASON_LIMIT_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.ConcurrencyLimit", "key")),
    reasons.ERROR_REASON_ARTIFACT_NOT_FOUND: Row(StatusCode.NOT_FOUND, _ARTIFACT),
    reasons.ERROR_REASON_ARTIFACT_CHECKSUM_MISMATCH: Row(StatusCode.ABORTED, _ARTIFACT),
    reasons.ERROR_REASON_ARTIFACT_OFFSET_GAP: Row(StatusCode.OUT_OF_RANGE, _ARTIFACT),
    reasons.ERROR_REASON_ARTIFACT_STATE_CONFLICT: Row(StatusCode.FAILED_PRECONDITION, _ARTIFACT),
    reasons.ERROR_REASON_ARTIFACT_LIMIT: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_PRICE_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.Price", "price_id")),
    reasons.ERROR_REASON_PRICE_LIMIT: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_USAGE_QUERY_TOO_LARGE: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_USAGE_CONFLICT: Row(StatusCode.ALREADY_EXISTS),
    reasons.ERROR_REASON_USAGE_LIMIT: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_SECRET_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.Secret", "name")),
    reasons.ERROR_REASON_SECRET_LIMIT: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_SCHEDULE_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.Schedule", "schedule_id")),
    reasons.ERROR_REASON_SCHEDULE_LIMIT: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_APPROVAL_NOT_FOUND: Row(StatusCode.NOT_FOUND, _APPROVAL),
    reasons.ERROR_REASON_APPROVAL_ALREADY_DECIDED: Row(StatusCode.ALREADY_EXISTS, _APPROVAL),
    reasons.ERROR_REASON_SELF_APPROVAL: Row(StatusCode.PERMISSION_DENIED, _APPROVAL),
    reasons.ERROR_REASON_APPROVAL_CHANGED: Row(StatusCode.ABORTED, _APPROVAL),
    reasons.ERROR_REASON_NOT_APPROVER: Row(StatusCode.PERMISSION_DENIED, _APPROVAL),
    reasons.ERROR_REASON_LOCK_HELD: Row(StatusCode.ABORTED),
    reasons.ERROR_REASON_FENCING_TOKEN_STALE: Row(StatusCode.ABORTED),
    reasons.ERROR_REASON_DEADLOCK: Row(StatusCode.FAILED_PRECONDITION),
    reasons.ERROR_REASON_LOCK_LOST: Row(StatusCode.ABORTED),
    reasons.ERROR_REASON_LOCK_TICKET_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.LockTicket", "ticket_id")),
    reasons.ERROR_REASON_LOCK_LIMIT: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_BUDGET_NOT_FOUND: Row(StatusCode.NOT_FOUND, _BUDGET),
    reasons.ERROR_REASON_BUDGET_EXCEEDED: Row(StatusCode.RESOURCE_EXHAUSTED, _BUDGET),
    reasons.ERROR_REASON_RESERVATION_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.Reservation", "reservation_id")),
    reasons.ERROR_REASON_ALERT_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.Alert", "alert_id")),
    reasons.ERROR_REASON_WEBHOOK_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.Webhook", "webhook_id")),
    reasons.ERROR_REASON_TOKEN_EXPIRED: Row(StatusCode.UNAUTHENTICATED),
    reasons.ERROR_REASON_TOKEN_NOT_FOUND: Row(StatusCode.NOT_FOUND, ("kapell.v1.Token", "token_id")),
    reasons.ERROR_REASON_RATE_LIMITED: Row(StatusCode.RESOURCE_EXHAUSTED, retry_after=1.0),
    reasons.ERROR_REASON_NOT_FOR_AGENTS: Row(StatusCode.PERMISSION_DENIED, _AGENT),
    reasons.ERROR_REASON_TOKEN_LIMIT: Row(StatusCode.RESOURCE_EXHAUSTED),
    reasons.ERROR_REASON_WORKSPACE_NOT_FOUND: Row(StatusCode.NOT_FOUND, _TASK),
    reasons.ERROR_REASON_WORKSPACE_CHANGED: Row(StatusCode.ABORTED, _TASK),
    reasons.ERROR_REASON_INTERNAL: Row(StatusCode.INTERNAL),
}


def as_kapell_error(error: Exception) -> KapellError:
    """Any exception as one that may be shown. What is not foreseen becomes INTERNAL with a
    request_id in its metadata and nothing of the original; the caller logs the original.
    """
    if isinstance(error, KapellError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return KapellError(
            reasons.ERROR_REASON_STORAGE_FULL,
            "Nothing was written: the disk of the data directory is full."
            " Free some space, then try again; the server need not be restarted.",
        )
    request_id = "req_" + secrets.token_hex(6)
    return KapellError(
        reasons.ERROR_REASON_INTERNAL,
        f"The server failed in a way that it should not have. Its log tells why: look for {request_id}.",
        metadata={"request_id": request_id},
    )


def status_of(error: KapellError) -> status_pb2.Status:
    """The error as google.rpc.Status, within the caps."""
    row = TABLE[error.reason]
    text = _cut(error.message, MAX_TEXT_BYTES)
    status = status_pb2.Status(code=row.code.value[0], message=text)
    metadata = {
        _cut(key, 40): _cut(value, MAX_VALUE_BYTES) for key, value in list(error.metadata.items())[:MAX_METADATA]
    }
    _add(status, error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN, metadata=metadata))
    retry_after = error.retry_after if error.retry_after is not None else row.retry_after
    if retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(retry_after * 1e9))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if row.resource is not None and row.resource[1] in metadata:
        kind, key = row.resource
        _add(status, error_details_pb2.ResourceInfo(resource_type=kind, resource_name=metadata[key]))
    if row.code is StatusCode.FAILED_PRECONDITION:
        _add(status, _precondition(error, metadata, row))
    if error.violations:
        _add_violations(status, error.violations)
    assert sum(map(_size, status.details)) <= MAX_DETAIL_BYTES, "details over their cap"
    return status


def code_of(error: KapellError) -> StatusCode:
    """The gRPC code of the error."""
    return TABLE[error.reason].code


def _precondition(error: KapellError, metadata: dict[str, str], row: Row) -> error_details_pb2.PreconditionFailure:
    failure = error_details_pb2.PreconditionFailure()
    subject = metadata.get(row.resource[1], "") if row.resource is not None else ""
    failure.violations.add(type=error.reason_name, subject=subject, description=_cut(error.message, 200))
    return failure


def _add_violations(status: status_pb2.Status, violations: tuple[tuple[str, str], ...]) -> None:
    """Adds as many of the violations as the cap allows, and says how many were left out."""
    bad = error_details_pb2.BadRequest()
    room = MAX_DETAIL_BYTES - sum(map(_size, status.details)) - 160
    for position, (field, description) in enumerate(violations):
        bad.field_violations.add(field=_cut(field, MAX_VALUE_BYTES), description=_cut(description, MAX_VALUE_BYTES))
        if bad.ByteSize() > room:
            del bad.field_violations[position]
            bad.field_violations.add(
                field="", description=f"and {len(violations) - position} more violations that did not fit"
            )
            break
    _add(status, bad)


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = Any()
    packed.Pack(detail)
    status.details.append(packed)


def _size(detail: Any) -> int:
    """Bytes of a detail with its place in the list."""
    return int(detail.ByteSize()) + 4


def _cut(text: str, limit: int) -> str:
    """The text within `limit` bytes of UTF-8, with an ellipsis where something is missing."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return text
    return encoded[: limit - 3].decode(errors="ignore") + "…"
