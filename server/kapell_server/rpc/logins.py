"""Failed logins: counted for each peer, logged without the token, slowed down when there are many.

A good token always opens, so nobody can lock others out from behind the same address. Tokens cannot
be guessed; the limit is there so that trying costs the server little and fills no log.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import structlog
from kapell.v1.error_pb2 import ERROR_REASON_RATE_LIMITED, ERROR_REASON_TOKEN_MISSING

from kapell_server.domain.errors import KapellError

_log = structlog.get_logger(__name__)

BURST = 200
"""Failures of a peer that may come at once."""
A_SECOND = 5.0
"""Failures a second of a peer, in the long run."""
_LOG_INTERVAL = 1.0
_PEERS = 4096


@dataclass(slots=True)
class _Peer:
    """The failures of one address. `next` as in `limits.Share`."""

    next: float = 0.0
    unlogged: int = 0
    log_after: float = 0.0


class FailedLogins:
    """Judges failures. Times are those of `time.perf_counter`."""

    def __init__(self, *, burst: int = BURST, a_second: float = A_SECOND) -> None:
        self._interval = 1 / a_second
        self._ahead = burst / a_second
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    def judge(self, error: KapellError, peer: str, method: str, now: float) -> KapellError:
        """What a failed login is answered with: the error, or RATE_LIMITED where the peer has failed too often."""
        if error.reason == ERROR_REASON_TOKEN_MISSING:
            return error  # nobody has tried anything
        host = host_of(peer)
        known = self._peers.pop(host, None) or _Peer()
        self._peers[host] = known
        if len(self._peers) > _PEERS:
            self._peers.popitem(last=False)
        known.unlogged += 1
        if now >= known.log_after:
            _log.warning("a login failed", peer=host, method=method, reason=error.reason_name, times=known.unlogged)
            known.unlogged, known.log_after = 0, now + _LOG_INTERVAL
        at = known.next if known.next > now else now
        ahead = at - now - self._ahead
        if ahead > 0:
            return KapellError(
                ERROR_REASON_RATE_LIMITED,
                "Too many calls with a wrong token came from this address. Correct the token, then try again.",
                metadata={"limit": f"{1 / self._interval:g} a second"},
                retry_after=ahead,
            )
        known.next = at + self._interval
        return error


def host_of(peer: str) -> str:
    """The peer of grpc without its port: "ipv4:192.0.2.7"; as it is where it has none."""
    host, colon, port = peer.rpartition(":")
    return host if colon and port.isdigit() and host.count(":") >= 1 else peer
