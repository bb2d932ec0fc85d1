"""What is read from an agent's spec, whatever its runtime is."""

from __future__ import annotations

from kapell.rules.secrets import LLM_KEY
from kapell.v1.agent_pb2 import AgentSpec


def secrets_of(spec: AgentSpec) -> dict[str, str]:
    """Names of the secrets that its attempts are given, by what they find them under."""
    match spec.WhichOneof("runtime"):
        case "command":
            return dict(spec.command.env_from_secret)
        case "acp":
            return dict(spec.acp.env_from_secret)
        case "llm":
            return {LLM_KEY: spec.llm.api_key_secret} if spec.llm.api_key_secret else {}
        case "python":
            return dict(spec.python.secrets)
    return {}


def title_of(spec: AgentSpec) -> str:
    """What an agent without a name and a profile is called."""
    match spec.WhichOneof("runtime"):
        case "command":
            return spec.command.argv[0].rsplit("/", 1)[-1][:200]
        case "acp":
            return spec.acp.argv[0].rsplit("/", 1)[-1][:200]
        case "llm":
            return spec.llm.model
        case "python":
            return spec.python.app[:200]
    return ""
