"""How programs that people give their agents are installed, for who says that one is missing."""

from __future__ import annotations

_INSTALL = {
    "claude": "npm install -g @anthropic-ai/claude-code",
    "codex": "npm install -g @openai/codex",
    "gemini": "npm install -g @google/gemini-cli",
    "opencode": "npm install -g opencode-ai",
}


def install_command(program: str) -> str:
    """The command that installs a program that is known here; empty for others."""
    return _INSTALL.get(program, "")
