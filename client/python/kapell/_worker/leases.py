"""What this worker holds: one `Lease` for each task it works on.

Everything here belongs to the loop thread. A lease is only ever told things (cancel, lost,
interrupt); the attempt that runs under it acts on them.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterator

from kapell._worker.logs import ROOM_BYTES, LogBuffer, room_for
from kapell._worker.progress import ProgressSlot
from kapell._worker.usage import UsageBuffer
from kapell.rules.redaction import Redactor
from kapell.v1.budget_pb2 import BudgetPause
from kapell.v1.task_pb2 import AttemptWait, Task
from kapell.v1.worker_pb2 import (
    LEASE_DIRECTIVE_CANCEL,
    LEASE_DIRECTIVE_LOST,
    LEASE_DIRECTIVE_PAUSE,
    LeaseDirective,
    Offer,
)


class Phase(enum.Enum):
    """How far the attempt under a lease is."""

    OFFERED = "offered"
    """Nothing was done yet: it can be handed back."""
    WORKING = "working"
    ENDING = "ending"
    """Its outcome is known and on its way to the server."""


class Lease:
    """One attempt that is ours. `cancelled` is set whenever the work is to stop, whatever the reason."""

    def __init__(self, offer: Offer, *, log_room_bytes: int = ROOM_BYTES) -> None:
        self.token: str = offer.lease_token
        self.task: Task = offer.task
        self.attempt: int = offer.attempt
        self.phase = Phase.OFFERED
        self.cancelled = asyncio.Event()
        self.lost = asyncio.Event()
        self.paused = asyncio.Event()
        """Set while a budget has no room for what the work would use; `pause` says why."""
        self.continued = asyncio.Event()
        """Set while it may use more."""
        self.continued.set()
        self.pause = BudgetPause()
        self._told_at = 0
        self.waiting: AttemptWait | None = None
        """What the work waits for, as the heartbeat is to say."""
        self.program_ended = False
        """The program that did the work has ended; its outcome follows."""
        self.is_parked = False
        """The attempt was ended to wait for an approval."""
        self.interrupted = False
        """The worker is stopping: the outcome, if any comes of it, is not the task's."""
        self.worked = asyncio.Event()
        """Nothing of the work runs any more; the outcome may still be on its way."""
        self.carrying_out: asyncio.Task[None] | None = None
        self.secrets: dict[str, str] = dict(offer.secrets)
        """Values by what the work finds them under. They leave the attempt masked only."""
        self.missing_secrets = list(offer.missing_secrets)
        self.redactor = Redactor(self.secrets.values())
        self._program_token = offer.attempt_token
        self.log = LogBuffer(log_room_bytes, self.redactor)
        self.progress = ProgressSlot(self.redactor)
        self.usage = UsageBuffer()
        self._on_stop: Callable[[], None] = _nothing

    @property
    def task_id(self) -> str:
        return self.task.task_id

    def program_token(self) -> str:
        """The token of programs that work on the attempt; empty where they get none. Masked from now on."""
        if self._program_token:
            self.redactor.add(self._program_token)
        return self._program_token

    def on_stop(self, listener: Callable[[], None]) -> None:
        """Calls `listener`, and no other any more, whenever there is a new reason to stop; now, if there was one."""
        self._on_stop = listener
        if self.cancelled.is_set():
            listener()

    def cancel(self) -> None:
        """The task is to be cancelled."""
        if not self.cancelled.is_set():
            self.cancelled.set()
            self._on_stop()

    def lose(self) -> None:
        """The attempt is no longer ours."""
        if not self.lost.is_set():
            self.lost.set()
            self.cancelled.set()
            self._on_stop()

    def park(self) -> None:
        """The attempt has ended by our own wish: its handler ends by itself, and nothing is sent any more."""
        self.is_parked = True
        self.lost.set()
        self.cancelled.set()

    def interrupt(self) -> None:
        """The worker cannot wait for the work any longer."""
        if self.phase is not Phase.ENDING:
            self.interrupted = True
            self.cancel()

    def follow(self, directive: LeaseDirective.ValueType, pause: BudgetPause | None = None, revision: int = 0) -> None:
        """Does what the server answered about this lease, at this revision where it may pause.

        While the outcome is on its way, the server may already have ended the attempt; whether it
        took the outcome is then for the answer to that call to say.
        """
        if directive == LEASE_DIRECTIVE_CANCEL:
            self.cancel()
        elif directive == LEASE_DIRECTIVE_LOST and self.phase is not Phase.ENDING:
            self.lose()
        elif revision:
            self._heed(directive == LEASE_DIRECTIVE_PAUSE, pause, revision)

    def _heed(self, paused: bool, pause: BudgetPause | None, revision: int) -> None:
        """Pauses or goes on, as the newest answer says: answers may overtake each other."""
        if revision < self._told_at:
            return
        self._told_at = revision
        self.pause = pause if paused and pause is not None else BudgetPause()
        _set(self.paused, paused)
        _set(self.continued, not paused)


class LeaseTable:
    """The leases of one worker with so many slots."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.log_room_bytes = room_for(slots)
        """What each attempt's log may take of the memory."""
        self._leases: dict[str, Lease] = {}
        self._accepting = True
        self._empty = asyncio.Event()
        self._empty.set()
        self._open = asyncio.Event()
        self._open.set()

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._leases.values()))

    @property
    def free(self) -> int:
        """Slots without a task."""
        return self._slots - len(self._leases)

    def add(self, lease: Lease) -> bool:
        """Takes a lease in; False for one that is held already, as a repeated poll may bring."""
        if lease.token in self._leases:
            return False
        self._leases[lease.token] = lease
        self._update()
        return True

    def remove(self, lease: Lease) -> None:
        """The attempt is over."""
        self._leases.pop(lease.token, None)
        self._update()

    def find(self, token: str) -> Lease | None:
        return self._leases.get(token)

    def earlier_than(self, lease: Lease) -> list[Lease]:
        """Older attempts at the task of `lease` that are still here."""
        return [
            other for other in self._leases.values() if other.task_id == lease.task_id and other.attempt < lease.attempt
        ]

    def of_task(self, task_id: str) -> Lease | None:
        """The newest lease of a task."""
        found = [lease for lease in self._leases.values() if lease.task_id == task_id]
        return max(found, key=lambda lease: lease.attempt, default=None)

    def accept(self, accepting: bool) -> None:
        """Whether new tasks are wanted; they are from the start."""
        self._accepting = accepting
        self._update()

    async def wait_open(self) -> None:
        """Waits until a new task is wanted and there is a slot for it."""
        await self._open.wait()

    async def wait_empty(self) -> None:
        """Waits until no lease is held."""
        await self._empty.wait()

    def _update(self) -> None:
        _set(self._empty, not self._leases)
        _set(self._open, self._accepting and self.free > 0)


def _nothing() -> None:
    """What is called where nobody listens."""


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()
