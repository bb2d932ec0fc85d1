"""From Python's own values to the messages of the API, and the names of states and kinds.

Used by the faces of the client and by the command line. Every refusal here is an InvalidRequest
that the server never saw (`from_server` False).
"""

from __future__ import annotations

import difflib
import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from kapell.errors import InvalidRequest
from kapell.v1.agent_pb2 import AgentState
from kapell.v1.approval_pb2 import ApprovalKind, RiskLevel
from kapell.v1.approval_policy_pb2 import ApprovalState
from kapell.v1.queue_pb2 import ConcurrencyStrategy
from kapell.v1.schedule_pb2 import OverlapPolicy
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_SUCCEEDED,
    TaskState,
)
from kapell.v1.usage_pb2 import UsageBucket
from kapell.v1.watch_pb2 import EventKind

FINAL_TASK_STATES = frozenset({TASK_STATE_SUCCEEDED, TASK_STATE_FAILED, TASK_STATE_CANCELLED})
"""States that a task leaves only by being retried by hand."""

Seconds = float | timedelta | Duration
"""A length of time, where a bare number is seconds."""

Instant = datetime | Timestamp
"""A point in time; a datetime without a zone is local time."""

_Value = TypeVar("_Value", bound=int)


def new_request_id() -> str:
    """An id that makes one call repeatable: the server answers a repeat as it did the first time.

    It begins with the time, so that the server keeps neighbours together on disk.
    """
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def duration(value: Seconds | None) -> Duration | None:
    """The message for a length of time; None stays None, which is a field left unset."""
    if value is None or isinstance(value, Duration):
        return value
    result = Duration()
    result.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=value))
    return result


def seconds(value: Seconds) -> float:
    """A length of time as a number of seconds."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value.seconds + value.nanos / 1e9 if isinstance(value, Duration) else value


def timestamp(value: Instant | None) -> Timestamp | None:
    """The message for a point in time; None stays None."""
    if value is None or isinstance(value, Timestamp):
        return value
    result = Timestamp()
    result.FromDatetime(value.astimezone())
    return result


def struct(value: Mapping[str, Any] | Struct | None) -> Struct | None:
    """The message for a JSON object; None stays None. Raises InvalidRequest for values JSON has not."""
    if value is None or isinstance(value, Struct):
        return value
    result = Struct()
    try:
        result.update(dict(value))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"the input is not JSON - {error} - use None, bool, numbers, strings, lists and dicts only",
            reason="ARGUMENT_INVALID",
        ) from error
    return result


def task_states(values: Iterable[TaskState.ValueType | str]) -> Iterable[TaskState.ValueType]:
    """States by value or by word, as in "queued"."""
    words = words_of(TaskState.items(), "TASK_STATE_")
    return [by_word(value, words, "a task state") for value in values]


def agent_states(values: Iterable[AgentState.ValueType | str]) -> Iterable[AgentState.ValueType]:
    """States by value or by word, as in "active"."""
    words = words_of(AgentState.items(), "AGENT_STATE_")
    return [by_word(value, words, "an agent state") for value in values]


def concurrency_strategy(value: ConcurrencyStrategy.ValueType | str) -> ConcurrencyStrategy.ValueType:
    """A strategy by value or by word, as in "cancel-in-progress"."""
    strategies = words_of(ConcurrencyStrategy.items(), "CONCURRENCY_STRATEGY_")
    words = {word.replace("_", "-"): strategy for word, strategy in strategies.items()}
    return by_word(value.replace("_", "-") if isinstance(value, str) else value, words, "a strategy")


def overlap_policy(value: OverlapPolicy.ValueType | str) -> OverlapPolicy.ValueType:
    """A policy by value or by word, as in "skip"."""
    return by_word(value, words_of(OverlapPolicy.items(), "OVERLAP_POLICY_"), "an overlap policy")


def usage_bucket(value: UsageBucket.ValueType | str) -> UsageBucket.ValueType:
    """A length of stretches by value or by word, as in "day"."""
    return by_word(value, words_of(UsageBucket.items(), "USAGE_BUCKET_"), "a bucket")


def approval_states(values: Iterable[ApprovalState.ValueType | str]) -> Iterable[ApprovalState.ValueType]:
    """States by value or by word, as in "pending"."""
    words = words_of(ApprovalState.items(), "APPROVAL_STATE_")
    return [by_word(value, words, "a state of an approval") for value in values]


def approval_kinds(values: Iterable[ApprovalKind.ValueType | str]) -> Iterable[ApprovalKind.ValueType]:
    """Kinds by value or by word, as in "task_start"."""
    words = words_of(ApprovalKind.items(), "APPROVAL_KIND_")
    return [by_word(value, words, "a kind of approval") for value in values]


def risk_level(value: RiskLevel.ValueType | str) -> RiskLevel.ValueType:
    """A risk by value or by word, as in "high"."""
    return by_word(value, words_of(RiskLevel.items(), "RISK_LEVEL_"), "a risk")


def event_kind(value: EventKind.ValueType | str) -> EventKind.ValueType:
    """A kind by value or by its name, as in "task.completed" (see watch.proto)."""
    kinds = {word.replace("_", ".", 1): kind for word, kind in words_of(EventKind.items(), "EVENT_KIND_").items()}
    return by_word(value, kinds, "a kind of event")


def event_name(kind: EventKind.ValueType) -> str:
    """The name of a kind, as in "task.completed"; "unknown.17" for one this client does not know."""
    try:
        return EventKind.Name(kind).removeprefix("EVENT_KIND_").lower().replace("_", ".", 1)
    except ValueError:
        return f"unknown.{kind}"


def words_of(items: Iterable[tuple[str, _Value]], prefix: str) -> dict[str, _Value]:
    """The values of an enum by the words people use, without the unspecified one."""
    return {name.removeprefix(prefix).lower(): value for name, value in items if value != 0}


def by_word(value: _Value | str, known: Mapping[str, _Value], what: str) -> _Value:
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    if word in known:
        return known[word]
    close = difflib.get_close_matches(word, known, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known)}"
    raise InvalidRequest(f"{value!r} is not {what} - {advice}", reason="ARGUMENT_INVALID")
