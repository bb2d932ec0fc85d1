"""Blockers that several rules tell of in the same words."""

from __future__ import annotations

from kapell.v1.task_pb2 import WAIT_KIND_START_RATE, Blocker

from kapell_server.domain.times import stamp

NAMED = 10
"""How many tasks or agents a blocker names."""


def count_of(number: int, what: str) -> str:
    """As "1 task" or "3 tasks"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def start_rate_blocker(text: str, name: str, count: int, free_ns: int) -> Blocker:
    """A queue or key has started as many tasks as its rate allows, until `free_ns`."""
    blocker = Blocker(kind=WAIT_KIND_START_RATE, message=f"{text}, {count} in a period.", blocked_by=[name])
    stamp(blocker.until_time, free_ns)
    return blocker
