"""What is known of programs that agents are made of: how to install one that is missing."""

from __future__ import annotations

_INSTALL = {
    "claude": "npm install -g @anthropic-ai/claude-code",
    "codex": "npm install -g @openai/codex",
    "gemini": "npm install -g @google/gemini-cli",
    "opencode": "npm install -g opencode-ai",
}


def install_hint(program: str) -> str:
    """How to install a program that is known; empty where it is not."""
    command = _INSTALL.get(program.rsplit("/", 1)[-1])
    return f"install it: {command}" if command else ""
