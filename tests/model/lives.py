"""What the oracle knows of a task and of an agent. Times are seconds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.model.limits import NEVER
from tests.model.locks import Locks

LEASE, GRACE, OBLIVION = 10.0, 90.0, 600.0
OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
HELD = ("RUNNING", "CANCELLING")


@dataclass(eq=False)
class Task:
    """A task as it should be. `why` is its failure; while CANCELLING, the timeout that stops it."""

    kind: str
    priority: int
    most: int
    pause: float
    limits: dict[str, float]
    born: float
    share: str = ""
    keys: tuple[str, ...] = ()
    locks: Locks = ()
    state: str = "PENDING"
    wakes: float = NEVER
    earliest: float = 0.0
    provider: str = ""
    since: float = 0.0
    rank: int = 0
    came: int = 0
    arrived: int = 0
    place: float = 0
    overtaken: Counter[str] = field(default_factory=Counter, repr=False)
    tries: int = 0
    number: int = 0
    token: str = ""
    holder: str = ""
    expires: float = NEVER
    heard: bool = False
    why: str = ""
    skipped: bool = False

    def is_ahead_of(self, other: Task) -> bool:
        """In the queue of its kind."""
        return (-self.priority, self.rank) < (-other.priority, other.rank)


@dataclass(eq=False)
class Agent:
    """An agent as it should be."""

    kinds: tuple[str, ...]
    slots: int
    external: bool
    seen: float
    state: str = "ACTIVE"
    turns: int = 0
