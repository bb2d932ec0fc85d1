"""The profiles that are there without any configuration. A table of the same name takes the place of one.

Those of coding agents run unattended, and no option of theirs lifts a bound that their makers set: files of the
directory may be edited, what goes beyond is refused to them. Who wants more says so in a profile of
their own. Prompts go through standard input, where they may be long and begin with a dash.
"""

from __future__ import annotations

from kapell.v1 import agent_pb2
from kapell.v1.agent_pb2 import AgentProfile, AgentSpec, CommandRuntime


def built_in() -> dict[str, AgentProfile]:
    """The profiles by name, made anew."""
    return {profile.profile: profile for profile in (_shell(), _claude(), _codex(), _gemini(), _opencode())}


def _shell() -> AgentProfile:
    spec = AgentSpec(agent_types=["shell"], slots=4, command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))
    return AgentProfile(profile="shell", description="Runs the prompt of each task as a shell command.", spec=spec)


def _agent(name: str, title: str, command: CommandRuntime) -> AgentProfile:
    spec = AgentSpec(agent_types=[name], slots=1, command=command)
    return AgentProfile(profile=name, description=f"Gives the prompt of each task to {title}.", spec=spec)


def _claude() -> AgentProfile:
    argv = ["claude", "-p", "--output-format", "stream-json", "--verbose", "--permission-mode", "acceptEdits"]
    command = CommandRuntime(
        argv=argv,
        stdin="{prompt}",
        resume_argv=[*argv, "--resume", "{session}"],
        output=agent_pb2.PROGRAM_OUTPUT_CLAUDE,
    )
    return _agent("claude", "Claude Code", command)


def _codex() -> AgentProfile:
    options = ["--json", "--skip-git-repo-check", "-c", "sandbox_mode=workspace-write"]
    command = CommandRuntime(
        argv=["codex", "exec", *options, "-"],
        stdin="{prompt}",
        resume_argv=["codex", "exec", "resume", *options, "{session}", "-"],
        output=agent_pb2.PROGRAM_OUTPUT_CODEX,
    )
    return _agent("codex", "OpenAI Codex", command)


def _gemini() -> AgentProfile:
    # A directory that nobody has trusted by hand is refused to unattended runs.
    argv = ["gemini", "--output-format", "stream-json", "--approval-mode", "auto_edit", "--skip-trust"]
    command = CommandRuntime(argv=argv, stdin="{prompt}", output=agent_pb2.PROGRAM_OUTPUT_GEMINI)
    return _agent("gemini", "Gemini CLI", command)


def _opencode() -> AgentProfile:
    argv = ["opencode", "run", "--format", "json"]
    command = CommandRuntime(
        argv=argv,
        stdin="{prompt}",
        resume_argv=[*argv, "--session", "{session}"],
        output=agent_pb2.PROGRAM_OUTPUT_OPENCODE,
    )
    return _agent("opencode", "opencode", command)
