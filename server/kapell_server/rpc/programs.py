"""What programs may name that have the token of their attempt: the other half of `fence`.

A method without the option program_access is closed to them. In one that says OWN the token stands for the lease
token, which programs never have: it is put in here, so that the rules see an attempt that speaks for itself. What
else a request names must be the attempt's task. Their own token is masked in whatever they say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kapell.rules.redaction import Redactor
from kapell.v1.common_pb2 import AGENT_ACCESS_OWN
from kapell.v1.error_pb2 import ERROR_REASON_NOT_OWNER

from kapell_server.domain.access import Caller, Keyring
from kapell_server.domain.errors import KapellError

if TYPE_CHECKING:
    from kapell_server.rpc.fence import Check
    from kapell_server.rpc.methods import Method

BY_RULE = {
    "GetApproval": "rpc/approvals: what is of its task",
    "WaitApproval": "as GetApproval",
    "CheckFence": "domain/locks/lock.check_fence: locks of its attempt",
    "RecordUsage": "domain/usage/ledger: all is of its attempt",
}
"""Methods that say OWN and whose request names nothing that is checked here."""


def check_of(method: Method, keyring: Keyring) -> Check | None:
    """What is checked of each call of a program, and put in; None for what is closed to them, or any may call."""
    if method.program_access != AGENT_ACCESS_OWN:
        return None
    fields = method.request.DESCRIPTOR.fields_by_name
    by_lease, by_task, by_filter = "lease_token" in fields, "task_id" in fields, method.name == "ListLocks"
    assert by_lease or by_task or by_filter or method.name in BY_RULE, unknown_subject(method)

    async def check(request: Any, caller: Caller) -> None:
        assert caller.lease is not None, "programs have an attempt"
        token = keyring.attempt_token(caller.lease)
        if by_task and request.task_id not in ("", caller.lease.task_id):
            raise not_its_own(caller, f"task {request.task_id}")
        if by_lease:
            if request.lease_token not in ("", token):
                raise not_its_own(caller, "another lease")
            request.lease_token = keyring.lease_token(caller.lease.task_id, caller.lease.attempt, caller.lease.start_ns)
        if by_filter:
            if request.filter.task_id not in ("", caller.lease.task_id):
                raise not_its_own(caller, f"task {request.filter.task_id}")
            request.filter.task_id = caller.lease.task_id
        masked = Redactor([token]).message(request)
        if masked is not request:
            request.CopyFrom(masked)

    return check


def not_its_own(caller: Caller, what: str) -> KapellError:
    """NOT_OWNER. What does not exist is refused alike, so that nobody can probe."""
    assert caller.lease is not None
    return KapellError(
        ERROR_REASON_NOT_OWNER,
        f"This token speaks for attempt {caller.lease.attempt} of {caller.lease.task_id}, not for {what}."
        " A program reaches its own task only; use a user's token for others.",
        metadata={"task_id": caller.lease.task_id},
    )


def unknown_subject(method: Method) -> str:
    """What is said to whoever adds a method whose subject cannot be found."""
    return (
        f"{method.name} says program_access OWN, but its request has neither lease_token nor task_id:"
        " leave it closed, say ANY, or add to BY_RULE in rpc/programs.py where it is checked"
    )
