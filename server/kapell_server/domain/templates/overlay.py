"""What one message says, and where it is silent, another."""

from __future__ import annotations

from kapell.v1.task_pb2 import RetryPolicy, TaskTimeouts


def overlay(target: RetryPolicy | TaskTimeouts, own: RetryPolicy | TaskTimeouts) -> None:
    """Writes what `own` says over `target`. Times are replaced whole: merged, 0.5 s over 60 s would be 60.5 s."""
    for field, value in own.ListFields():
        if field.message_type is None:
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).CopyFrom(value)
