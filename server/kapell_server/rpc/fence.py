"""The fence of agents: what the option agent_access means, checked once for every method.

A method without the option is closed to agents. One that says OWN is checked by what its request
names: `agent_id` must be the agent itself; `task_id` and `artifact_id` must be within its reach
(`domain/tasks/reach`) and are for reading only; a lease token is proof by itself, which the rule that
takes it checks. A test calls every method with the token of an agent that it does not concern, and with that of a
program; what programs may name is in `programs`.

The surprise: what a stream may read is checked when it begins. It ends with its agent, not with the lease.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from kapell.v1.common_pb2 import AGENT_ACCESS_ANY, AGENT_ACCESS_OWN
from kapell.v1.error_pb2 import (
    ERROR_REASON_ARTIFACT_NOT_FOUND,
    ERROR_REASON_NOT_FOR_AGENTS,
    ERROR_REASON_NOT_OWNER,
    ERROR_REASON_TASK_NOT_FOUND,
)
from kapell.v1.task_pb2 import Task

from kapell_server.domain.access import Caller, CallerKind, Keyring
from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks.reach import depends_on, not_within_reach
from kapell_server.rpc import programs
from kapell_server.rpc.methods import Method

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.artifacts import ArtifactStore

Check = Callable[[Any, Caller], Awaitable[None]]
"""Raises NOT_OWNER where the request names what is not the agent's."""

OUTCOMES = frozenset({"GetTask", "WaitTask", "ListArtifacts", "GetArtifact", "DownloadArtifact"})
"""Methods that also tell what the dependencies of an agent's task came to. Logs and families are not among them."""
BY_RULE = {
    **dict.fromkeys(
        ("GetApproval", "WaitApproval"), "rpc/approvals: what the agent has asked for, or is of the tasks it holds"
    ),
    "RegisterWorker": "domain/workers/worker: a token of an agent registers this agent again, no other",
    "AcquireLocks": "domain/locks/owners.claim: its own lease or session, or a plain acquisition of its own",
    "RenewLocks": "domain/locks/owners.check_may_use: what it acquired itself",
    "ReleaseLocks": "as RenewLocks",
    "CancelLockTicket": "as RenewLocks",
    "CheckFence": "domain/locks/lock.check_fence: a fence of its own",
    "OpenSession": "a session is its opener's",
    "RenewSession": "as RenewLocks",
    "CloseSession": "as RenewLocks",
}
"""Methods that say OWN and whose request names nothing: where they are checked instead."""
_PROOFS = frozenset({"lease_token"})
_DEPTH = 4


class Fence:
    """Checks of agents' calls. `engine` and `artifacts` are asked only while calls are served."""

    def __init__(self, engine: Callable[[], Engine], artifacts: Callable[[], ArtifactStore], keyring: Keyring) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._keyring = keyring

    def check_of(self, method: Method) -> Check | None:
        """What is checked of each call of an agent or program; None where rules do it, or nothing need be."""
        of_agents, of_programs = self._check_of_agents(method), programs.check_of(method, self._keyring)
        if of_agents is None and of_programs is None:
            return None

        async def check(request: Any, caller: Caller) -> None:
            checked = of_agents if caller.kind is CallerKind.AGENT else of_programs
            if checked is not None:
                await checked(request, caller)

        return check

    def _check_of_agents(self, method: Method) -> Check | None:
        if method.agent_access != AGENT_ACCESS_OWN:
            return None
        fields = method.request.DESCRIPTOR.fields_by_name
        if "agent_id" in fields:
            return _check_agent
        if carries_proof(method.request.DESCRIPTOR) or method.name in BY_RULE:
            return None
        outcomes = method.name in OUTCOMES
        if "artifact_id" in fields:

            async def check_artifact(request: Any, caller: Caller) -> None:
                await self._check_artifact(request.artifact_id, caller)

            return check_artifact
        assert "task_id" in fields, unknown_subject(method)

        async def check_task(request: Any, caller: Caller) -> None:
            await self._check_task(request.task_id, caller, outcomes=outcomes, what=f"task {request.task_id}")

        return check_task

    async def _check_artifact(self, artifact_id: str, caller: Caller) -> None:
        what = f"artifact {artifact_id}"
        try:
            artifact = await self._artifacts().get(artifact_id)
        except KapellError as error:
            if error.reason != ERROR_REASON_ARTIFACT_NOT_FOUND:
                raise
            raise not_within_reach(caller.agent_id, what) from None
        await self._check_task(artifact.task_id, caller, outcomes=True, what=what)

    async def _check_task(self, wanted_id: str, caller: Caller, *, outcomes: bool, what: str) -> None:
        """Agents hold few tasks, and families are not deep, so each is looked at."""
        held = self._engine().held_tasks(caller.agent_id)
        if wanted_id in held:
            return
        if held and (await self._descends(wanted_id, held) or (outcomes and await self._awaited(wanted_id, held))):
            return
        raise not_within_reach(caller.agent_id, what)

    async def _descends(self, wanted_id: str, held: list[str]) -> bool:
        wanted = await self._find(wanted_id)
        while wanted is not None and wanted.parent_task_id:
            if wanted.parent_task_id in held:
                return True
            wanted = await self._find(wanted.parent_task_id)
        return False

    async def _awaited(self, wanted_id: str, held: list[str]) -> bool:
        for held_id in held:
            task = await self._find(held_id)
            if task is not None and depends_on(task, wanted_id):
                return True
        return False

    async def _find(self, task_id: str) -> Task | None:
        try:
            return await self._engine().reads.task(task_id)
        except KapellError as error:
            if error.reason != ERROR_REASON_TASK_NOT_FOUND:
                raise
            return None


async def _check_agent(request: Any, caller: Caller) -> None:
    if request.agent_id != caller.agent_id:
        raise KapellError(
            ERROR_REASON_NOT_OWNER,
            f"This token speaks for agent {caller.agent_id}, not for {request.agent_id or 'others'}."
            " Use that agent's own token.",
            metadata={"agent_id": request.agent_id},
        )


def carries_proof(message: Any, depth: int = _DEPTH) -> bool:
    """Whether the message, or one within it, has a lease token."""
    if not _PROOFS.isdisjoint(message.fields_by_name.keys()):
        return True
    inner = [field.message_type for field in message.fields if field.message_type is not None]
    return depth > 0 and any(carries_proof(each, depth - 1) for each in inner)


def unknown_subject(method: Method) -> str:
    """What is said to whoever adds a method whose subject the fence cannot find."""
    return (
        f"{method.name} says AGENT_ACCESS_OWN, but its request has none of agent_id, lease_token, task_id, artifact_id:"
        " say NONE or ANY, or add to BY_RULE in rpc/fence.py where it is checked"
    )


def is_closed(method: Method, caller: Caller) -> bool:
    """Whether the method is closed to all callers of this kind: agents, or programs of theirs."""
    access = method.agent_access if caller.kind is CallerKind.AGENT else method.program_access
    return access not in (AGENT_ACCESS_OWN, AGENT_ACCESS_ANY)


def not_for_agents(method: Method, caller: Caller) -> KapellError:
    """The refusal of an agent or program by a method that is closed to all of them."""
    kind = "agents" if caller.kind is CallerKind.AGENT else "programs of agents"
    return KapellError(
        ERROR_REASON_NOT_FOR_AGENTS,
        f"{method.name} is closed to {kind}, since it tells of or changes what is not theirs; {caller.name} is one."
        " Use a user's token. What they may call is in docs/reference/access.md.",
        metadata={"agent_id": caller.agent_id},
    )
