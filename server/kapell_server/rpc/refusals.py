"""Who tried what is for administrators, and was refused: told to the audit log, at a pace that fills no disk.

The first attempt is an entry at once. Then the same caller and method are counted together, and entries come no
faster than `INTERVAL` in the long run; what waits for its turn waits in memory, and of more kinds than `MOST_KINDS`
only the server's own log tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import structlog
from kapell.v1.audit_pb2 import AuditEntry
from kapell.v1.common_pb2 import SCOPE_ADMIN

from kapell_server.domain import access
from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import stamp
from kapell_server.domain.tokens.audit import audited_method
from kapell_server.engine.engine import Engine
from kapell_server.engine.facts import RefusalsNoted
from kapell_server.rpc.methods import Method

_log = structlog.get_logger(__name__)

BURST = 200
"""Entries that may come at once."""
INTERVAL = 60.0
"""Seconds that each entry takes from what may come in the long run: half a megabyte a day."""
MOST_KINDS = 256

_Kind = tuple[str, str, str, str]


class Refusals:
    """Collects refused attempts. Belongs to the loop; `now_ns` is what entries are dated by."""

    def __init__(self, now_ns: Callable[[], int], *, burst: int = BURST) -> None:
        self._now_ns = now_ns
        self._waiting: dict[_Kind, AuditEntry] = {}
        self._come = asyncio.Event()
        self._ahead = burst * INTERVAL
        self._next = 0.0
        """When the next entry would come at an even pace; it may come `_ahead` before."""
        self._left_out = False

    def note(self, method: Method, caller: Caller, peer: str, error: KapellError) -> None:
        """A call was refused. Only those that are for administrators, or audited, are kept."""
        if method.scope != SCOPE_ADMIN and not audited_method(method.request):
            return
        service = method.service.rpartition(".")[2]
        kind = caller.kind.value, caller.agent_id or caller.name, caller.token_id, method.name
        known = self._waiting.get(kind)
        if known is not None:
            known.times += 1
            return
        if len(self._waiting) >= MOST_KINDS:
            if not self._left_out:
                _log.warning("more attempts were refused than the audit log takes", method=method.path, peer=peer)
            self._left_out = True
            return
        entry = AuditEntry(
            actor=caller.actor(),
            token_id=caller.token_id,
            peer=peer,
            method=f"{service}.{method.name}",
            refusal=error.reason_name,
            times=1,
        )
        stamp(entry.audit_time, self._now_ns())
        self._waiting[kind] = entry
        self._come.set()

    async def keep(self, engine: Engine) -> None:
        """Writes them down, until cancelled."""
        while True:
            await self._come.wait()
            now = monotonic()
            at = max(self._next, now)
            if at - now > self._ahead:
                await asyncio.sleep(at - now - self._ahead)
                continue
            self._next = at + INTERVAL
            await self.write(engine, most=1)

    async def write(self, engine: Engine, most: int = MOST_KINDS) -> None:
        """Writes some of them down, the oldest first. A database that cannot is no reason to stop."""
        kinds = list(self._waiting)[:most]
        entries = [self._waiting.pop(kind) for kind in kinds]
        if not self._waiting:
            self._come.clear()
        self._left_out = False
        if not entries:
            return
        try:
            await engine.submit_aside(RefusalsNoted(tuple(entries)), access.system("audit"))
        except KapellError as error:
            _log.warning("refused attempts were not written down", reason=error.reason_name, entries=len(entries))
