"""What a host inherits from the server: an allow-list, never the rest.

The list is the one that agent.proto promises for programs; the host applies it again for them.
"""

from __future__ import annotations

from collections.abc import Mapping

ALLOWED = frozenset({"PATH", "HOME", "LANG", "TERM", "TMPDIR", "TZ", "USER"})
ALLOWED_PREFIX = "LC_"


def allowed(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of `environ` that may be passed on."""
    return {name: value for name, value in environ.items() if name in ALLOWED or name.startswith(ALLOWED_PREFIX)}
