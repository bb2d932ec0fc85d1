"""What everybody may read of a spec."""

from __future__ import annotations

from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime
from kapell_server.domain.workers.agent import HIDDEN, without_secrets


def test_every_value_of_an_environment_is_hidden() -> None:
    for size in range(1, 60):
        env = {f"KEY_{number}": "secret" for number in range(size)}

        shown = without_secrets(AgentSpec(command=CommandRuntime(argv=["true"], env=env)))

        assert dict(shown.command.env) == dict.fromkeys(env, HIDDEN)
