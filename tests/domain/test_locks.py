"""Locks by example: conflicts, sets, order, upgrades, owners, deadlocks."""

from __future__ import annotations

import pytest
from kapell.v1.lock_pb2 import CheckFenceRequest, ForceReleaseLocksRequest, RenewLocksRequest
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks import lock
from kapell_server.engine.facts import ChildrenAwaited

from tests.domain.lock_world import LockWorld, Over
from tests.domain.world import USER


@pytest.fixture
def world() -> LockWorld:
    return LockWorld()


def test_a_lock_covers_everything_below_its_path(world: LockWorld) -> None:
    a, b = world.session(), world.session()
    world.acquire(a, "repo/src")

    for path in ("repo/src", "repo/src/a.py", "repo", "repo/src/deep/er r"):
        with world.refuses("LOCK_HELD"):
            world.acquire(b, path)

    assert world.acquire(b, "repo/srcs", "repo/docs").locks


def test_shared_locks_stand_beside_each_other(world: LockWorld) -> None:
    a, b = world.session(), world.session()

    world.acquire(a, "repo r")
    world.acquire(b, "repo/a.py r")

    with world.refuses("LOCK_HELD"):
        world.acquire(b, "repo")


def test_a_set_is_taken_whole_or_not_at_all(world: LockWorld) -> None:
    a, b = world.session(), world.session()
    world.acquire(a, "two")

    with world.refuses("LOCK_HELD"):
        world.acquire(b, "one", "two", "three")

    assert set(world.held()) == {"two"}


def test_a_release_hands_over_to_who_waits_first(world: LockWorld) -> None:
    a, b, c = (world.session() for _ in range(3))
    first = world.acquire(a, "p")
    second = world.acquire(b, "p", wait=60)
    third = world.acquire(c, "p", wait=60)

    world.give_back(*first.locks)

    assert second.locks[0].path == "p"
    assert third.answer is None
    assert second.locks[0].fencing_token > first.locks[0].fencing_token


def test_a_reader_does_not_overtake_a_writer_that_waits(world: LockWorld) -> None:
    reader, writer, late = (world.session() for _ in range(3))
    world.acquire(reader, "p r")
    waiting = world.acquire(writer, "p", wait=60)

    with world.refuses("LOCK_HELD"):
        world.acquire(late, "p/below r")

    assert waiting.answer is None


def test_who_holds_what_a_waiter_wants_does_not_wait_behind_it(world: LockWorld) -> None:
    holder, waiter = world.session(), world.session()
    world.acquire(holder, "repo/a")
    world.acquire(waiter, "repo", wait=60)

    assert world.acquire(holder, "repo/b").locks


def test_two_who_want_what_the_other_has_are_a_deadlock(world: LockWorld) -> None:
    a, b = world.session(), world.session()
    world.acquire(a, "x")
    world.acquire(b, "y")
    world.acquire(a, "y", wait=60)

    with world.refuses("DEADLOCK") as caught:
        world.acquire(b, "x", wait=60)

    assert caught[0].metadata["cycle"] == f"{b} → {a} → {b}"
    assert f"{b} waits for x of {a}" in caught[0].message


def test_two_readers_cannot_both_wait_to_write(world: LockWorld) -> None:
    a, b = world.session(), world.session()
    world.acquire(a, "p r")
    world.acquire(b, "p r")
    upgrade = world.acquire(a, "p", wait=60)

    with world.refuses("DEADLOCK"):
        world.acquire(b, "p", wait=60)

    world.close(b)
    assert world.held() == {"p": f"x {a}"}
    assert upgrade.locks


def test_weakening_lets_readers_in_without_a_gap(world: LockWorld) -> None:
    a, b = world.session(), world.session()
    strong = world.acquire(a, "p")
    reader = world.acquire(b, "p r", wait=60)

    world.give_back(*strong.locks, keep_shared=True)

    assert reader.locks
    assert world.held() == {"p": f"r {a} r {b}"}


