"""How an attempt ends: with a JSON value, or with `TaskFailed`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from google.protobuf.struct_pb2 import Struct

from kapell._worker.values import printable, to_value
from kapell.v1.task_pb2 import TaskFailure

MAX_MESSAGE_CHARS = 4000
MAX_DETAILS_BYTES = 16 * 1024
MAX_RESET_SECONDS = 86_400.0
_PROVIDER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._/-]{0,62}")
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")


class TaskFailed(Exception):
    """Raise it in a handler to end the attempt as failed, with a reason that programs can read.

    `reason` is a constant in upper snake case, `message` says in words what failed and what to do
    (cut at 4,000 characters, the end is kept), `details` is JSON of at most 16 KiB. `retryable=False`
    ends the task whatever its retry policy says; None leaves that to the policy. `retry_delay` is the
    least number of seconds before the next attempt. Raises ValueError for a reason of another form.
    """

    def __init__(
        self,
        reason: str,
        message: str = "",
        *,
        details: Mapping[str, object] | None = None,
        retryable: bool | None = None,
        retry_delay: float = 0.0,
    ) -> None:
        if not _REASON.fullmatch(reason):
            raise ValueError(f"{reason!r} is not a reason - it must be upper snake case, as in OUT_OF_PAPER")
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        self.retryable = retryable
        self.retry_delay = retry_delay

    def to_message(self) -> TaskFailure:
        """The failure as the protocol carries it."""
        failure = TaskFailure(reason=self.reason, message=_shorten(printable(self.message)))
        if self.details:
            failure.details.CopyFrom(_details(self.details))
        if self.retryable is not None:
            failure.retryable = self.retryable
        return failure


class RateLimited(TaskFailed):
    """Raise it in a handler when a provider takes no more calls for now: the task waits, and no attempt is lost.

    `provider` is a short name such as "anthropic"; `reset_after` the number of seconds until it takes calls again,
    as its answer said, brought between a millisecond and a day. Raises ValueError for a name of another form.
    """

    def __init__(self, provider: str, reset_after: float, message: str = "") -> None:
        if not _PROVIDER.fullmatch(provider):
            raise ValueError(f"{provider!r} names no provider - write up to 63 letters, digits and . _ / -")
        super().__init__("RATE_LIMITED", message or f"{provider} has limited its calls")
        self.provider = provider
        self.reset_after = min(max(reset_after, 0.001), MAX_RESET_SECONDS)


def _shorten(text: str) -> str:
    """The last MAX_MESSAGE_CHARS characters; the first line stays, for it says what happened."""
    if len(text) <= MAX_MESSAGE_CHARS:
        return text
    head, newline, rest = text.partition("\n")
    if not newline or len(head) > 500:
        return text[: MAX_MESSAGE_CHARS - 1] + "…"
    kept = MAX_MESSAGE_CHARS - len(head) - 3
    return f"{head}\n…\n{rest[-kept:]}"


def _details(details: Mapping[str, object]) -> Struct:
    """The details, or, where they cannot be sent, the reason for that in their place."""
    try:
        value = to_value(dict(details)).struct_value
    except ValueError as error:
        return to_value({"details_left_out": str(error)}).struct_value
    if value.ByteSize() > MAX_DETAILS_BYTES:
        text = f"they have {value.ByteSize()} bytes, {MAX_DETAILS_BYTES} are allowed"
        return to_value({"details_left_out": text}).struct_value
    return value
