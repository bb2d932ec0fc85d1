"""When a delivery that did not arrive is tried again."""

from __future__ import annotations

from random import Random

from kapell_server.domain.times import SECOND

GIVE_UP_AFTER_NS = 24 * 3600 * SECOND
"""How long a delivery is tried, from when it was taken up or sent again by hand."""
_FIRST_SECONDS = 5.0
_LONGEST_SECONDS = 3600.0
_JITTER = 0.2
GONE = 410
"""The receiver wants no more of it."""


def next_try_ns(tries: int, since_ns: int, now_ns: int, status_code: int, random: Random) -> int:
    """When to try again after so many tries; 0 where it is given up."""
    if status_code == GONE:
        return 0
    seconds = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(tries - 1, 20))
    seconds *= 1 - _JITTER + 2 * _JITTER * random.random()
    next_ns = now_ns + int(seconds * SECOND)
    return next_ns if next_ns < since_ns + GIVE_UP_AFTER_NS else 0
