"""AgentService on a real server, with real agent processes."""

from __future__ import annotations

import grpc
import pytest
from kapell.v1 import (
    agent_pb2,
    task_pb2,
)

from tests.rpc.conftest import failure
from tests.rpc.services import Services, create, read_logs, register, wait

pytestmark = pytest.mark.timeout(60)


async def test_profiles_are_listed(owner: Services) -> None:
    answer = await owner(owner.agents.ListAgentProfiles, agent_pb2.ListAgentProfilesRequest())

    found = {profile.profile: list(profile.spec.agent_types) for profile in answer.profiles}
    assert list(found) == sorted(found)
    assert {"claude", "codex", "shell"} <= set(found)
    assert all(types == [name] for name, types in found.items())


async def test_a_spawned_agent_does_a_task_and_ends_when_told(owner: Services) -> None:
    spawn = agent_pb2.SpawnAgentRequest(agent_id="agent_a", profile="shell", wait={"seconds": 20})
    spawned = (await owner(owner.agents.SpawnAgent, spawn)).agent
    assert (spawned.state, spawned.profile, spawned.runtime) == (
        agent_pb2.AGENT_STATE_ACTIVE,
        "shell",
        "command",
    )

    await create(owner, task_id="task_a", agent_type="shell", prompt="echo hello; echo done")
    done = await wait(owner, "task_a", 20)
    said = await read_logs(owner, task_id="task_a", follow=True)
    ended = await owner(owner.agents.TerminateAgent, agent_pb2.TerminateAgentRequest(agent_id="agent_a"))

    assert done.state == task_pb2.TASK_STATE_SUCCEEDED
    assert "hello" in [text for _, _, texts in said for text in texts]
    assert ended.agent.state == agent_pb2.AGENT_STATE_TERMINATED
    logs = owner(owner.agents.StreamAgentLogs, agent_pb2.StreamAgentLogsRequest(agent_id="agent_a", follow=True))
    assert [message.offset async for message in logs][:1] == [0]
    listed = await owner(owner.agents.ListAgents, agent_pb2.ListAgentsRequest())
    assert [agent.agent_id for agent in listed.agents] == ["agent_a"]
    await owner(owner.agents.DeleteAgent, agent_pb2.DeleteAgentRequest(agent_id="agent_a"))
    gone = await failure(owner(owner.agents.GetAgent, agent_pb2.GetAgentRequest(agent_id="agent_a")))
    assert gone.info.reason == "AGENT_NOT_FOUND"


async def test_followed_agent_logs_end_when_the_agent_does(owner: Services) -> None:
    spawn = agent_pb2.SpawnAgentRequest(agent_id="agent_a", profile="shell")
    await owner(owner.agents.SpawnAgent, spawn)
    request = agent_pb2.StreamAgentLogsRequest(agent_id="agent_a", follow=True)
    stream = owner(owner.agents.StreamAgentLogs, request)
    assert (await stream.read()).offset == 0

    force = agent_pb2.TerminateAgentRequest(agent_id="agent_a", mode=agent_pb2.TERMINATE_MODE_FORCE)
    await owner(owner.agents.TerminateAgent, force)

    while (message := await stream.read()) is not grpc.aio.EOF:
        assert message.entries


async def test_what_cannot_be_spawned_is_refused(owner: Services) -> None:
    nobody = agent_pb2.SpawnAgentRequest(profile="shel")
    nowhere = agent_pb2.SpawnAgentRequest(
        spec={"agent_types": ["x"], "command": {"argv": ["no-such-program-anywhere"]}}
    )

    profile = await failure(owner(owner.agents.SpawnAgent, nobody))
    program = await failure(owner(owner.agents.SpawnAgent, nowhere))

    assert (profile.code, profile.info.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
    assert "shell" in profile.info.metadata["known"].split(", ")
    assert (program.code, program.info.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "PROGRAM_NOT_FOUND",
    )
    listed = await owner(owner.agents.ListAgents, agent_pb2.ListAgentsRequest())
    assert not listed.agents


async def test_an_agents_labels_are_updated(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)

    request = agent_pb2.UpdateAgentRequest(
        agent={"agent_id": worker.agent_id, "labels": {"room": "blue"}}, update_mask={"paths": ["labels"]}
    )
    updated = await owner(owner.agents.UpdateAgent, request)

    assert dict(updated.agent.labels) == {"room": "blue"}
    read = await owner(owner.agents.GetAgent, agent_pb2.GetAgentRequest(agent_id=worker.agent_id))
    assert dict(read.agent.labels) == {"room": "blue"}
    assert read.agent.HasField("last_heartbeat_time")
