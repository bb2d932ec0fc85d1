"""Random graphs of tasks on a real engine that dies now and then, against the oracle of graphs."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kapell.v1.task_pb2 import BatchCreateTasksRequest, CancelTaskRequest, ExplainTaskRequest, TaskFailure, WaitKind
from kapell.v1.worker_pb2 import FailTaskRequest, Offer
from kapell_server.engine.facts import TasksOutlived

from tests.domain.test_dependency_graph import Edge, Oracle, random_graph
from tests.support.databases import KINDS, url_of
from tests.support.live_engine import USER, LiveEngine, live_engine

ALIVE = ("waiting", "ready", "running")


async def create(live: LiveEngine, graph: list[list[Edge]]) -> list[str]:
    """Creates the graph in one request; the ids of its nodes."""
    request = BatchCreateTasksRequest()
    for node, edges in enumerate(graph):
        spec = request.tasks.add(agent_type="shell", client_key=f"n{node}", prompt=f"node {node}")
        for other, condition, action in edges:
            spec.prompt += f" {{deps.n{other}.result}}"
            spec.dependencies.add(client_key=f"n{other}", condition=condition, on_failure=action)  # type: ignore[arg-type]
    return [task.task_id for task in (await live.call(request)).tasks]


async def work_off(live: LiveEngine, random: Random) -> None:
    graph = random_graph(random)
    oracle, ids = Oracle(graph), await create(live, graph)
    agent_id, offers, gone = await live.register(slots=64), dict[int, Offer](), set[str]()
    while alive := [node for node, state in enumerate(oracle.states) if state in ALIVE]:
        match random.choice(["lease", "complete", "complete", "fail", "cancel", "crash", "outlive"]):
            case "crash":
                await live.crash()
            case "outlive":
                gone |= await outlive(live, [ids[node] for node in range(len(ids)) if node not in alive])
            case "cancel" if still := [node for node in alive if node not in offers]:
                node = random.choice(still)
                await live.call(CancelTaskRequest(task_id=ids[node]))
                oracle.states[node] = "cancelled"
            case ("complete" | "fail") as verb if offers:
                node = random.choice(list(offers))
                offer = offers.pop(node)
                oracle.states[node] = "succeeded" if verb == "complete" else "failed"
                if verb == "complete":
                    await live.complete(offer, f"result {node}")
                else:
                    failure = TaskFailure(reason="X", retryable=False)
                    await live.call(FailTaskRequest(lease_token=offer.lease_token, failure=failure))
            case _:
                for offer in await live.lease(agent_id):
                    node = ids.index(offer.task.task_id)
                    offers[node] = offer
                    oracle.states[node] = "running"
                    oracle.begun.add(node)
                    assert prompt_of(graph, node, oracle) in (None, offer.task.prompt)
        if offers:
            await live.beat(agent_id, *offers.values())
        oracle.settle()
        there = {node: await live.task(task_id) for node, task_id in enumerate(ids) if task_id not in gone}
        assert all(oracle.agrees(node, task) for node, task in there.items()), oracle.states
        await check_explanations(live, graph, oracle, ids, gone)


async def outlive(live: LiveEngine, ended: list[str]) -> set[str]:
    """Has retention delete what has ended; the ids of those that went."""
    answer = await live.engine.submit(TasksOutlived(tuple(ended), live.clock.now_ns()), USER)
    return set(answer.decode().split())


async def check_explanations(
    live: LiveEngine, graph: list[list[Edge]], oracle: Oracle, ids: list[str], gone: set[str]
) -> None:
    """Whoever waits names exactly the tasks that are open, and can still have the result of every other one."""
    waiting = [node for node, state in enumerate(oracle.states) if state == "waiting"]
    answers = await live.together(*[ExplainTaskRequest(task_id=ids[node]) for node in waiting])
    for node, answer in zip(waiting, answers, strict=True):
        wanted = {ids[other] for other, condition, _ in graph[node] if oracle.stands(other, condition) == "open"}
        assert [WaitKind.Name(one.kind) for one in answer.blockers] == ["WAIT_KIND_DEPENDENCY"]
        named = set(answer.blockers[0].blocked_by)
        assert named == wanted if len(wanted) <= 10 else named < wanted
        assert not gone & {ids[other] for other, _, _ in graph[node]}, "a result that is still wanted has gone"


def prompt_of(graph: list[list[Edge]], node: int, oracle: Oracle) -> str | None:
    """What the agent must read; None for one that only waited for starts, and reads what there was by then."""
    words = [f"node {node}"]
    for other, condition, _ in graph[node]:
        if condition == 3:
            return None
        match oracle.states[other]:
            case "succeeded":
                words.append(f"result {other}")
            case "skipped":
                words.append(f"(no result: n{other} was skipped)")
            case state:
                words.append(f"(no result: n{other} is {state.upper()})")
    return " ".join(words)


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_are_worked_off_through_crashes(kind: str, request: pytest.FixtureRequest) -> None:
    @settings(max_examples=25 if kind == "sqlite" else 5, deadline=None)
    @given(seed=st.integers(0, 2**32))
    def worked_off(seed: int) -> None:
        url = url_of(kind, request)

        async def run() -> None:
            with tempfile.TemporaryDirectory() as directory:
                async with live_engine(url, Path(directory)) as live:
                    await work_off(live, Random(seed))

        asyncio.run(run())

    worked_off()
