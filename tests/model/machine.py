"""Random lives of tasks, agents, queues and limits on the real engine and database, held against the oracle.

A step is one batch: one command, or several that one batch decides. After each, every answer and
every task and agent is what the oracle says (T3 to T7), every task is explained as the oracle
does, and the log is gapless, holds only published transitions and replays to the state (W1, W2, T1, T2).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from kapell.v1 import agent_pb2, task_pb2
from kapell.v1.agent_pb2 import CommandRuntime, SpawnAgentRequest
from kapell.v1.worker_pb2 import LeaseDirective, LeaseTasksRequest, RegisterWorkerRequest
from kapell_server.domain.access import Caller, system
from kapell_server.domain.errors import KapellError
from kapell_server.engine.facts import SpawnCommand

from tests.model.checks import Checking
from tests.model.commands import JUMPS, KINDS, QUEUES, Asking, Commands, new_ids, places, specs
from tests.model.days import IDS, Day
from tests.model.lives import HELD, OVER
from tests.model.locks import Tokens
from tests.model.oracle import Oracle
from tests.support.live_engine import USER, LiveEngine, settled

AGENTS = system("agents")
ENDS = ("complete", "EXIT", "FATAL", "LIMITED", "release", "progress", "cancel", "die")


class Machine(Asking, Checking, RuleBasedStateMachine):
    """One server's life. `url` and `prepare` say on which database."""

    url = ""
    prepare: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.prepare()
        self.runner = asyncio.Runner()
        self.live = LiveEngine(self.url, Path(self.directory.name))
        self.runner.run(self.live.start())
        self.oracle = Oracle()
        self.tokens: list[str] = []
        self.given: list[tuple[Any, Any]] = []
        self.polls: list[tuple[str, asyncio.Task[Any]]] = []
        self.requests = 0
        self.cursor = 0
        self.replayed: dict[tuple[str, str], Any] = {}
        self.fences = Tokens()

    @initialize(
        specs=st.lists(specs, min_size=2, max_size=5),
        limits=st.lists(Commands.by_limit, max_size=3),
        slots=st.integers(1, 3),
    )
    def begin_with_work(self, specs: list[dict[str, Any]], limits: list[tuple[Any, ...]], slots: int) -> None:
        self.arrive(list(KINDS), slots, True)
        self.batch(limits)
        self.batch([("create", f"task_{letter}", spec) for letter, spec in zip("abcde", specs, strict=False)])
        self.poll(0, 2, False)

    # -- steps -------------------------------------------------------------------------------

    @rule(command=Commands.any)
    def one_command(self, command: tuple[Any, ...]) -> None:
        self.batch([command])

    @rule(commands=st.lists(Commands.any, min_size=2, max_size=6))
    def several_commands_in_one_batch(self, commands: list[tuple[Any, ...]]) -> None:
        self.batch(commands)

    @rule(specs=st.lists(st.tuples(new_ids, specs), min_size=2, max_size=4))
    def create_together(self, specs: list[tuple[str, dict[str, Any]]]) -> None:
        self.batch([("create_all", specs)])

    @rule(seconds=st.sampled_from(JUMPS))
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds)
        self.batch([])

    @rule(rounds=st.integers(1, 5))
    def agents_keep_working(self, rounds: int) -> None:
        """Time passes while every agent sends its heartbeats for all that it holds."""
        for _ in range(rounds):
            self.pass_time(3.001)
            self.batch(self.beats())

    @rule(kinds=st.sampled_from((["red"], ["blue"], ["red", "blue"])), slots=st.integers(1, 3), external=st.booleans())
    def arrive(self, kinds: list[str], slots: int, external: bool) -> None:
        """An agent registers, by itself or after it was spawned."""
        if sum(agent.state != "ENDED" for agent in self.oracle.agents.values()) < 4:
            self.runner.run(self.let_arrive(kinds, slots, external))

    @rule(agent=places, most=st.integers(1, 3), patient=st.booleans())
    def poll(self, agent: int, most: int, patient: bool) -> None:
        self.runner.run(self.take(self.agent_at(agent), most, patient))

    @rule(agent=places, most=st.integers(1, 3))
    def poll_now(self, agent: int, most: int) -> None:
        self.runner.run(self.take(self.agent_at(agent), most, False))

    @rule(verbs=st.lists(st.sampled_from(ENDS), max_size=6))
    def a_round_of_work(self, verbs: list[str]) -> None:
        """Every agent takes what it can, and then, in one batch, something becomes of what is held."""
        for name in [name for name in self.oracle.agents if self.oracle.free(name)]:
            self.runner.run(self.take(name, 3, False))
        held = [task_id for task_id, task in self.oracle.tasks.items() if task.state in HELD]
        self.batch([("end", verb, task_id) for verb, task_id in zip(verbs, held, strict=False)])

    @rule(seed=st.integers(0, 2**32))
    def agents_wait_for_work(self, seed: int) -> None:
        """Every agent waits with an open call, while tasks come, time passes and some of them end."""
        day = Day(seed)
        self.batch([("delete", place) for place, task in enumerate(self.oracle.tasks.values()) if task.state in OVER])
        self.batch([("steer", "resume", name) for name in QUEUES] + day.limits())
        if day.starves:
            self.batch([("create", task_id, day.spec(priority=1, keys=())) for task_id in IDS[:2]])
            self.pass_time(650.001)
            self.batch(self.beats())
        if not any(agent.state == "ACTIVE" for agent in self.oracle.agents.values()):
            self.arrive(list(KINDS), 1, True)
        self.batch([("create", task_id, spec) for task_id, spec in day.tasks()])
        for _ in range(day.hours):
            waiting = {name for name, _ in self.polls}
            for name in [name for name in self.oracle.agents if self.oracle.free(name) and name not in waiting]:
                self.runner.run(self.take(name, 3, True))
            self.pass_time(day.hour())
            queued = [task_id for task_id, task in self.oracle.tasks.items() if task.state == "QUEUED"]
            self.batch(self.beats() + day.ends(list(self.oracle.held()), queued))

    @precondition(lambda self: self.cursor > 10)
    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        self.runner.run(self.begin_again(orderly))

    # -- doing -------------------------------------------------------------------------------

    def beats(self) -> list[tuple[Any, ...]]:
        """A heartbeat of every agent, for all that it holds."""
        held = self.oracle.held().values()
        return [
            ("keep", name, [task.token for task in held if task.holder == name])
            for name, agent in self.oracle.agents.items()
            if agent.state != "ENDED"
        ]

    def pass_time(self, seconds: float) -> None:
        self.live.clock.advance(seconds)
        self.oracle.now += seconds

    def batch(self, commands: list[tuple[Any, ...]]) -> None:
        self.runner.run(self.decide(commands))

    async def decide(self, commands: list[tuple[Any, ...]]) -> None:
        """One batch on engine and oracle, their answers compared."""
        self.pass_time(1e-6)
        asked = [self.ask(command) for command in commands]
        calls = [self.live.call(request, caller_of(request)) for request, _ in asked]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        if not asked:
            await self.live.pulse()
        self.oracle.begin()
        for command, (request, expected), answer in zip(commands, asked, answers, strict=True):
            self.compare(command, request, expected(), answer)
        await self.settle()

    def compare(self, command: tuple[Any, ...], request: Any, expected: Any, answer: Any) -> None:
        """The engine's answer is the oracle's, in reason, state or directive."""
        refused = answer.reason_name if isinstance(answer, KapellError) else None
        if isinstance(answer, Exception) and refused is None:
            raise answer
        if command[0] == "repeat" and self.given:
            assert answer.replayed, f"{command} was done again"
            answer.ClearField("replayed")
            assert answer == expected
            return
        if isinstance(expected, list):
            assert [LeaseDirective.Name(one.directive)[16:] for one in answer.leases] == expected, command
            return
        assert refused == expected, f"{command}: {refused} and not {expected}"
        if refused is None and getattr(request, "request_id", None):
            self.given.append((request, answer))

    # -- agents and servers that come and go --------------------------------------------------

    async def let_arrive(self, kinds: list[str], slots: int, external: bool) -> None:
        await self.decide([])
        self.requests += 1
        key = f"process-{self.requests}"
        if external:
            request = RegisterWorkerRequest(instance_key=key, agent_types=kinds, slots=slots)
            name = (await self.live.call(request)).agent.agent_id
        else:
            spec = agent_pb2.AgentSpec(agent_types=kinds, slots=slots, command=CommandRuntime(argv=["true"]))
            name = (await self.live.call(SpawnCommand(SpawnAgentRequest(spec=spec), "", spec))).agent.agent_id
            ticket = self.live.keyring.authenticate(self.live.keyring.ticket(name))
            assert ticket is not None
            await self.live.call(RegisterWorkerRequest(instance_key=key), ticket)
        self.oracle.arrive(name, tuple(kinds), slots, external)
        await self.settle()

    async def take(self, name: str, most: int, patient: bool) -> None:
        """A LeaseTasks call, which waits on if it is patient and there is nothing."""
        self.pass_time(1e-6)
        wait = Duration(seconds=60 if patient else 0)
        call = self.live.call(LeaseTasksRequest(agent_id=name, max_tasks=most, wait=wait), AGENTS)
        poll = await settled(call)
        if patient:
            await self.live.pulse()
        else:
            await asyncio.wait([poll])
        self.oracle.begin()
        expected = self.oracle.poll(name)
        if expected is not None:
            await asyncio.wait([poll])
            error = poll.exception()
            assert isinstance(error, KapellError)
            assert error.reason_name == expected
        else:
            self.polls.append((name, poll))
        await self.settle()

    async def begin_again(self, orderly: bool) -> None:
        for _, poll in self.polls:
            poll.cancel()
        if self.polls:
            await asyncio.wait([poll for _, poll in self.polls])
        self.polls.clear()
        await self.decide([])
        await (self.live.restart() if orderly else self.live.crash())
        self.oracle.restart()
        await self.settle()

    def teardown(self) -> None:
        self.runner.run(self.finish())
        self.runner.close()
        self.directory.cleanup()

    async def finish(self) -> None:
        """Ends what waits, and looks at all attempts (T2, T4)."""
        for _, poll in self.polls:
            poll.cancel()
        if self.polls:
            await asyncio.wait([poll for _, poll in self.polls])
        for task_id, task in self.oracle.tasks.items():
            attempts = (await self.live.engine.reads.list_attempts(task_id)).attempts
            assert [one.attempt for one in attempts] == [*range(1, task.number + 1)]
            running = [one.attempt for one in attempts if one.state == task_pb2.ATTEMPT_STATE_RUNNING]
            assert running == ([task.number] if task.holder and task.state not in OVER else []), "T2"
        assert self.live.crashes == []
        await self.live.stop()


def caller_of(request: Any) -> Caller:
    """Who makes a call: what workers say is said by somebody who may speak for all agents."""
    of_workers = isinstance(request, Message) and request.DESCRIPTOR.file is RegisterWorkerRequest.DESCRIPTOR.file
    return AGENTS if of_workers else USER
