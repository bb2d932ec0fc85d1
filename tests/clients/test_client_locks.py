"""Locks held by a block of code: what is kept, what is given back, and how a loss is noticed."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from kapell import Client, Connection
from kapell.errors import Deadlock, FencingTokenStale, InvalidRequest, KapellError, LockHeld, LockLost
from kapell.locks import lock_item
from kapell.sync import LoopThread, SyncClient
from kapell.v1 import lock_pb2 as pb

from tests.clients.fake_server import refusal
from tests.clients.lock_server import LockServer

# No test waits this long: it ends the block, or the renewal comes before.
LONG = 60.0


@pytest.fixture
async def server() -> AsyncIterator[LockServer]:
    async with LockServer() as server:
        yield server


@pytest.fixture
def threaded() -> Iterator[tuple[LoopThread, LockServer]]:
    """A server in a loop of its own, for code that blocks."""
    loop = LoopThread()
    server = loop.call(LockServer)
    loop.run(server.__aenter__())
    yield loop, server
    loop.close(server.__aexit__())


@pytest.fixture
async def client(server: LockServer) -> AsyncIterator[Client]:
    async with Client(Connection(server.endpoint)) as client:
        yield client


async def test_a_free_lock_is_held_for_the_block(server: LockServer, client: Client) -> None:
    async with client.lock("repo/src") as lock:
        assert [held.path for held in server.held.values()] == ["repo/src"]
        assert lock.fencing_token == lock.token_of("repo/src") == 1
        assert json.loads(lock.environment) == [
            {"path": "repo/src", "mode": "exclusive", "lock_id": "lock_1", "fencing_token": 1}
        ]
        lock.check()
        await lock.verify()

    assert server.held == {}
    assert server.calls["AcquireLocks"] == server.calls["ReleaseLocks"] == 1
    assert server.calls["WatchLocks"] == 0, "who is done at once pays for no stream"


async def test_a_set_has_a_token_for_each_path(client: Client) -> None:
    async with client.lock("a", lock_item("b", shared=True)) as lock:
        assert (lock.token_of("a"), lock.token_of("b")) == (1, 2)


async def test_without_patience_a_held_lock_is_refused_with_its_holder(server: LockServer, client: Client) -> None:
    await server.occupy("repo")

    with pytest.raises(LockHeld) as refused:
        async with client.lock("repo/src", timeout=0):
            raise AssertionError("it is not ours")

    assert refused.value.holder == "a stranger"
    assert server.tickets == {}


async def test_whoever_waits_gets_the_lock_when_it_is_free(server: LockServer, client: Client) -> None:
    (theirs,) = await server.occupy("repo")

    async def hold() -> int:
        async with client.lock("repo/src") as lock:
            return lock.fencing_token

    waiting = asyncio.create_task(hold())
    await server.until(lambda: server.calls["WatchLockTicket"])
    await server.take_away(theirs)

    assert await waiting > 1
    assert server.calls["RenewLocks"] == 1, "the ttl of a ticket began at some time that nobody told us"
    assert server.held == {}


async def test_a_wait_that_is_over_leaves_the_queue_and_names_the_holder(server: LockServer, client: Client) -> None:
    await server.occupy("repo")

    with pytest.raises(LockHeld) as refused:
        async with client.lock("repo/src", timeout=0.05):
            raise AssertionError("it is not ours")

    assert (refused.value.holder, refused.value.held_path) == ("somebody (a stranger)", "repo")
    assert [ticket.state for ticket in server.tickets.values()] == [pb.LOCK_TICKET_STATE_CANCELLED]


@pytest.mark.parametrize("silent", ["AcquireLocks", "WatchLockTicket"])
async def test_nothing_stays_of_an_acquisition_that_is_cancelled(
    server: LockServer, client: Client, silent: str
) -> None:
    (theirs,) = await server.occupy("repo")
    server.silent.add(silent)
    waiting = asyncio.create_task(client.lock("repo/src").__aenter__())
    await server.until(lambda: server.calls[silent])

    waiting.cancel()
    await asyncio.wait((waiting,))

    assert waiting.cancelled()
    assert [ticket.state for ticket in server.tickets.values()] == [pb.LOCK_TICKET_STATE_CANCELLED]
    await server.take_away(theirs)
    assert server.held == {}


async def test_a_grant_that_came_before_the_cancel_is_given_back(server: LockServer, client: Client) -> None:
    server.silent.add("AcquireLocks")
    waiting = asyncio.create_task(client.lock("repo").__aenter__())
    await server.until(lambda: server.calls["AcquireLocks"])
    assert len(server.held) == 1

    waiting.cancel()
    await asyncio.wait((waiting,))

    assert server.held == {}


async def test_a_ticket_that_is_granted_as_the_wait_is_cancelled_is_given_back(
    server: LockServer, client: Client
) -> None:
    (theirs,) = await server.occupy("repo")
    server.silent.add("WatchLockTicket")
    waiting = asyncio.create_task(client.lock("repo").__aenter__())
    await server.until(lambda: server.calls["WatchLockTicket"])
    await server.take_away(theirs)
    assert len(server.held) == 1, "granted, and we do not know it yet"

    waiting.cancel()
    await asyncio.wait((waiting,))

    assert server.held == {}


@pytest.mark.parametrize(
    ("state", "error"), [(pb.LOCK_TICKET_STATE_REFUSED, Deadlock), (pb.LOCK_TICKET_STATE_EXPIRED, LockLost)]
)
async def test_a_ticket_that_ends_otherwise_says_why(
    server: LockServer, client: Client, state: pb.LockTicketState.ValueType, error: type[KapellError]
) -> None:
    await server.occupy("repo")
    waiting = asyncio.create_task(client.lock("repo").__aenter__())
    await server.until(lambda: server.calls["WatchLockTicket"])

    await server.end_ticket(state, "a waits for b, b waits for a")

    with pytest.raises(error, match="a waits for b, b waits for a"):
        await waiting


async def test_a_deadlock_names_its_cycle(server: LockServer, client: Client) -> None:
    server.refusals["AcquireLocks"] = [refusal("FAILED_PRECONDITION", "DEADLOCK", cycle="a -> b -> a")]

    with pytest.raises(Deadlock) as refused:
        await client.locks.acquire("repo")

    assert refused.value.cycle == "a -> b -> a"


async def test_locks_are_renewed_well_before_their_time(server: LockServer, client: Client) -> None:
    server.ttl_left = 0.3

    async with client.lock("repo") as lock:
        await server.until(lambda: server.calls["RenewLocks"] >= 3)
        lock.check()


async def test_a_renewal_outlives_failures_of_the_server(server: LockServer, client: Client) -> None:
    server.ttl_left = 1.0
    server.refusals["RenewLocks"] = [grpc.StatusCode.INTERNAL, grpc.StatusCode.INTERNAL]

    async with client.lock("repo") as lock:
        await server.until(lambda: server.calls["RenewLocks"] >= 3)
        lock.check()


async def test_a_lock_that_cannot_be_renewed_in_time_is_lost(server: LockServer, client: Client) -> None:
    server.ttl_left = 0.2
    server.refusals["RenewLocks"] = [grpc.StatusCode.INTERNAL] * 100

    with pytest.raises(LockLost, match="not renewed in time"):
        async with client.lock("repo") as lock:
            await lock.lost.wait()


async def test_a_loop_that_stood_still_notices_the_loss_by_itself(server: LockServer, client: Client) -> None:
    server.ttl_left = 0.0

    with pytest.raises(LockLost, match="stood still"):
        async with client.lock("repo") as lock:
            lock.check()


async def test_a_refused_renewal_is_a_loss(server: LockServer, client: Client) -> None:
    server.ttl_left = 0.2

    with pytest.raises(LockLost, match="it is gone"):
        async with client.lock("repo") as lock:
            del server.held["lock_1"]
            await lock.lost.wait()
            with pytest.raises(LockLost):
                lock.check()


async def test_a_lock_that_is_taken_away_is_noticed_before_the_renewal(server: LockServer, client: Client) -> None:
    with pytest.raises(LockLost, match="taken away by an administrator"):
        async with client.lock("repo") as lock:
            await server.until(lambda: server.calls["WatchLocks"])
            await server.take_away("lock_1")
            await lock.lost.wait()

    assert server.calls["RenewLocks"] == 0


async def test_a_loss_that_only_the_release_finds_is_told(server: LockServer, client: Client) -> None:
    with pytest.raises(LockLost, match="not protected to the end"):
        async with client.lock("repo"):
            del server.held["lock_1"]


async def test_the_error_of_the_block_is_not_hidden_by_a_loss(server: LockServer, client: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.lock("repo"):
            del server.held["lock_1"]
            raise ZeroDivisionError


async def test_a_stale_fence_names_the_one_in_force(client: Client) -> None:
    with pytest.raises(FencingTokenStale) as refused:
        await client.locks.check_fence("repo/a", 3)

    assert (refused.value.path, refused.value.current) == ("repo/a", 17)


async def test_a_session_holds_many_locks_and_closes_them(server: LockServer, client: Client) -> None:
    async with client.locks.session("build", ttl=30) as session:
        async with session.lock("a") as first, session.lock("b"):
            assert {lock.owner.session_id for lock in server.held.values()} == {session.session_id}
            assert first.lost is not session.lost
        assert server.calls["RenewLocks"] == 0, "the session renews"

    assert [one.state for one in server.sessions.values()] == [pb.LOCK_SESSION_STATE_CLOSED]


async def test_a_lost_session_loses_its_locks(server: LockServer, client: Client) -> None:
    server.ttl_left = 0.2

    with pytest.raises(LockLost, match="the session has expired"):
        async with client.locks.session(ttl=1) as session, session.lock("a") as lock:
            server._session(session.session_id).state = pb.LOCK_SESSION_STATE_EXPIRED
            await lock.lost.wait()

    with pytest.raises(LockLost):
        async with session.lock("b"):
            raise AssertionError("its owner has ended")


async def test_a_session_that_is_cancelled_as_it_opens_is_closed(server: LockServer, client: Client) -> None:
    server.silent.add("OpenSession")
    opening = asyncio.create_task(client.locks.session().__aenter__())
    await server.until(lambda: server.calls["OpenSession"])

    opening.cancel()
    await asyncio.wait((opening,))

    assert [one.state for one in server.sessions.values()] == [pb.LOCK_SESSION_STATE_CLOSED]


async def test_held_locks_serve_once_and_need_a_path(client: Client) -> None:
    lock = client.lock("a")
    async with lock:
        pass

    with pytest.raises(InvalidRequest, match="ask for them again"):
        await lock.__aenter__()
    with pytest.raises(InvalidRequest, match="no path"):
        client.lock()


async def test_nothing_runs_on_after_the_block(server: LockServer, client: Client) -> None:
    before = asyncio.all_tasks()
    async with client.lock("a", ttl=LONG):
        assert len(asyncio.all_tasks()) > len(before)

    assert {task for task in asyncio.all_tasks() - before if "lock" in task.get_name()} == set()


def test_the_blocking_face_holds_and_renews_by_its_thread(threaded: tuple[LoopThread, LockServer]) -> None:
    loop, server = threaded
    server.ttl_left = 0.3
    with SyncClient(Connection(server.endpoint)) as client:
        with client.lock("a") as lock:
            loop.run(server.until(lambda: server.calls["RenewLocks"] >= 2))
            lock.check()
            lock.verify()
            assert lock.fencing_token == 1
            with client.locks.session("s", ttl=30) as session, session.lock("b"):
                session.check()

        assert server.held == {}
        with pytest.raises(LockLost), client.lock("a") as lock:
            loop.run(server.take_away(*server.held))
            assert lock.lost.wait(30)


def test_ctrl_c_while_waiting_leaves_nothing(threaded: tuple[LoopThread, LockServer]) -> None:
    loop, server = threaded
    loop.run(server.occupy("a"))
    with SyncClient(Connection(server.endpoint)) as client:

        async def interrupt() -> None:
            await server.until(lambda: server.calls["WatchLockTicket"])
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        interrupting = asyncio.run_coroutine_threadsafe(interrupt(), loop._loop)
        with pytest.raises(KeyboardInterrupt):
            client.lock("a").__enter__()
        interrupting.result(30)
        loop.run(server.until(lambda: server.calls["CancelLockTicket"]))

    assert [ticket.state for ticket in server.tickets.values()] == [pb.LOCK_TICKET_STATE_CANCELLED]
