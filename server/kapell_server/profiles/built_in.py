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
    return {
        profile.profile: profile
        for profile in (_shell(), _aider(), _claude(), _codex(), _gemini(), _mini(), _opencode())
    }


def _shell() -> AgentProfile:
    spec = AgentSpec(agent_types=["shell"], slots=4, command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))
    return AgentProfile(profile="shell", description="Runs the prompt of each task as a shell command.", spec=spec)


def _agent(name: str, title: str, command: CommandRuntime) -> AgentProfile:
    spec = AgentSpec(agent_types=[name], slots=1, command=command)
    return AgentProfile(profile=name, description=f"Gives the prompt of each task to {title}.", spec=spec)


def _aider() -> AgentProfile:
    # What it commits would be commits of its own; what it runs at the word of its model would be unasked.
    argv = ["aider", "--message-file", "/dev/stdin", "--yes-always", "--no-auto-commits", "--no-suggest-shell-commands"]
    argv += ["--no-pretty", "--no-stream", "--no-fancy-input", "--no-detect-urls", "--disable-playwright"]
    argv += ["--no-check-update", "--no-show-release-notes", "--no-show-model-warnings"]
    argv += ["--no-analytics", "--analytics-log", "/dev/stdout"]
    argv += ["--chat-history-file", "/dev/null", "--input-history-file", "/dev/null"]
    command = CommandRuntime(
        argv=argv,
        stdin="\n{prompt}",  # A first line that begins with / or ! would be a command to it.
        env={"PYTHONUNBUFFERED": "1", "COLUMNS": "2000"},
        output=agent_pb2.PROGRAM_OUTPUT_AIDER,
    )
    return _agent("aider", "aider", command)


def _mini() -> AgentProfile:
    # It has no other way to work unattended: every command that its model wants is run.
    command = CommandRuntime(
        argv=["mini", "--yolo", "--exit-immediately", "--output={artifacts_dir}/trajectory.json", "--task={prompt}"],
        env={"PYTHONUNBUFFERED": "1", "COLUMNS": "2000", "MSWEA_CONFIGURED": "true", "MSWEA_SILENT_STARTUP": "1"},
        output=agent_pb2.PROGRAM_OUTPUT_MINI,
    )
    command.env.update({"MSWEA_COST_TRACKING": "ignore_errors", "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "3"})
    return _agent("mini", "mini-swe-agent, which runs any command its model asks for", command)


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
