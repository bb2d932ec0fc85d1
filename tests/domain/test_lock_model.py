"""Random lives of locks against the naive oracle, with everything that L1 to L5 say checked after each step.

Sessions, plain acquisitions, sets of every size, upgrades, weakening, expiries, clocks that jump, batches that
fail, and starts anew.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kapell.v1.lock_pb2 import (
    LOCK_MODE_EXCLUSIVE,
    CancelLockTicketRequest,
    ForceReleaseLocksRequest,
    ReleaseLocksRequest,
    RenewLocksRequest,
)
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import SECOND

from tests.domain.lock_oracle import Items, Oracle, clash
from tests.domain.lock_world import Call, LockWorld, Over

SESSIONS = 5
NAMES = ("a", "b", "c")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
item_sets = st.dictionaries(paths, st.booleans(), min_size=1, max_size=4).map(lambda found: tuple(found.items()))
sessions = st.integers(0, SESSIONS - 1)
priorities = st.sampled_from([0, 499, 500, 500, 500, 501, 1000])
# Of no round lengths, so that nobody comes at the very nanosecond at which waiting and priority weigh the same.
jumps = st.sampled_from([0.4031, 1.0007, 4.0011, 9.0013, 59.3171, 61.7333, 3700.0017, 90_000.0019])


class LockMachine(RuleBasedStateMachine):
    """One table of locks and its oracle. Owners that live are in `expiry`, with the time at which they end."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = LockWorld()
        self.oracle = Oracle()
        self.expiry: dict[str, int] = {}
        self.ttl: dict[str, int] = {}
        self.sessions = [self.open(ttl) for ttl in (5, 10, 60, 3600, 86_400)]
        self.calls: dict[str, Call] = {}
        self.tickets: set[str] = set()
        self.newest: dict[str, int] = {}
        self.lost: list[str] = []

    def open(self, ttl: int) -> str:
        session = self.world.session(ttl=ttl)
        self.ttl[session] = ttl * SECOND
        self.expiry[session] = self.world.now_ns + ttl * SECOND
        return session

    def pick(self, number: int) -> str:
        """A session that lives, opened anew where it does not."""
        if self.sessions[number] not in self.expiry:
            self.sessions[number] = self.open((5, 10, 60, 3600, 86_400)[number])
            self.after()
        return self.sessions[number]

    # -- what is asked -----------------------------------------------------------------------

    @rule(number=sessions, items=item_sets, priority=priorities, wait=st.booleans(), keep=st.booleans())
    def acquire(self, number: int, items: Items, priority: int, wait: bool, keep: bool) -> None:
        self.ask(self.pick(number), items, priority, wait, keep)

    @rule(items=item_sets, priority=priorities, wait=st.booleans(), keep=st.booleans(), ttl=st.sampled_from([1, 8, 90]))
    def acquire_plainly(self, items: Items, priority: int, wait: bool, keep: bool, ttl: int) -> None:
        self.ask("", items, priority, wait, keep, ttl=ttl)

    @rule(
        ring=st.lists(sessions, min_size=2, max_size=3, unique=True), wanted=st.lists(item_sets, min_size=3, max_size=3)
    )
    def cross(self, ring: list[int], wanted: list[Items]) -> None:
        """Each takes something, then wants what the next one has: the stuff that deadlocks are made of."""
        for turn in (0, 1):
            for place, number in enumerate(ring):
                items = wanted[(place + turn) % len(ring)][:1]
                self.ask(self.pick(number), items, 500, wait=bool(turn), keep=bool(turn and place))

    def ask(self, owner: str, items: Items, priority: int, wait: bool, keep: bool, ttl: int = 0) -> None:
        self.pass_time()
        wanted = [path if exclusive else f"{path} r" for path, exclusive in items]
        call = Call(
            self.world.request(owner, *wanted, wait=60 if wait else 0, priority=priority, keep_queued=keep, ttl=ttl)
        )
        arrival = self.world.state.locks._last_arrival.get(None, 0)
        answer = self.world.do_quietly(call)
        self.settle()
        if call.wait is not None:
            wait_id, order = call.wait.wait_id, call.wait.order
            assert call.wait.arrival_ns > arrival
        elif keep and not isinstance(answer, KapellError) and answer.HasField("ticket"):
            wait_id = answer.ticket.ticket_id
            order = (answer.ticket.create_time.ToNanoseconds() - priority * 60 * SECOND, wait_id)
        else:
            came = max(self.world.now_ns + 1000, arrival + 1)
            wait_id, order = "refused", (came - priority * 60 * SECOND, "~")
        who = owner or self.grant_of(call, wait_id)
        expected = self.decide(order, wait_id, who, items, wait or keep, ttl)
        got = answer.reason_name if isinstance(answer, KapellError) else "" if call.wait is None else "waits"
        if call.wait is None and not isinstance(answer, KapellError):
            got = "granted" if answer.locks else "waits"
        assert got == expected, (got, expected, who, items)
        if expected == "waits":
            if call.wait is not None:
                self.calls[wait_id] = call
            if keep:
                self.tickets.add(wait_id)
        self.settle()

    def grant_of(self, call: Call, wait_id: str) -> str:
        """The id of a plain acquisition, which the server has chosen."""
        wait = self.world.state.locks.waits.get(wait_id)
        if wait is not None:
            return wait.owner
        if call.answer is not None and not isinstance(call.answer, KapellError) and call.answer.locks:
            return str(call.answer.locks[0].owner.grant_id)
        return "grant_refused"

    def decide(self, order: Any, wait_id: str, owner: str, items: Items, waits: bool, ttl: int) -> str:
        """What the oracle does with a request."""
        oracle = self.oracle
        if oracle.free(order, owner, items):
            if not oracle.grant(owner, items):
                return "DEADLOCK"
            if ttl:
                self.begin_ttl(owner, ttl * SECOND)
            return "granted"
        if not waits:
            return "LOCK_HELD"
        oracle.queue[wait_id] = (order, owner, items)
        if oracle.reaches(owner, owner, hard=True):
            del oracle.queue[wait_id]
            return "DEADLOCK"
        if ttl:
            self.ttl[owner] = ttl * SECOND
        return "waits"

    def begin_ttl(self, owner: str, ttl_ns: int) -> None:
        self.ttl[owner] = ttl_ns
        self.expiry[owner] = self.world.now_ns + ttl_ns

    def settle(self) -> None:
        """Hands over, always to the first who can have it."""
        oracle = self.oracle
        while True:
            ready = [w for w, wait in oracle.queue.items() if oracle.free(*wait)]
            if not ready:
                return
            first = min(ready, key=lambda w: oracle.queue[w][0])
            _, owner, items = oracle.queue.pop(first)
            granted = oracle.grant(owner, items)
            if granted and owner.startswith("grant_"):
                self.begin_ttl(owner, self.ttl[owner])
            call = self.calls.pop(first, None)
            if call is not None and granted:
                assert [one.path for one in call.locks] == [path for path, _ in items]
            self.tickets.discard(first)

    @rule(data=st.data(), keep_shared=st.booleans(), many=st.booleans())
    def release(self, data: Any, keep_shared: bool, many: bool) -> None:
        held = self.world.locks()
        if not held:
            return
        chosen = data.draw(st.lists(st.sampled_from(held), min_size=1, max_size=4 if many else 1))
        self.pass_time()
        self.world.do(ReleaseLocksRequest(lock_ids=[one.lock_id for one in chosen], keep_shared=keep_shared))
        for one in chosen:
            key = (owner_of(one), one.path)
            if key in self.oracle.held:
                if keep_shared:
                    self.oracle.held[key] = False
                else:
                    del self.oracle.held[key]
        self.after()

    @rule(path=paths)
    def take_away(self, path: str) -> None:
        self.pass_time()
        answer = self.world.do(ForceReleaseLocksRequest(path=path, reason="a test"))
        below = [key for key in self.oracle.held if f"{key[1]}/".startswith(f"{path}/")]
        assert {(owner_of(one), one.path) for one in answer.locks} == set(below)
        for key in below:
            del self.oracle.held[key]
        self.after()

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), abandoned=st.booleans())
    def stop_waiting(self, data: Any, abandoned: bool) -> None:
        wait_id = data.draw(st.sampled_from(sorted(self.calls)))
        self.pass_time()
        call = self.calls.pop(wait_id, None)
        if call is None:
            return
        self.world.do(Over(call, abandoned=abandoned))
        if wait_id not in self.tickets:
            del self.oracle.queue[wait_id]
        assert (call.answer is None) == abandoned
        self.after()

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        ticket_id = data.draw(st.sampled_from(sorted(self.tickets)))
        self.pass_time()
        if ticket_id not in self.tickets:
            return
        self.world.do(CancelLockTicketRequest(ticket_id=ticket_id))
        self.tickets.discard(ticket_id)
        self.calls.pop(ticket_id, None)
        del self.oracle.queue[ticket_id]
        self.after()

    # -- time, failures, starts --------------------------------------------------------------

    @rule(number=sessions)
    def renew(self, number: int) -> None:
        session = self.sessions[number]
        self.pass_time()
        if session not in self.expiry:
            with pytest.raises(KapellError, match="lost"):
                self.world.renew(session)
            return
        self.world.renew(session)
        self.expiry[session] = max(self.expiry[session], self.world.now_ns + self.ttl[session])

    @rule()
    def renew_plainly(self) -> None:
        self.pass_time()
        plain = [one for one in self.world.locks() if one.owner.grant_id][:5]
        for one in plain:
            self.world.do(RenewLocksRequest(lock_ids=[one.lock_id]))
            owner = one.owner.grant_id
            self.expiry[owner] = max(self.expiry[owner], self.world.now_ns + self.ttl[owner])
        for lock_id in self.lost[-2:]:
            with pytest.raises(KapellError, match="lost"):
                self.world.do(RenewLocksRequest(lock_ids=[lock_id]))

    @rule(number=sessions)
    def close(self, number: int) -> None:
        session = self.pick(number)
        self.pass_time()
        if session in self.expiry:
            self.world.close(session)
            self.bury(session)
        self.after()

    @rule(seconds=jumps)
    def let_time_pass(self, seconds: float) -> None:
        self.world.now_ns += int(seconds * SECOND)
        self.pass_time()
        self.world.do()
        self.after()

    @rule(seconds=st.sampled_from([1, 30, 4000]))
    def set_the_clock_back(self, seconds: int) -> None:
        self.world.now_ns -= seconds * SECOND

    @rule()
    def start_anew(self) -> None:
        """Calls that wait are gone; who is there has another ttl."""
        self.pass_time()
        self.world.do()
        self.after()
        self.world.restart()
        for wait_id in [wait_id for wait_id in self.calls if wait_id not in self.tickets]:
            del self.oracle.queue[wait_id]
        self.calls.clear()
        for owner in self.expiry:
            self.expiry[owner] = self.world.now_ns + self.ttl[owner]
        self.world.do()
        self.after()

    @rule(number=sessions, items=item_sets, data=st.data())
    def fail_to_commit(self, number: int, items: Items, data: Any) -> None:
        """Nothing of a batch that the database refuses is left."""
        session = self.pick(number)
        self.pass_time()
        self.world.do()
        self.after()
        held = self.world.locks()
        chosen = [one.lock_id for one in data.draw(st.lists(st.sampled_from(held), max_size=3))] if held else []
        wanted = [path if exclusive else f"{path} r" for path, exclusive in items]
        call = Call(self.world.request(session, *wanted, wait=60))
        before = self.world.picture_of_locks()
        release = [ReleaseLocksRequest(lock_ids=chosen)] if chosen else []
        self.world.fail_to_commit(*release, call)
        assert self.world.picture_of_locks() == before

    def pass_time(self) -> None:
        """Whoever's time is over ends in the batch that comes next, before all else."""
        for owner in [owner for owner, end in self.expiry.items() if end <= self.world.now_ns]:
            self.lost += [one.lock_id for one in self.world.locks() if owner_of(one) == owner]
            self.bury(owner)

    def bury(self, owner: str) -> None:
        self.expiry.pop(owner, None)
        for key in [key for key in self.oracle.held if key[0] == owner]:
            del self.oracle.held[key]
        for wait_id in [wait_id for wait_id, (_, who, _) in self.oracle.queue.items() if who == owner]:
            del self.oracle.queue[wait_id]
            self.calls.pop(wait_id, None)
            self.tickets.discard(wait_id)

    def after(self) -> None:
        self.settle()
        holders = {owner for owner, _ in self.oracle.held}
        for owner in [owner for owner in self.expiry if owner.startswith("grant_") and owner not in holders]:
            del self.expiry[owner]

    # -- what holds at every step ------------------------------------------------------------

    @invariant()
    def all_is_as_the_oracle_says(self) -> None:
        LockMachine.steps += 1
        self.after()
        table = self.world.state.locks
        held = {(owner_of(one), one.path): one.mode == LOCK_MODE_EXCLUSIVE for one in self.world.locks()}
        ended = {owner for owner, end in self.expiry.items() if end <= self.world.now_ns}
        if not ended:
            assert held == self.oracle.held, held.items() ^ self.oracle.held.items()
            assert set(table.waits) == set(self.oracle.queue)
        in_memory = {(one.owner, one.path): one.exclusive for one in table.held.values()}
        assert in_memory == held

    @invariant()
    def no_two_grants_conflict(self) -> None:
        """L1."""
        held = list(self.oracle.held.items())
        for (owner, path), mode in held:
            for (other, its), its_mode in held:
                assert owner == other or not clash((path, mode), (its, its_mode))

    @invariant()
    def fencing_tokens_rise(self) -> None:
        """L2, over restarts and deletion: a token that was not seen before is larger than all that were."""
        for one in sorted(self.world.locks(), key=lambda found: found.fencing_token):
            key = one.lock_id
            known = self.newest.get(key, 0)
            assert one.fencing_token >= known
            if one.fencing_token > known:
                assert one.fencing_token > self.newest.get("all", 0) or known == 0
            self.newest[key] = one.fencing_token
        fresh = [token for key, token in self.newest.items() if key != "all"]
        assert len(fresh) == len(set(fresh))
        self.newest["all"] = max(fresh, default=0)

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        """L4 and L5: nobody who waits could go, and no circle of waits is left."""
        oracle = self.oracle
        for _, owner, _ in oracle.queue.values():
            assert not oracle.reaches(owner, owner, hard=True)
        assert not oracle.queue or oracle.held


def owner_of(one: Any) -> str:
    return str(one.owner.session_id or one.owner.grant_id or one.owner.task_id)


LockModel = LockMachine.TestCase
LockModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
LONG = settings(max_examples=1_600, stateful_step_count=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_locks_live_a_hundred_thousand_steps() -> None:
    before = LockMachine.steps

    run_state_machine_as_test(LockMachine, settings=LONG)

    assert LockMachine.steps - before >= 100_000
