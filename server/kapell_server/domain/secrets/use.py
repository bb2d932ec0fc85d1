"""Which secrets a task's agent gets, and how what the agent says is masked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kapell.rules.redaction import Redactor
from kapell.rules.secrets import name_of
from kapell.v1.error_pb2 import ERROR_REASON_NOT_OWNER, ERROR_REASON_REQUEST_INVALID, ERROR_REASON_SECRET_NOT_FOUND
from kapell.v1.secret_pb2 import SECRET_SOURCE_FILE, SECRET_SOURCE_STORED, Secret
from kapell.v1.task_pb2 import Task
from kapell.v1.template_pb2 import PARAMETER_TYPE_SECRET, TemplateParameter

from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State

_RESERVED = ("KAPELL_", "LD_", "DYLD_")
"""What a variable must not begin with: how programs are run is for the profile to say."""
_NONE = Redactor()


def named_in(declared: Iterable[TemplateParameter], values: Mapping[str, object]) -> dict[str, str]:
    """The secrets that parameters name: the parameter, and the secret."""
    kinds = {parameter.name for parameter in declared if parameter.rules.type == PARAMETER_TYPE_SECRET}
    return {name: name_of(values[name]) for name in kinds if name in values}


def check(state: State, wanted: Mapping[str, str], path: str) -> None:
    """Refuses secrets that there are not, and names under which none may be given."""
    for name, secret in wanted.items():
        if state.standing.find(Secret, secret) is None:
            raise secret_not_found(secret)
        if name.upper().startswith(_RESERVED):
            here, what = f'{path}["{name}"]', f"must not begin with {', '.join(_RESERVED)}"
            raise KapellError(
                ERROR_REASON_REQUEST_INVALID,
                f"The request is invalid: {here} {what}. Choose another name.",
                violations=((here, what),),
            )


def check_child(child: Task, parent: Task) -> None:
    """An agent passes on only what its own task was given: it cannot fetch other secrets by making a child."""
    theirs = set(parent.secrets.values())
    for secret in child.secrets.values():
        if secret not in theirs:
            raise KapellError(
                ERROR_REASON_NOT_OWNER,
                f"Secret {secret} is not one of task {parent.task_id}, and an agent passes on only those of its own "
                "task. Name it when the task itself is created.",
                metadata={"name": secret},
            )


def values_for(state: State, task: Task, agent_id: str) -> tuple[dict[str, str], list[str]]:
    """What an agent is given with the offer of a task, and the secrets that have no value now."""
    values: dict[str, str] = {}
    missing: list[str] = []
    for name, secret in {**state.agent_secrets.get(agent_id, {}), **task.secrets}.items():
        value = value_of(state, secret)
        if value is None:
            missing.append(secret)
        else:
            values[name] = value
    return values, missing


def value_of(state: State, name: str) -> str | None:
    """The value of a secret; None where it has none now."""
    secret = state.standing.find(Secret, name)
    if secret is None:
        return None
    if secret.source == SECRET_SOURCE_STORED:
        sealed = state.secret_values.get(name)
        return None if sealed is None else state.vault.open(sealed, name)
    return state.vault.read("file" if secret.source == SECRET_SOURCE_FILE else "environment", secret.location)


def redactor(state: State, task: Task | None, agent_id: str) -> Redactor:
    """Masks the secrets that the agent of this task was given."""
    if task is None or not (task.secrets or agent_id in state.agent_secrets):
        return _NONE
    return Redactor(values_for(state, task, agent_id)[0].values())


def secret_not_found(name: str) -> KapellError:
    """No secret has this name."""
    return KapellError(
        ERROR_REASON_SECRET_NOT_FOUND,
        f"Secret {name} was not found: it was never set, or deleted. Set it with `kapell secret set {name}`.",
        metadata={"name": name},
    )