def test_what_one_has_already_is_answered_as_it_is(world: LockWorld) -> None:
    a = world.session()
    first = world.acquire(a, "p")

    again = world.acquire(a, "p r", "q")

    assert again.locks[0].fencing_token == first.locks[0].fencing_token
    assert [one.path for one in again.locks] == ["p", "q"]


def test_locks_of_an_attempt_end_with_it(world: LockWorld) -> None:
    task = world.running()
    world.acquire(task, "p")
    session = world.session()
    waiting = world.acquire(session, "p", wait=60)

    world.complete(task)

    assert waiting.locks
    assert world.events[-2] == "lock.granted"


def test_a_lost_attempt_loses_its_locks_within_the_batch(world: LockWorld) -> None:
    task = world.running()
    world.acquire(task, "p")

    world.advance(11)

    assert world.held() == {}
    assert "lock.expired" in world.events


def test_an_expired_session_cannot_be_renewed(world: LockWorld) -> None:
    session = world.session(ttl=5)
    world.acquire(session, "p")
    world.now_ns += 5_000_000_000

    with pytest.raises(KapellError, match="lost"):
        world.renew(session)

    assert world.held() == {}
    assert world.events[-2:] == ["lock.expired", "session.expired"]


def test_a_renewed_session_lives_on(world: LockWorld) -> None:
    session = world.session(ttl=5)
    world.acquire(session, "p")

    for _ in range(5):
        world.advance(3)
        world.renew(session)

    assert set(world.held()) == {"p"}


def test_a_plain_lock_ends_after_its_ttl_unless_renewed(world: LockWorld) -> None:
    call = world.acquire("", "p", ttl=2)
    world.advance(1.5)
    world.do(RenewLocksRequest(lock_ids=[call.locks[0].lock_id]))
    world.advance(1.5)
    assert set(world.held()) == {"p"}

    world.advance(0.5)

    assert world.held() == {}
    with world.refuses("LOCK_LOST"):
        world.do(RenewLocksRequest(lock_ids=[call.locks[0].lock_id]))


def test_a_ticket_outlives_its_call_and_the_server(world: LockWorld) -> None:
    a, b = world.session(), world.session()
    held = world.acquire(a, "p")
    ticket = world.acquire(b, "p", keep_queued=True).answer.ticket
    assert (ticket.position, ticket.blockers[0].owner.session_id) == (1, a)

    world.restart()
    world.give_back(*held.locks)

    assert world.held() == {"p": f"x {b}"}
    assert world.ticket(ticket.ticket_id).locks[0].fencing_token > held.locks[0].fencing_token


def test_a_call_whose_caller_is_gone_leaves_the_queue(world: LockWorld) -> None:
    a, b, c = (world.session() for _ in range(3))
    held = world.acquire(a, "p")
    gone = world.acquire(b, "p", wait=60)
    behind = world.acquire(c, "p", wait=60)

    world.do(Over(gone, abandoned=True))
    world.give_back(*held.locks)

    assert gone.answer is None
    assert behind.locks


def test_a_grant_that_came_before_the_end_of_the_wait_stands(world: LockWorld) -> None:
    a, b = world.session(), world.session()
    held = world.acquire(a, "p")
    call = world.acquire(b, "p", wait=1)

    world.give_back(*held.locks)
    world.do(Over(call, abandoned=True))

    assert world.held() == {"p": f"x {b}"}


def test_what_is_taken_away_leaves_a_stale_fence(world: LockWorld) -> None:
    call = world.acquire("", "repo/src")
    token = call.locks[0].fencing_token
    check = CheckFenceRequest(path="repo/src/a.py", fencing_token=token)
    assert lock.check_fence(world.state, check, USER, world.now_ns).lock.path == "repo/src"

    answer = world.do(ForceReleaseLocksRequest(path="repo", reason="stuck"))

    assert answer.fencing_token >= token
    with pytest.raises(KapellError, match="no good"):
        lock.check_fence(world.state, check, USER, world.now_ns)
    assert world.acquire("", "repo/src").locks[0].fencing_token > answer.fencing_token


