"""Locks on the real engine and both databases: calls that wait, request_ids, time, failed commits, restarts."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.lock_pb2 import (
    LOCK_TICKET_STATE_CANCELLED,
    LOCK_TICKET_STATE_GRANTED,
    AcquireLocksRequest,
    CancelLockTicketRequest,
    CheckFenceRequest,
    GetLockTicketRequest,
    ListLocksResponse,
    Lock,
    LockFilter,
    LockItem,
    OpenSessionRequest,
    ReleaseLocksRequest,
    RenewLocksRequest,
    RenewSessionRequest,
)
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks.views import LocksQuestion

from tests.support.faulty_database import Fault, FaultyDatabase, busy
from tests.support.live_engine import USER, LiveEngine, new_task, settled

MINUTE = Duration(seconds=60)


def acquire(*paths: str, **rest: Any) -> AcquireLocksRequest:
    return AcquireLocksRequest(items=[LockItem(path=path) for path in paths], **rest)


def release(*locks: Lock) -> ReleaseLocksRequest:
    return ReleaseLocksRequest(lock_ids=[lock.lock_id for lock in locks])


async def session(live: LiveEngine, seconds: int = 60) -> str:
    opened = await live.call(OpenSessionRequest(ttl=Duration(seconds=seconds)))
    return str(opened.session.session_id)


async def waiting(live: LiveEngine, request: AcquireLocksRequest) -> asyncio.Task[Any]:
    """A call that waits for its locks."""
    request.wait.CopyFrom(MINUTE)
    call = await settled(live.call(request))
    await live.pulse()
    assert not call.done()
    return call


async def held(live: LiveEngine) -> list[str]:
    """The paths that are held."""
    data = await live.engine.submit(LocksQuestion(LockFilter(), 1000, None), USER)
    return [lock.path for lock in ListLocksResponse.FromString(data).locks]


async def test_a_waiting_call_is_answered_by_the_commit_that_frees_its_locks(live: LiveEngine) -> None:
    [lock] = (await live.call(acquire("repo/a"))).locks
    call = await waiting(live, acquire("repo"))

    await live.call(release(lock))

    [granted] = (await call).locks
    assert granted.path == "repo"
    assert granted.fencing_token > lock.fencing_token
    assert granted.ttl_remaining.seconds == 60


async def test_a_call_that_has_waited_enough_is_told_who_has_it(on_sqlite: LiveEngine) -> None:
    await on_sqlite.call(acquire("p", note="a migration"))

    refusal = await on_sqlite.refusal(acquire("p", wait=Duration(nanos=1_000_000)))

    assert refusal.reason_name == "LOCK_HELD"
    assert "a migration" in refusal.message
    assert refusal.metadata["held_path"] == "p"


async def test_a_caller_that_goes_away_leaves_the_queue(on_sqlite: LiveEngine) -> None:
    [lock] = (await on_sqlite.call(acquire("p"))).locks
    gone = await waiting(on_sqlite, acquire("p"))

    gone.cancel()
    await asyncio.wait([gone])
    await on_sqlite.pulse()
    await on_sqlite.call(release(lock))

    assert await held(on_sqlite) == []


async def test_the_same_request_id_gets_the_same_grant(live: LiveEngine) -> None:
    first = await live.call(acquire("p", request_id="r1"))

    again = await live.call(acquire("p", request_id="r1"))

    assert (again.replayed, again.locks) == (True, first.locks)


async def test_a_repeat_of_a_waiting_call_takes_up_its_place_and_is_remembered(live: LiveEngine) -> None:
    [lock] = (await live.call(acquire("p"))).locks
    first = await waiting(live, acquire("p", request_id="r1"))
    second = await waiting(live, acquire("p", request_id="r1"))

    await live.call(release(lock))

    assert (await first).locks == (await second).locks
    third = await live.call(acquire("p", request_id="r1"))
    assert (third.replayed, third.locks) == (True, (await first).locks)


async def test_a_release_and_a_repeat_in_one_batch_give_one_grant(live: LiveEngine) -> None:
    [lock] = (await live.call(acquire("p"))).locks
    first = await waiting(live, acquire("p", request_id="r1"))

    _, again = await live.together(release(lock), acquire("p", request_id="r1"))

    assert again.locks == (await first).locks
    assert await held(live) == ["p"]


async def test_another_body_under_the_same_request_id_is_refused(on_sqlite: LiveEngine) -> None:
    await on_sqlite.call(acquire("p"))
    await waiting(on_sqlite, acquire("p", request_id="r1"))

    refusal = await on_sqlite.refusal(acquire("q", request_id="r1"))

    assert refusal.reason_name == "REQUEST_ID_REUSED"


async def test_a_ticket_survives_the_server_and_its_repeat_finds_the_grant(live: LiveEngine) -> None:
    owner = await session(live)
    [lock] = (await live.call(acquire("p"))).locks
    ticket = (await live.call(acquire("p", session_id=owner, keep_queued=True, request_id="r1"))).ticket
    assert (ticket.position, ticket.blockers[0].id) == (1, lock.lock_id)

    await live.crash()
    repeated = await live.call(acquire("p", session_id=owner, keep_queued=True, request_id="r1"))
    assert (repeated.ticket.ticket_id, repeated.replayed) == (ticket.ticket_id, True)
    await live.call(release(lock))
    await live.crash()

    granted = await live.call(acquire("p", session_id=owner, keep_queued=True, request_id="r1"))
    assert [one.path for one in granted.locks] == ["p"]
    read = (await live.call(GetLockTicketRequest(ticket_id=ticket.ticket_id))).ticket
    assert read.state == LOCK_TICKET_STATE_GRANTED
    assert read.locks[0].fencing_token == granted.locks[0].fencing_token > lock.fencing_token


async def test_a_cancelled_ticket_gets_nothing_and_its_caller_is_told(live: LiveEngine) -> None:
    [lock] = (await live.call(acquire("p"))).locks
    call = await waiting(live, acquire("p", keep_queued=True, request_id="r1"))
    ticket = (await live.call(acquire("p", keep_queued=True, request_id="r1"))).ticket

    await live.call(CancelLockTicketRequest(ticket_id=ticket.ticket_id))
    await live.call(release(lock))

    assert (await call).ticket.state == LOCK_TICKET_STATE_CANCELLED
    assert await held(live) == []


async def test_locks_and_sessions_survive_a_crash_with_a_full_ttl_of_grace(live: LiveEngine) -> None:
    owner = await session(live, seconds=60)
    [kept] = (await live.call(acquire("a", session_id=owner))).locks
    [plain] = (await live.call(acquire("b", ttl=MINUTE))).locks
    live.clock.advance(59)

    await live.crash()
    live.clock.advance(59)

    assert await held(live) == ["a", "b"]
    await live.call(RenewSessionRequest(session_id=owner))
    await live.call(RenewLocksRequest(lock_ids=[plain.lock_id]))
    [after] = (await live.call(acquire("c"))).locks
    assert after.fencing_token > max(kept.fencing_token, plain.fencing_token)
    live.clock.advance(61)
    assert await held(live) == []


async def test_a_dead_owner_is_noticed_without_anybody_asking(on_sqlite: LiveEngine) -> None:
    await on_sqlite.call(acquire("p", ttl=Duration(seconds=5)))
    call = await waiting(on_sqlite, acquire("p"))
    on_sqlite.clock.advance(5)

    on_sqlite.engine.wake()

    assert (await call).locks[0].path == "p"


async def test_fencing_tokens_grow_over_deletion_and_restart(live: LiveEngine) -> None:
    tokens = []
    for _ in range(3):
        [lock] = (await live.call(acquire("p"))).locks
        tokens.append(lock.fencing_token)
        await live.call(release(lock))
        await live.crash()

    assert tokens == sorted(set(tokens))


async def test_a_failed_commit_hands_nothing_over(live: LiveEngine) -> None:
    [lock] = (await live.call(acquire("p"))).locks
    call = await waiting(live, acquire("p"))
    cast(FaultyDatabase, live.database).faults.append(Fault(busy()))

    assert (await live.refusal(release(lock))).reason_name == "STORAGE_BUSY"

    assert not call.done()
    assert live.engine.check_fence(CheckFenceRequest(path="p", fencing_token=lock.fencing_token), USER).lock.path == "p"
    await live.call(release(lock))
    assert (await call).locks[0].path == "p"


async def test_locks_of_an_attempt_go_with_its_task(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.call(new_task())
    offer = await live.offer(agent_id)
    [lock] = (await live.call(acquire("p", lease_token=offer.lease_token))).locks
    assert (lock.owner.task_id, lock.owner.attempt, lock.owner.agent_id) == (offer.task.task_id, 1, agent_id)

    await live.complete(offer)

    assert await held(live) == []
    refusal = await live.refusal(acquire("p", lease_token=offer.lease_token))
    assert refusal.reason_name == "LEASE_LOST"
    with pytest.raises(KapellError, match="no good"):
        live.engine.check_fence(CheckFenceRequest(path="p", fencing_token=lock.fencing_token), USER)


async def test_an_attempt_keeps_its_locks_over_a_restart(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.call(new_task())
    offer = await live.offer(agent_id)
    await live.call(acquire("p", lease_token=offer.lease_token))

    await live.crash()

    assert await held(live) == ["p"]
    await live.beat(agent_id, offer)
    live.clock.advance(11)
    assert await held(live) == []


async def test_a_stop_ends_the_calls_that_wait(on_sqlite: LiveEngine) -> None:
    await on_sqlite.call(acquire("p"))
    call = await waiting(on_sqlite, acquire("p"))

    await on_sqlite.restart()

    with pytest.raises(KapellError, match="stopping"):
        await call


async def test_a_deadlock_is_refused_before_it_is_one(live: LiveEngine) -> None:
    a, b = await session(live), await session(live)
    await live.call(acquire("x", session_id=a))
    await live.call(acquire("y", session_id=b))
    await waiting(live, acquire("y", session_id=a))

    refusal = await live.refusal(acquire("x", session_id=b, wait=MINUTE))

    assert refusal.reason_name == "DEADLOCK"
    assert refusal.metadata["cycle"] == f"{b} → {a} → {b}"


async def test_the_log_tells_the_whole_life_of_a_lock(on_sqlite: LiveEngine) -> None:
    owner = await session(on_sqlite)
    [lock] = (await on_sqlite.call(acquire("p", session_id=owner))).locks
    await on_sqlite.call(acquire("p", keep_queued=True))
    await on_sqlite.call(release(lock))

    assert await on_sqlite.event_names() == [
        *("session.opened", "lock.granted", "ticket.queued"),
        *("lock.released", "lock.granted", "ticket.ended"),
    ]
