"""When to dial again: the one policy of watches, logs and waits.

The first connection is sought for a short time only, so that a wrong address is told at once; a
connection that was lost is sought for ever, with growing pauses, because the reader's place is
kept and a restart of the server is ordinary.
"""

from __future__ import annotations

import asyncio

from kapell.connection import backoff
from kapell.errors import DeadlineExceeded, KapellError, Unavailable

CONNECT_TIMEOUT = 2.0
"""Seconds to try for the first connection."""


class Reconnect:
    """Counts failures and says how long to pause. `connect_timeout` None tries for ever from the start."""

    def __init__(self, connect_timeout: float | None = CONNECT_TIMEOUT) -> None:
        self._connect_timeout = connect_timeout
        self._gives_up_at: float | None = None
        self._failures = 0
        self._fresh = False
        self.begun = False

    def succeeded(self) -> None:
        """To be called with every sign of life."""
        self.begun = self._fresh = True
        self._failures = 0

    def pause_after(self, error: KapellError) -> float | None:
        """Seconds until the next try; None when trying again is pointless. The first one is at once."""
        if not self._is_passing(error):
            return None
        if not self.begun and self._connect_timeout is not None:
            now = asyncio.get_running_loop().time()
            if self._gives_up_at is None:
                self._gives_up_at = now + self._connect_timeout
            if now >= self._gives_up_at:
                return None
        was_fresh, self._fresh = self._fresh, False
        if was_fresh:
            return 0.0
        self._failures += 1
        return backoff(self._failures)

    def _is_passing(self, error: KapellError) -> bool:
        """Whether time can mend it. Proxies report a cut connection as a reset with INTERNAL.

        Once begun that includes a call that was not answered in time, as over a dead connection,
        and the limit on watches: the server may count the stream that broke until it notices.
        """
        if isinstance(error, Unavailable):
            return True
        if self.begun and (isinstance(error, DeadlineExceeded) or error.reason == "TOO_MANY_WATCHES"):
            return True
        return not error.from_server and error.code == "INTERNAL" and "RST_STREAM" in error.message
