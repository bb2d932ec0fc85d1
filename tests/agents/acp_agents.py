"""Real ACP agents from npm, pointed at a scripted model: no account, an empty home, a repository to work in."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from kapell import Client
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, AcpRuntime, Agent, AgentSpec
from kapell.v1.approval_pb2 import Approval
from kapell.v1.task_pb2 import Task
from kapell.v1.workspace_pb2 import GitWorktree, WorkspaceRepository, WorkspaceSpec

from tests.agents.test_real_agents import NODE_PROGRAMS, literal
from tests.cli.shell import Shell
from tests.support.model_endpoint import Call, Reply
from tests.support.server_process import ServerProcess
from tests.workspace.repositories import repository

TASK_ID = "task_made"


def gemini(url: str, home: Path) -> AcpRuntime:
    settings = home / ".gemini/settings.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"security": {"auth": {"selectedType": "gemini-api-key"}}}))
    return AcpRuntime(
        argv=["gemini", "--acp", "-m", "gemini-2.5-pro"],
        env={"GOOGLE_GEMINI_BASE_URL": url},
        env_from_secret={"GEMINI_API_KEY": "model-key"},
    )


def opencode(url: str, home: Path) -> AcpRuntime:
    options = {"baseURL": f"{url}/v1", "apiKey": "any"}
    limit, cost = {"context": 100_000, "output": 4_000}, {"input": 3, "output": 15}
    models = {"small": {"name": "small", "limit": limit, "cost": cost}}
    provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": models}
    config = {
        "provider": {"scripted": provider},
        "model": "scripted/small",
        "small_model": "scripted/small",
        "autoupdate": False,
        # Without this it asks for nothing.
        "permission": {"edit": "ask", "bash": "ask"},
    }
    told = literal(json.dumps(config))
    return AcpRuntime(
        argv=["opencode", "acp"], env={"OPENCODE_CONFIG_CONTENT": told, "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    )


def qwen(url: str, home: Path) -> AcpRuntime:
    return AcpRuntime(
        argv=["qwen", "--acp", "--auth-type", "openai", "--approval-mode", "default"],
        env={"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_MODEL": "small"},
        env_from_secret={"OPENAI_API_KEY": "model-key"},
    )


@dataclass(frozen=True)
class Driven:
    """How an agent is pointed at the model, and its tools."""

    point: Callable[[str, Path], AcpRuntime]
    write: str
    path: str
    """The argument of its writing tool that names the file."""
    shell: str

    def writes(self, file: Path, content: str) -> Reply:
        return said("I will make it", Call(self.write, {self.path: str(file), "content": content}))

    def runs(self, command: str) -> Reply:
        more = {"is_background": False} if self.shell == "run_shell_command" else {}
        return said("I will run it", Call(self.shell, {"command": command, "description": "Makes it", **more}))


def said(text: str, *calls: Call) -> Reply:
    return Reply(text=text, calls=calls, input_tokens=200 if calls else 100, output_tokens=33 if calls else 10)


AGENTS = {
    "gemini": Driven(gemini, "write_file", "file_path", "run_shell_command"),
    "opencode": Driven(opencode, "write", "filePath", "bash"),
    "qwen": Driven(qwen, "write_file", "file_path", "run_shell_command"),
}


@dataclass(frozen=True)
class Town:
    """A server, a repository, and a shell in another process."""

    client: Client
    server: ServerProcess
    shell: Shell
    shop: Path
    home: Path

    @property
    def worktree(self) -> Path:
        return self.server.data_dir / "workspaces/trees" / TASK_ID / "shop"

    async def spawn(self, name: str, url: str) -> Agent:
        """The agent of a profile: acp, in worktrees of the repository."""
        if not (NODE_PROGRAMS / name).exists():
            pytest.skip(f"{NODE_PROGRAMS / name} is not there: make agents")
        await self.client.secrets.set("model-key", "sk-no-key-at-all")
        acp = AGENTS[name].point(url, self.home)
        acp.env.update({"HOME": str(self.home), "PATH": f"{NODE_PROGRAMS}:/usr/local/bin:/usr/bin:/bin"})
        trees = GitWorktree(repositories=[WorkspaceRepository(name="shop", path=str(self.shop))])
        spec = AgentSpec(agent_types=["coder"], acp=acp, workspace=WorkspaceSpec(git_worktree=trees))
        agent = await self.client.agents.spawn(spec=spec, wait=30)
        assert agent.state == AGENT_STATE_ACTIVE, agent.state_reason
        return agent

    async def task(self) -> Task:
        return await self.client.tasks.create("coder", "Make made.txt", task_id=TASK_ID, max_attempts=1)

    async def asked(self) -> Approval:
        """What the agent wants to be permitted, in full."""
        async with asyncio.timeout(90), self.client.approvals.watch(task_ids=[TASK_ID]) as approvals:
            async for approval in approvals:
                return await self.client.approvals.get(approval.approval_id)
        raise AssertionError("the watch has ended")

    async def kapell(self, *args: str) -> str:
        """Runs `kapell ARGS` as a process of its own; what it prints."""
        process = await asyncio.to_thread(self.shell.process, *args)
        out, err = await asyncio.to_thread(process.communicate, timeout=60)
        assert process.returncode == 0, (args, out, err)
        return out

    async def listed(self) -> str:
        """The agents as `kapell agent list` has them."""
        return await self.kapell("agent", "list")

    async def log(self) -> list[str]:
        async with self.client.tasks.logs(TASK_ID) as log:
            return [entry.text async for entry in log]

    def processes(self) -> list[int]:
        """Processes that have its home: the agent, and what it has started."""
        found = []
        for directory in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if directory.name.isdigit() and f"HOME={self.home}\0".encode() in (directory / "environ").read_bytes():
                    found.append(int(directory.name))
        return sorted(found)


def town(client: Client, server: ServerProcess, place: Path, environment: Mapping[str, str]) -> Town:
    home = place / "home"
    home.mkdir()
    return Town(client, server, Shell(environment), repository(place / "shop"), home)
