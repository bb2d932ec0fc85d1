"""Which session an attempt has had, kept for the next one: a small file beside the sessions of the agent itself.

Agents keep sessions in their HOME and load them for the directory in which they began, so the note
lies in that HOME, and counts for that directory only. Where there is no HOME nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

_FOLDER = ".local/state/kapell/sessions"
_OLDEST = 14 * 86_400
"""Seconds after which a note is nobody's."""


class KeptSession:
    """The note about one task, or one agent. Blocks, and fails at nothing: without a note an agent begins anew."""

    def __init__(self, environment: Mapping[str, str], directory: Path, *, program: str, owner: str) -> None:
        home = environment.get("HOME", "")
        name = hashlib.sha256("\0".join((program, str(directory), owner)).encode()).hexdigest()[:40]
        self._file = Path(home, _FOLDER, name) if home.startswith("/") else None

    def read(self) -> str:
        """The session; empty where none is known."""
        if self._file is None:
            return ""
        with contextlib.suppress(OSError, ValueError):
            match json.loads(self._file.read_text(encoding="utf-8")):
                case {"session_id": str(session_id)}:
                    return session_id
        return ""

    def write(self, session_id: str) -> None:
        """Remembers the session, and forgets what is old."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._file.with_name(f"{self._file.name}.{os.getpid()}")
            fresh.write_text(json.dumps({"session_id": session_id}), encoding="utf-8")
            fresh.replace(self._file)
            for other in self._file.parent.iterdir():
                if other.stat().st_mtime < time.time() - _OLDEST:
                    other.unlink(missing_ok=True)

    def forget(self) -> None:
        """The session is over."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
