"""How many hosts may be starting at a time: a machine that starts hundreds at once starts none in time."""

from __future__ import annotations

from typing import Protocol


class Waiter(Protocol):
    """Who wants to start something; hashable by identity."""

    def wake(self) -> None:
        """Tells it that it has been let in."""
        ...


class StartGate:
    """Lets in `width` at a time, in the order of asking. Belongs to the loop thread."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._inside: set[Waiter] = set()
        self._waiting: dict[Waiter, None] = {}

    def enter(self, waiter: Waiter) -> bool:
        """True when it is inside; otherwise it is queued and woken when it is let in."""
        if waiter in self._inside:
            return True
        if len(self._inside) < self._width and not self._waiting:
            self._inside.add(waiter)
            return True
        self._waiting[waiter] = None
        return False

    def leave(self, waiter: Waiter) -> None:
        """Makes room for the next; also takes back the wish to enter. Repeating it does nothing."""
        self._waiting.pop(waiter, None)
        self._inside.discard(waiter)
        while self._waiting and len(self._inside) < self._width:
            following = next(iter(self._waiting))
            del self._waiting[following]
            self._inside.add(following)
            following.wake()
