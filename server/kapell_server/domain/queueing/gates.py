"""Gates: what a task must get through to start, besides an agent with a free slot.

Each kind of thing that tasks share - concurrency keys, locks, budgets - is one gate. Dispatch asks
all of them about the task at hand; only when none is closed the task starts, and every gate takes
what it needs in the same change (one atomic admission). A task that a gate holds back is parked
under a name of that gate and costs dispatch nothing until `Queues.retry` lets it try again.

A gate writes through the journal of State like everybody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kapell.v1.task_pb2 import Blocker, Task

from kapell_server.domain.queueing.ready import ReadyEntry


class Gate(Protocol):
    """One kind of thing that holds tasks back."""

    @property
    def kind(self) -> str:
        """The first part of every name it parks tasks under, as "key" of "key/build"."""

    def join(self, entry: ReadyEntry) -> None:
        """The task has become QUEUED."""

    def leave(self, entry: ReadyEntry) -> None:
        """The task is QUEUED no more."""

    def closed(self, entry: ReadyEntry) -> str:
        """The name under which the task has to wait; empty where it may start now. Takes nothing."""

    def parked(self, entry: ReadyEntry, name: str) -> None:
        """The task was parked under one of the gate's names: whatever ends the wait must be watched from now on."""

    def forgo(self, entry: ReadyEntry, name: str) -> None:
        """The task does not use the room it found here: it was parked under `name`, or, where that is
        empty, has gone without starting. Those that wait behind it may try."""

    def take(self, task: Task) -> None:
        """An agent gets the task, which was found open in the same batch: takes what it needs."""

    def give_back(self, task: Task) -> None:
        """No agent has the task any more, whatever has ended the attempt."""

    def room(self, name: str) -> int:
        """How many of the tasks that are parked under the name may try now."""

    def blockers(self, task: Task) -> Iterator[Blocker]:
        """Why the task cannot start now, for people. The task need not exist: dry runs ask, too."""
