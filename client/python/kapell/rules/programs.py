"""What is known of programs that agents are made of: which a spec runs, and how to install one that is missing."""

from __future__ import annotations

from kapell.v1.agent_pb2 import AcpRuntime, AgentSpec, CommandRuntime

_INSTALL = {
    "claude": "npm install -g @anthropic-ai/claude-code",
    "claude-code-acp": "npm install -g @zed-industries/claude-code-acp",
    "codex": "npm install -g @openai/codex",
    "codex-acp": "npm install -g @zed-industries/codex-acp",
    "gemini": "npm install -g @google/gemini-cli",
    "opencode": "npm install -g opencode-ai",
    "qwen": "npm install -g @qwen-code/qwen-code",
}


def install_hint(program: str) -> str:
    """How to install a program that is known; empty where it is not."""
    command = _INSTALL.get(program.rsplit("/", 1)[-1])
    return f"install it: {command}" if command else ""


def program_of(spec: AgentSpec) -> CommandRuntime | AcpRuntime | None:
    """The runtime of a spec, where that is one that runs a program; its argv, env and directory are the program's."""
    if spec.HasField("command"):
        return spec.command
    return spec.acp if spec.HasField("acp") else None
