"""Letting the rest of the loop run, where a test shares one loop with what it tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def reached(condition: Callable[[], bool]) -> None:
    """Runs everybody else until `condition` holds; the time limit of the test is the deadline."""
    while not condition():  # noqa: ASYNC110 - turns of the loop, not a wait in time
        await asyncio.sleep(0)
