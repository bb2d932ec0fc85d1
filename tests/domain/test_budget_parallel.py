"""B1: settled and reserved together never exceed a limit, at any revision, whatever 64 agents do at once.

The figures are added up anew from the committed rows after every batch, by an auditor that knows nothing of how
budgets reckon: what was spent in the rows of slices, what is reserved in the rows of running attempts.
"""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from kapell.v1.budget_pb2 import BudgetAmount, BudgetScope, ReleaseReservationRequest, ReserveBudgetRequest
from kapell.v1.task_pb2 import ATTEMPT_STATE_RUNNING
from kapell_server.domain.budgets.amounts import units_of

from tests.domain.spending import CENT, Purse, cents, costing

AGENTS = 64


class Audited(Purse):
    """A world whose books are checked with every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: dict[str, int] = {}
        self.fullest = 0

    def limited(self, number: int, budget_id: str, **spec: object) -> None:
        self.budget(cents(number), budget_id=budget_id, **spec)
        self.limits[budget_id] = number * CENT

    def _commit(self) -> None:
        super()._commit()
        for budget_id, limit in self.limits.items():
            spent = sum(units for (of, _), units in self.rows.budgets.spend.items() if of == budget_id)
            reserved = sum(
                units_of(hold.reserved)
                for attempt in self.rows.attempts.values()
                if attempt.state == ATTEMPT_STATE_RUNNING
                for hold in attempt.budget_holds
                if hold.budget_id == budget_id
            )
            kept = [one for one in self.rows.budgets.reservations.values() if one.budget_id == budget_id]
            reserved += sum(units_of(one.amount) for one in kept)
            tally = self.state.budgets.tallies[budget_id]
            assert (spent, reserved) == (tally.spent, tally.reserved), "memory and rows tell the same"
            assert spent + reserved <= limit, f"{budget_id}: {spent} + {reserved} > {limit}"
            self.fullest = max(self.fullest, (spent + reserved) * 100 // limit)


@given(seed=st.integers(0, 2**32), limit=st.integers(30, 400), tight=st.integers(10, 200))
@settings(deadline=None, max_examples=12)
def test_64_agents_in_parallel_never_exceed_a_budget(seed: int, limit: int, tight: int) -> None:
    random = Random(seed)
    world = Audited()
    world.limited(limit, "budget_all")
    world.limited(tight, "budget_red", scope=BudgetScope(label="team=red"))
    estimates: dict[str, int] = {}
    for number in range(180):
        estimate = random.randint(0, 12)
        task_id = world.create(estimate=costing(estimate), labels={"team": "red"} if number % 3 == 0 else {})
        estimates[task_id] = estimate
    agents = [world.register(key=f"process-{number:03}") for number in range(AGENTS)]
    left: dict[str, int] = {}
    for _ in range(260):
        for agent_id in random.sample(agents, 8):
            if not world.state.polls.of_agent(agent_id) and not world.state.leases.used(agent_id):
                world.poll(agent_id)
        running = sorted(world.state.leases.by_task)
        if not running:
            break
        task_id = random.choice(running)
        left.setdefault(task_id, estimates[task_id])
        match random.randrange(5):
            case 0 | 1:
                used = random.randint(0, left[task_id])
                left[task_id] -= used
                world.use(task_id, used)
            case 2:
                world.release(task_id)
                left[task_id] = estimates[task_id]
            case 3:
                if world.state.budgets.tallies["budget_all"].room >= CENT:
                    _reserve_for_a_moment(world)
            case _:
                world.complete(task_id)

    assert world.fullest > 50, "the budgets were really drawn from"


def _reserve_for_a_moment(world: Audited) -> None:
    amount = BudgetAmount(cost=cents(1).cost)
    request = ReserveBudgetRequest(budget_id="budget_all", amount=amount)
    found = world.do(request).reservation
    world.do(ReleaseReservationRequest(reservation_id=found.reservation_id))


def test_as_many_start_at_once_as_fit_and_not_one_more() -> None:
    world = Audited()
    world.limited(100, "budget_all")
    for _ in range(AGENTS):
        world.create(estimate=costing(3))
    agents = [world.register(key=f"process-{number:03}") for number in range(AGENTS)]

    for agent_id in agents:
        world.poll(agent_id)

    assert world.figures("budget_all") == (0, 99)
    assert len(world.state.leases.by_task) == 33
