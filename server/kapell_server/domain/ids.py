"""Ids: a prefix and a lower-case ULID, strictly growing within one minter."""

from __future__ import annotations

from random import Random

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]


class IdMinter:
    """Mints ids that sort by time, and by order of minting within a millisecond."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._last_ms = -1
        self._tail = 0

    def mint(self, prefix: str, now_ns: int) -> str:
        """An id as "task_01j…": `prefix`, an underscore, 48 bits of milliseconds, 80 random bits."""
        ms = now_ns // 1_000_000
        if ms > self._last_ms:
            self._last_ms = ms
            self._tail = self._random.getrandbits(79)
        else:
            self._tail += 1 + self._random.getrandbits(32)
        value = (self._last_ms << 80) | self._tail
        pairs = _PAIRS
        return f"{prefix}_" + "".join([pairs[(value >> shift) & 1023] for shift in range(120, -10, -10)])
