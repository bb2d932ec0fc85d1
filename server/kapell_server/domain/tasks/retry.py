"""When a failed attempt is tried again."""

from __future__ import annotations

from random import Random

from kapell.v1.task_pb2 import RetryPolicy, Task, TaskFailure

from kapell_server.domain.times import SECOND, duration_ns, set_duration

_DEFAULT_ATTEMPTS = 3
_DEFAULT_INITIAL = 1 * SECOND
_DEFAULT_MAX = 300 * SECOND
_DEFAULT_MULTIPLIER = 2.0
_DEFAULT_JITTER = 0.2


def with_defaults(policy: RetryPolicy) -> RetryPolicy:
    """What the client said, and the defaults for the rest."""
    filled = RetryPolicy()
    filled.CopyFrom(policy)
    fill_defaults(filled)
    return filled


def fill_defaults(policy: RetryPolicy) -> None:
    """Writes the defaults into what the client left unset."""
    if policy.max_attempts == 0:
        policy.max_attempts = _DEFAULT_ATTEMPTS
    if not policy.HasField("initial_backoff"):
        set_duration(policy.initial_backoff, _DEFAULT_INITIAL)
    if not policy.HasField("max_backoff"):
        set_duration(policy.max_backoff, _DEFAULT_MAX)
    if policy.backoff_multiplier == 0:
        policy.backoff_multiplier = _DEFAULT_MULTIPLIER
    if not policy.HasField("jitter"):
        policy.jitter = _DEFAULT_JITTER


DEFAULT_POLICY = RetryPolicy()
fill_defaults(DEFAULT_POLICY)


def may_retry(task: Task, failure: TaskFailure) -> bool:
    """Whether another attempt is allowed after `failure` (T4)."""
    if failure.HasField("retryable") and not failure.retryable:
        return False
    if failure.reason in task.retry_policy.non_retryable_reasons:
        return False
    return task.attempts_used < task.retry_policy.max_attempts


def backoff_ns(policy: RetryPolicy, attempts_used: int, random: Random) -> int:
    """The pause after attempt number `attempts_used` (from 1), in nanoseconds.

    initial * multiplier^(attempts_used - 1), capped, of which the share `jitter` is drawn at random.
    """
    cap = duration_ns(policy.max_backoff)
    exponent = min(attempts_used - 1, 60)
    pause = min(duration_ns(policy.initial_backoff) * policy.backoff_multiplier**exponent, cap)
    return int(pause * (1 - policy.jitter * random.random()))
