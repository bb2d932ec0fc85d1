"""What clients have sent and what the server has acknowledged, in the order in which they saw it.

Written by every client of a storm at the moment an answer arrives, so that afterwards each
acknowledgement can be held against the log. It also lets a test wait for "the 17th completion
sent from now on", which is how a kill finds its moment.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One answer. `agent_id` is whose token asked; empty for users."""

    kind: str
    agent_id: str
    request: Any
    response: Any


@dataclass(slots=True, eq=False)
class _Awaited:
    mark: str
    left: int
    reached: asyncio.Future[None]


class Journal:
    """Belongs to one event loop. `broken` collects promises that were seen to be broken on the way."""

    def __init__(self) -> None:
        self.acknowledged: list[Acknowledged] = []
        self.broken: list[str] = []
        self.counts: Counter[str] = Counter()
        self._awaited: list[_Awaited] = []

    def sent(self, kind: str) -> None:
        """A request leaves; its outcome is open."""
        self._note(f"{kind} sent")

    def answered(self, kind: str, request: Message, response: Message, *, agent_id: str = "") -> None:
        """A request was acknowledged."""
        self.acknowledged.append(Acknowledged(kind, agent_id, request, response))
        self._note(f"{kind} acknowledged")

    def interrupted(self, kind: str) -> None:
        """The connection was lost, or the deadline came, before the answer."""
        self._note(f"{kind} interrupted")

    def of(self, *kinds: str) -> list[Acknowledged]:
        """The acknowledgements of these kinds, in order."""
        return [entry for entry in self.acknowledged if entry.kind in kinds]

    async def after(self, mark: str, times: int) -> None:
        """Returns right after the mark, such as "create sent", was noted `times` more."""
        reached = asyncio.get_running_loop().create_future()
        awaited = _Awaited(mark, times, reached)
        self._awaited.append(awaited)
        try:
            await reached
        finally:
            self._awaited.remove(awaited)

    def _note(self, mark: str) -> None:
        self.counts[mark] += 1
        for awaited in self._awaited:
            if awaited.mark == mark or awaited.mark == "anything":
                awaited.left -= 1
                if awaited.left <= 0 and not awaited.reached.done():
                    awaited.reached.set_result(None)
