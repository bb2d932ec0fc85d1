"""Seals the values of secrets with AES-256-GCM, under keys that stay in the data directory.

A sealed value is the number of its key, a nonce and the ciphertext; the secret's name is
authenticated with it, so that one value cannot be put in the place of another. The first key of the
file seals; the others are there only while values are being sealed anew.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_ID_BYTES = 8
_NONCE_BYTES = 12
_MOST_BYTES = 8_192


class Vault:
    """The keys of one server. `store` writes all of them, the first one first, durably."""

    def __init__(
        self,
        keys: list[bytes],
        *,
        store: Callable[[list[bytes]], None] = lambda keys: None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        assert keys
        assert all(len(key) == KEY_BYTES for key in keys), "keys have 32 bytes"
        self._keys = keys
        self._store = store
        self._environ = environ

    def seal(self, value: str, context: str) -> bytes:
        """The value, encrypted with the key of now."""
        key = self._keys[0]
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(key).encrypt(nonce, value.encode(errors="surrogatepass"), context.encode())
        return _id_of(key) + nonce + sealed

    def open(self, sealed: bytes, context: str) -> str | None:
        """The value; None where it was damaged, is another one's, or its key is gone."""
        key_id, rest = sealed[:_ID_BYTES], sealed[_ID_BYTES:]
        for key in self._keys:
            if hmac.compare_digest(_id_of(key), key_id):
                try:
                    plain = AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], context.encode())
                except (InvalidTag, ValueError):
                    return None
                return plain.decode(errors="surrogatepass")
        return None

    def read(self, kind: str, location: str) -> str | None:
        """The value of a variable of this process, or of a file of text without its last newline; None without one."""
        if kind == "environment":
            return self._environ.get(location) or None
        try:
            with Path(location).open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
            text = data.decode()
        except (OSError, UnicodeDecodeError):
            return None
        text = text.removesuffix("\n").removesuffix("\r")
        return text if text and "\0" not in text and len(data) <= _MOST_BYTES else None

    def mark_of(self, value: str) -> str:
        """A keyed hash that tells values apart without telling anything of them."""
        return hmac.new(self._keys[-1], b"mark:" + value.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()

    def begin_rotation(self) -> None:
        """Seals with a fresh key from now on; those before still open. Durable when it returns."""
        keys = [secrets.token_bytes(KEY_BYTES), *self._keys]
        self._store(keys)
        self._keys = keys

    def end_rotation(self, sealed: Iterable[bytes]) -> None:
        """Forgets the keys before, but for those with which one of these values is sealed."""
        used = {value[:_ID_BYTES] for value in sealed}
        keys = [key for place, key in enumerate(self._keys) if not place or _id_of(key) in used]
        self._store(keys)
        self._keys = keys


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(b"id:" + key).digest()[:_ID_BYTES]
