"""How an attempt ends: with a JSON value, or with `TaskFailed`."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.struct_pb2 import Struct

from kapell._worker.values import to_value
from kapell.v1.task_pb2 import TaskFailure

MAX_MESSAGE_CHARS = 4000


class TaskFailed(Exception):
    """Raise it in a handler to end the attempt as failed, with a reason that programs can read.

    `reason` is a constant in upper snake case, `message` says in words what failed and what to do
    (cut at 4,000 characters, the end is kept), `details` is JSON of at most 16 KiB. `retryable=False`
    ends the task whatever its retry policy says; None leaves that to the policy. `retry_delay` is the
    least number of seconds before the next attempt.
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
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        self.retryable = retryable
        self.retry_delay = retry_delay

    def to_message(self) -> TaskFailure:
        """The failure as the protocol carries it."""
        failure = TaskFailure(reason=self.reason, message=_shorten(self.message))
        if self.details:
            failure.details.CopyFrom(_struct(self.details))
        if self.retryable is not None:
            failure.retryable = self.retryable
        return failure


def _shorten(text: str) -> str:
    """The last MAX_MESSAGE_CHARS characters; the first line stays, for it says what happened."""
    if len(text) <= MAX_MESSAGE_CHARS:
        return text
    head, newline, rest = text.partition("\n")
    if not newline or len(head) > 500:
        return text[: MAX_MESSAGE_CHARS - 1] + "…"
    kept = MAX_MESSAGE_CHARS - len(head) - 3
    return f"{head}\n…\n{rest[-kept:]}"


def _struct(details: Mapping[str, object]) -> Struct:
    value = to_value(dict(details))
    return value.struct_value