def test_priority_counts_as_much_as_waiting(world: LockWorld) -> None:
    a, low, high = (world.session() for _ in range(3))
    held = world.acquire(a, "p")
    patient = world.acquire(low, "p", wait=60, priority=500)
    world.advance(61)
    urgent = world.acquire(high, "p", wait=60, priority=501)

    world.give_back(*held.locks)

    assert patient.locks
    assert urgent.answer is None


def test_there_are_only_so_many_locks_waits_and_sessions() -> None:
    world = LockWorld(max_locks=2, max_lock_waits=1, max_lock_tickets=1, max_lock_sessions=1)
    first = world.acquire("", "a").locks
    world.acquire("", "a", wait=60, keep_queued=True)
    world.session()

    with world.refuses("LOCK_LIMIT"):
        world.acquire("", "b", "c")
    with world.refuses("LOCK_LIMIT"):
        world.acquire("", "a", wait=60)
    with world.refuses("LOCK_LIMIT"):
        world.session()

    world.give_back(*first)


def test_one_owner_holds_only_so_many_locks() -> None:
    world = LockWorld(max_locks_of_owner=3)
    session = world.session()
    world.acquire(session, "a", "b")

    with world.refuses("LOCK_LIMIT"):
        world.acquire(session, "c", "d")

    assert world.acquire(session, "c").locks
    assert world.acquire(world.session(), "d").locks


def test_weakening_a_plain_lock_does_not_renew_it(world: LockWorld) -> None:
    call = world.acquire("", "p", ttl=5)
    world.advance(4)

    world.give_back(*call.locks, keep_shared=True)
    world.advance(1)

    assert world.held() == {}


def test_short_locks_with_long_ttls_leave_nothing_behind(world: LockWorld) -> None:
    for number in range(20):
        call = world.acquire("", f"p/{number}", ttl=86_400)
        world.give_back(*call.locks)

    assert world.state.next_due_ns() == 0 or not any(key.startswith("grant_") for key in world.state.due.at)
    assert world.state.locks.owners == {}


def test_a_child_that_wants_what_its_waiting_parent_holds_is_a_deadlock(world: LockWorld) -> None:
    parent = world.running()
    world.acquire(parent, "repo")
    child = world.running(parent_task_id=parent)
    world.state.locks.child_waits[parent] = 1

    with world.refuses("DEADLOCK") as caught:
        world.acquire(child, "repo/a", wait=60)

    assert f"{parent} waits for its child {child}" in caught[0].message


def test_a_parent_that_begins_to_wait_for_a_child_that_waits_for_it_is_a_deadlock(world: LockWorld) -> None:
    parent = world.running()
    world.acquire(parent, "repo")
    child = world.running(parent_task_id=parent)
    world.acquire(child, "repo/a", wait=60)
    world.state.locks.child_waits[parent] = 1

    with world.refuses("DEADLOCK"):
        world.do(ChildrenAwaited(parent))


def test_a_call_of_an_attempt_that_ends_is_told_so(world: LockWorld) -> None:
    session, task = world.session(), world.running()
    world.acquire(session, "p")
    call = world.acquire(task, "p", wait=60)

    world.complete(task)

    with pytest.raises(KapellError, match="lease is lost"):
        assert call.locks


def test_a_clock_that_was_set_back_over_a_restart_lets_nobody_overtake(world: LockWorld) -> None:
    held = world.acquire(world.session(), "p")
    first = world.acquire("", "p", keep_queued=True).answer.ticket
    world.now_ns -= 3_000_000_000
    world.restart()
    second = world.acquire("", "p", keep_queued=True).answer.ticket

    world.give_back(*held.locks)

    assert world.ticket(first.ticket_id).locks
    assert not world.ticket(second.ticket_id).locks
