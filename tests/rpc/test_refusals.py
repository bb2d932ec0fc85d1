"""Refused attempts in the audit log: the first at once, a flood counted together, and no more than the pace allows."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kapell.v1.audit_pb2 import AuditEntry, ListAuditEntriesRequest
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST, SCOPE_READ
from kapell_server.domain.access import Caller, CallerKind
from kapell_server.rpc import auth
from kapell_server.rpc.refusals import MOST_KINDS, Refusals

from tests.rpc.scene import METHODS
from tests.support.live_engine import LiveEngine, live_engine


def tried(refusals: Refusals, name: str, method: str = "CreateToken") -> None:
    caller = Caller(kind=CallerKind.USER, name=name, scopes=frozenset({SCOPE_READ}), token_id=f"token_{name}")
    refusals.note(METHODS[method], caller, "ipv4:192.0.2.7:1", auth.refusal(METHODS[method], caller))


async def entries(live: LiveEngine) -> list[AuditEntry]:
    request = ListAuditEntriesRequest(order=LIST_ORDER_OLDEST_FIRST, page_size=1000)
    return list((await live.engine.reads.tokens.list_audit(request)).entries)


async def test_a_flood_is_counted_together_and_bounded(tmp_path: Path) -> None:
    async with live_engine("", tmp_path) as live:
        refusals = Refusals(live.clock.now_ns, burst=2)
        keeper = asyncio.create_task(refusals.keep(live.engine))
        for number in range(10_000):
            tried(refusals, f"user{number % 1000}")
        tried(refusals, "user0", "ListTasks")

        while len(await entries(live)) < 3:
            await live.pulse()
        for _ in range(20):
            await live.pulse()

        first = await entries(live)
        assert [(entry.actor.id, entry.times) for entry in first] == [("user0", 10), ("user1", 10), ("user2", 10)]
        keeper.cancel()
        await refusals.write(live.engine)
        assert len(await entries(live)) == MOST_KINDS, "the rest of what was kept is written at the end"


async def test_entries_go_on_where_the_log_ended(tmp_path: Path) -> None:
    async with live_engine("", tmp_path) as live:
        refusals = Refusals(live.clock.now_ns)
        tried(refusals, "mallory")
        tried(refusals, "mallory", "PauseQueue")
        await refusals.write(live.engine)
        await live.restart()
        tried(refusals, "mallory")

        await refusals.write(live.engine)

        found = await entries(live)
        assert [entry.number for entry in found] == [1, 2, 3]
        assert {entry.refusal for entry in found} == {"SCOPE_MISSING"}
        assert [entry.method for entry in found][:2] == ["TokenService.CreateToken", "QueueService.PauseQueue"]
