"""Who gets what: order, slots, types and polls (T6, T7)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.agent_pb2 import AGENT_ACTIVITY_IDLE, AGENT_ACTIVITY_WORKING, DrainAgentRequest, ResumeAgentRequest
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, CreateTaskRequest, RetryPolicy, Task, TaskSpec, UpdateTaskRequest
from kapell_server.domain.queueing import dispatch
from kapell_server.domain.queueing.polls import Poll, PollBoard
from kapell_server.domain.queueing.ready import ReadyEntry, ReadyIndex

from tests.domain.world import World


def reprioritize(world: World, task_id: str, priority: int) -> None:
    world.do(
        UpdateTaskRequest(task=Task(task_id=task_id, priority=priority), update_mask=FieldMask(paths=["priority"]))
    )


def names(world: World, poll: Poll) -> str:
    """The names of the tasks that a poll has got."""
    return "".join(world.task(lease.task_id).display_name for lease in poll.taken)


def queue(world: World, text: str, agent_type: str = "shell") -> dict[str, str]:
    """Queues tasks in this order: a letter is a task of normal priority, an upper-case one of high, and gives ids."""
    ids = {}
    for letter in text:
        world.now_ns += 1000
        ids[letter] = world.create(agent_type, display_name=letter, priority=900 if letter.isupper() else 500)
    return ids


def test_higher_priority_first_then_first_come_first_served() -> None:
    world = World()
    queue(world, "aBcDe")

    assert names(world, world.poll(world.register(slots=5), max_tasks=5)) == "BDace"


def test_a_task_is_moved_by_its_new_priority() -> None:
    world = World()
    ids = queue(world, "abcd")
    reprioritize(world, ids["c"], 900)
    reprioritize(world, ids["a"], 100)

    assert names(world, world.poll(world.register(slots=4), max_tasks=4)) == "cbda"


def test_a_task_with_a_new_priority_joins_its_end() -> None:
    world = World()
    ids = queue(world, "abc")
    for priority in (900, 1, 500):
        reprioritize(world, ids["b"], priority)

    assert names(world, world.poll(world.register(slots=9), max_tasks=9)) == "acb"


def test_a_requeued_task_goes_to_the_end_of_its_priority() -> None:
    world = World()
    agent_id = world.register(slots=4)
    queue(world, "ab")
    [lease] = world.poll(agent_id).taken
    world.now_ns += 1000
    world.release(lease.task_id)

    assert names(world, world.poll(agent_id, max_tasks=4)) == "ba"


def test_cancelled_tasks_are_passed_over() -> None:
    world = World()
    ids = queue(world, "abcde")
    for letter in "ace":
        world.cancel(ids[letter])

    assert names(world, world.poll(world.register(slots=9), max_tasks=9)) == "bd"
    assert world.state.queues.ready.depths() == {}


def test_agents_get_tasks_of_their_types_only_and_the_best_of_all() -> None:
    world = World()
    queue(world, "aB", "red")
    queue(world, "cD", "blue")
    queue(world, "xY", "green")

    assert names(world, world.poll(world.register("blue", "red", slots=9), max_tasks=9)) == "BDac"
    assert world.state.queues.ready.depths() == {"green": 2}


def test_no_more_than_free_slots_and_no_more_than_asked_for() -> None:
    world = World()
    agent_id = world.register(slots=3)
    queue(world, "abcde")

    assert names(world, world.poll(agent_id, max_tasks=2)) == "ab"
    assert names(world, world.poll(agent_id, max_tasks=9)) == "c"
    assert world.poll(agent_id).taken == []


def test_a_call_that_names_no_number_gets_one() -> None:
    world = World()
    queue(world, "abc")

    assert names(world, world.poll(world.register(slots=3), max_tasks=0)) == "a"


def test_work_spreads_over_the_agents_that_wait() -> None:
    world = World()
    polls = [world.poll(world.register(slots=4), max_tasks=4) for _ in range(3)]

    world.do(*[task_of(letter) for letter in "abcde"])

    assert [names(world, poll) for poll in polls] == ["ad", "be", "c"]


def task_of(letter: str) -> CreateTaskRequest:
    return CreateTaskRequest(task=TaskSpec(agent_type="shell", display_name=letter))


def test_whoever_waits_longest_is_served_first() -> None:
    world = World()
    first, second = [world.poll(world.register()) for _ in range(2)]

    queue(world, "a")

    assert (names(world, first), names(world, second)) == ("a", "")


def test_a_waiting_agent_is_served_by_each_way_a_task_becomes_runnable() -> None:
    world = World()
    other = world.register()
    task_id = world.create(retry_policy=RetryPolicy(initial_backoff=Duration()))
    world.lease(other)
    waiting = world.register(slots=9)

    def after_a_cancel() -> None:
        world.cancel(task_id)
        world.fail(task_id)
        world.retry(task_id)

    def after_silence() -> None:
        world.advance(5)
        world.beat(waiting)
        world.advance(5)

    for make_runnable in (lambda: world.release(task_id), lambda: world.fail(task_id), after_a_cancel, after_silence):
        poll = world.poll(waiting)
        assert poll.taken == []
        make_runnable()
        assert [lease.task_id for lease in poll.taken] == [task_id]
        world.beat(waiting)


def test_a_draining_agent_gets_nothing_until_it_resumes() -> None:
    world = World()
    agent_id = world.register()
    world.do(DrainAgentRequest(agent_id=agent_id))
    poll = world.poll(agent_id)
    queue(world, "a")
    assert poll.taken == []

    world.do(ResumeAgentRequest(agent_id=agent_id))

    assert names(world, poll) == "a"


def test_a_lost_agent_gets_work_again_when_it_is_heard_of() -> None:
    world = World()
    agent_id = world.register()
    poll = world.poll(agent_id)
    world.advance(11)
    queue(world, "a")
    assert poll.taken == []

    world.beat(agent_id)

    assert names(world, poll) == "a"


def test_an_answer_stays_below_its_size_but_carries_at_least_one_task() -> None:
    world = World(max_offer_bytes=1000)
    for prompt in ("x" * 5000, "y" * 600, "z" * 600, "w"):
        world.now_ns += 1000
        world.create(prompt=prompt)
    agent_id = world.register(slots=9)

    sizes = [len(world.poll(agent_id, max_tasks=9).taken) for _ in range(3)]

    assert sizes == [1, 1, 2]


def test_the_same_poll_id_gets_the_same_leases() -> None:
    world = World()
    agent_id = world.register(slots=9)
    queue(world, "abc")
    first = world.poll(agent_id, max_tasks=2, poll_id="p1")

    again = world.poll(agent_id, max_tasks=2, poll_id="p1")
    other = world.poll(agent_id, max_tasks=2, poll_id="p2")

    assert again.taken == first.taken
    assert names(world, other) == "c"
    assert len(world.state.polls) == 0


def test_an_offer_nobody_received_is_handed_back_at_once() -> None:
    world = World()
    [task_id] = queue(world, "a").values()
    poll = world.poll(world.register())

    world.state.begin(world.now_ns, world.rows)
    dispatch.hand_back(world.state, poll)
    world._commit()

    task = world.task(task_id)
    assert (task.state, task.attempts_used) == (TASK_STATE_QUEUED, 0)


def test_an_offer_that_was_spoken_of_is_not_handed_back() -> None:
    world = World()
    [task_id] = queue(world, "a").values()
    agent_id = world.register()
    poll = world.poll(agent_id)
    world.beat(agent_id, task_id)

    world.state.begin(world.now_ns, world.rows)
    dispatch.hand_back(world.state, poll)

    assert task_id in world.state.leases.by_task


def test_occupancy_is_told_once_a_batch() -> None:
    world = World()
    agent_id = world.register(slots=9)
    ids = queue(world, "abc")
    seen = len(world.events)

    world.poll(agent_id, max_tasks=9)

    assert world.events[seen:] == ["task.started"] * 3 + ["agent.status"]
    agent = world.agent(agent_id)
    assert (agent.slots_used, agent.activity) == (3, AGENT_ACTIVITY_WORKING)
    assert list(agent.current_task_ids) == list(ids.values())
    for task_id in ids.values():
        world.complete(task_id)
    assert (world.agent(agent_id).slots_used, world.agent(agent_id).activity) == (0, AGENT_ACTIVITY_IDLE)


def test_an_agent_that_gains_and_loses_in_one_batch_is_told_of_once() -> None:
    world = World()
    agent_id = world.register()
    queue(world, "ab")
    task_id = world.lease(agent_id)
    poll = world.poll(agent_id)
    seen = len(world.events)

    world.complete(task_id)

    assert world.events[seen:] == ["task.completed", "task.started", "agent.status"]
    assert names(world, poll) == "b"


# -- the parts -----------------------------------------------------------------------------------


def entry(priority: int, rank: int, task_id: str, queue_ns: int = 0, agent_type: str = "shell") -> ReadyEntry:
    return ReadyEntry(-priority, rank, queue_ns, task_id, agent_type)


def index_of(*entries: ReadyEntry) -> ReadyIndex:
    index = ReadyIndex(lambda *undo: None)
    for one in entries:
        index.add(one)
    return index


def test_the_index_sorts_by_priority_rank_time_and_id() -> None:
    index = index_of(entry(1, 5, "a"), entry(9, 5, "b"), entry(9, 4, "d"), entry(9, 4, "c"), entry(9, 4, "e", -1))

    order = []
    while (first := index.first("shell")) is not None:
        order.append(first.task_id)
        index.remove(first.task_id)
    assert order == ["e", "c", "d", "b", "a"]


def test_the_index_knows_the_oldest_of_any_priority() -> None:
    index = index_of(entry(1, 1, "a", 5), entry(9, 2, "b", 7))

    assert (index.first("shell"), index.oldest("shell")) == (entry(9, 2, "b", 7), entry(1, 1, "a", 5))
    index.remove("a")
    assert index.oldest("shell") == entry(9, 2, "b", 7)


def test_parked_entries_are_counted_and_not_given_out() -> None:
    index = index_of(entry(1, 1, "a"), entry(1, 2, "b"), entry(1, 3, "c"))
    index.add(entry(1, 1, "a"), "key")
    index.add(entry(1, 2, "b"), "key")

    assert index.first("shell") == entry(1, 3, "c")
    assert (index.depths(), index.blocked("shell")) == ({"shell": 3}, 2)
    assert index.wake("key", "shell", 1) == 1
    assert index.first("shell") == entry(1, 1, "a")
    assert index.blocked("shell") == 1


def test_heaps_do_not_grow_with_what_has_come_and_gone() -> None:
    index = index_of()
    for number in range(10_000):
        index.add(entry(1, number, f"task_{number}"))
        index.remove(f"task_{number}")

    assert index._lines["shell"].size < 200
    assert len(index._ages["shell"]) < 200


def test_the_index_knows_since_when_tasks_of_a_type_wait_the_parked_ones_included() -> None:
    undo: list[tuple[Callable[..., None], tuple[object, ...]]] = []
    index = ReadyIndex(lambda function, *arguments: undo.append((function, arguments)))
    for one in (entry(1, 1, "a", 5), entry(9, 2, "b", 7), entry(5, 3, "c", 6)):
        index.add(one)
    index.add(entry(1, 1, "a", 5), "key")

    assert index.oldest_ns("shell") == 5
    index.remove("a")
    assert index.oldest_ns("shell") == 6
    function, arguments = undo.pop()
    function(*arguments)
    assert index.oldest_ns("shell") == 5
    for task_id in ("a", "b", "c"):
        index.remove(task_id)
    assert index.oldest_ns("shell") == index.oldest_ns("green") == 0


def test_the_first_entries_are_about_the_best() -> None:
    index = index_of(*(entry(5, number, f"task_{number:03}") for number in range(100)))

    assert [one.task_id for one in index.about_first("shell", 3)] == ["task_000", "task_001", "task_002"]
    assert index.about_first("green", 3) == []


def waiting(agent_id: str, *agent_types: str) -> Poll:
    return Poll(agent_id=agent_id, agent_types=list(agent_types), max_tasks=1, poll_id="", handle=None)


def test_the_board_gives_out_what_something_happened_to() -> None:
    board = PollBoard()
    red, blue, both = waiting("agent_r", "red"), waiting("agent_b", "blue"), waiting("agent_x", "red", "blue")
    for poll in (red, blue, both):
        board.add(poll)
    assert board.take_touched() == [red, blue, both]
    assert board.take_touched() == []

    board.touch_type("blue")
    assert board.take_touched() == [blue, both]
    board.touch_agent("agent_r")
    board.touch_agent("agent_unknown")
    assert board.take_touched() == [red]
    assert len(board) == 3


def test_the_board_forgets_what_was_removed() -> None:
    board = PollBoard()
    red = waiting("agent_r", "red")
    board.add(red)

    board.remove(red)
    board.remove(red)

    assert board.take_touched() == board.all() == board.of_agent("agent_r") == []
    assert not board.contains(red)


@pytest.mark.parametrize("count", [1, 3])
def test_several_calls_of_one_agent_share_its_slots(count: int) -> None:
    world = World()
    agent_id = world.register(slots=count)
    polls = [world.poll(agent_id, max_tasks=9) for _ in range(3)]

    world.do(*[task_of(letter) for letter in "abcdef"])

    assert sum(len(poll.taken) for poll in polls) == count
    assert world.agent(agent_id).slots_used == count


def test_what_comes_next_is_looked_for_once_for_many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = ReadyIndex.about_first

    def counted(ready: ReadyIndex, agent_type: str, count: int) -> list[ReadyEntry]:
        looks.append(count)
        return look(ready, agent_type, count)

    monkeypatch.setattr(ReadyIndex, "about_first", counted)
    world = World()
    queue(world, "abcdefgh")

    assert names(world, world.poll(world.register(slots=8), max_tasks=8)) == "abcdefgh"
    assert looks == [8]
