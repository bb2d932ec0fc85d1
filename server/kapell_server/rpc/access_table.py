"""The table of docs/reference/access.md: which token opens which rpc, as the protos say.

Written by `make gen` (`python -m kapell_server.rpc.access_table FILE`); a test holds the file to it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kapell.v1.common_pb2 import AGENT_ACCESS_ANY, AGENT_ACCESS_OWN, SCOPE_ADMIN, Scope

from kapell_server.domain.access import AGENT_SCOPES
from kapell_server.domain.tokens.audit import audited_method
from kapell_server.rpc.fence import BY_RULE, OUTCOMES, carries_proof
from kapell_server.rpc.methods import Method, methods

_HEAD = """# Who may call what

Made from the protos by `make gen`; do not edit. An rpc needs one scope. `admin` stands for all scopes.
Agents hold `read` and `worker`, and of what these open only what the column says:

- **no**: refused with NOT_FOR_AGENTS, or with SCOPE_MISSING where they lack the scope.
- **itself**: `agent_id` must be the agent's own.
- **its leases**: proof is the lease token in the request; one that is another agent's is refused.
- **its tasks**: tasks it has a lease on, and their descendants. Not their ancestors and siblings.
- **its tasks, dependencies**: also the direct dependencies of the tasks it has a lease on.
- **any**: what it answers is nobody's.

Programs that agents run find a token of their attempt in KAPELL_TOKEN, unless the profile says `api_access = "none"`.
It ends with the attempt. Of what it opens, the column says:

- **its attempt**: the attempt it works on; in the place of a lease token it takes KAPELL_TOKEN, or nothing.
- **its task**: the task of this attempt, and no other.

What exists but is out of reach, and what does not exist, is refused alike: NOT_OWNER. A spawn ticket opens
RegisterWorker alone. SpawnAgent with a spec, rather than a profile, needs `spawn_inline` as well;
so does a profile that is given a working directory which its `directories` do not name.
Calls marked as audited are recorded in the audit log (`kapell audit list`).

| Rpc | Scope | Agents | Programs | Audited |
|---|---|---|---|---|
"""


def table() -> str:
    """The whole page."""
    return _HEAD + "".join(map(_line, methods()))


def _line(method: Method) -> str:
    service = method.service.rpartition(".")[2]
    scope = Scope.Name(method.scope).removeprefix("SCOPE_").lower()
    audited = "yes" if audited_method(method.request) else ""
    return f"| {service}.{method.name} | {scope} | {_agents(method)} | {_programs(method)} | {audited} |\n"


def _agents(method: Method) -> str:
    fields = method.request.DESCRIPTOR.fields_by_name
    if method.scope not in AGENT_SCOPES or method.scope == SCOPE_ADMIN:
        return "no"
    if method.agent_access == AGENT_ACCESS_ANY:
        return "any"
    if method.agent_access != AGENT_ACCESS_OWN:
        return "no"
    if "agent_id" in fields or method.name in BY_RULE:
        return "itself"
    if carries_proof(method.request.DESCRIPTOR):
        return "its leases"
    return "its tasks, dependencies" if method.name in OUTCOMES else "its tasks"


def _programs(method: Method) -> str:
    if method.program_access == AGENT_ACCESS_ANY:
        return "any"
    if method.program_access != AGENT_ACCESS_OWN:
        return "no"
    return "its task" if method.name in ("GetTask", "GetApproval", "WaitApproval") else "its attempt"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table())
