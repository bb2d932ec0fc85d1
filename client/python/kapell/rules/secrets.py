"""References to secrets, as parameters of templates carry them: "secret:github-token"."""

from __future__ import annotations

import re

LLM_KEY = "LLM_API_KEY"
"""What an attempt of an agent that asks a model finds the key of the endpoint under."""
_REFERENCE = re.compile(r"secret:([a-zA-Z0-9][a-zA-Z0-9._-]{0,62})")
EXPECTED = "must name a secret, as in secret:github-token; store the value with `kapell secret set`"
"""What is said of anything else. Never with the value: it may be a secret."""


def name_of(reference: object) -> str:
    """The name in a reference; empty for anything else."""
    found = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    return "" if found is None else found[1]


def shown(name: str) -> str:
    """How a prompt shows a secret."""
    return f"[secret {name}]"
