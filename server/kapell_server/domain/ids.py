"""Ids: a prefix and a lower-case ULID, strictly growing within one minter."""

from __future__ import annotations

from random import Random

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_TIME_SHIFTS = range(40, -10, -10)
_TAIL_SHIFTS = range(70, -10, -10)


class IdMinter:
    """Mints ids that sort by time, and by order of minting within a millisecond."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._last_ms = -1
        self._time = ""
        self._tail = 0

    def mint(self, prefix: str, now_ns: int) -> str:
        """An id as "task_01j…": `prefix`, an underscore, 50 bits of milliseconds, 80 random bits.

        A clock that goes back does not make ids go back.
        """
        ms = now_ns // 1_000_000
        pairs = _PAIRS
        if ms > self._last_ms:
            self._last_ms = ms
            self._time = "".join([pairs[(ms >> shift) & 1023] for shift in _TIME_SHIFTS])
            self._tail = self._random.getrandbits(79)
        else:
            self._tail += 1 + self._random.getrandbits(32)
        tail = self._tail
        return f"{prefix}_{self._time}{''.join([pairs[(tail >> shift) & 1023] for shift in _TAIL_SHIFTS])}"
