"""The pause before another attempt: doubling, bounded, and spread by chance."""

from __future__ import annotations

from random import Random

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.task_pb2 import RetryPolicy
from kapell_server.domain.tasks.retry import DEFAULT_POLICY, backoff_ns, with_defaults
from kapell_server.domain.times import SECOND

STEADY = RetryPolicy(
    initial_backoff=Duration(seconds=2), max_backoff=Duration(seconds=20), backoff_multiplier=3.0, jitter=0.0
)


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 2), (2, 6), (3, 18), (4, 20), (5, 20), (10_000, 20)])
def test_the_pause_grows_by_the_multiplier_up_to_its_maximum(attempts: int, seconds: int) -> None:
    assert backoff_ns(STEADY, attempts, Random(1)) == seconds * SECOND


def test_jitter_takes_up_to_its_share_from_the_pause() -> None:
    policy = with_defaults(RetryPolicy(initial_backoff=Duration(seconds=10), jitter=0.4))
    random = Random(1)

    pauses = [backoff_ns(policy, 1, random) / SECOND for _ in range(1000)]

    assert 6.0 <= min(pauses) < 6.2
    assert 9.8 < max(pauses) <= 10.0


def test_what_the_client_leaves_out_has_defaults() -> None:
    assert with_defaults(RetryPolicy()) == DEFAULT_POLICY
    assert (DEFAULT_POLICY.max_attempts, DEFAULT_POLICY.backoff_multiplier) == (3, 2.0)
    assert (DEFAULT_POLICY.initial_backoff.seconds, DEFAULT_POLICY.max_backoff.seconds) == (1, 300)


def test_a_pause_and_a_jitter_of_zero_are_not_left_out() -> None:
    policy = with_defaults(RetryPolicy(initial_backoff=Duration(), jitter=0.0))

    assert [backoff_ns(policy, attempts, Random(1)) for attempts in (1, 2, 3)] == [0, 0, 0]
    assert policy.HasField("jitter")
    assert policy.jitter == 0.0
