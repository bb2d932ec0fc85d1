"""What encrypts the values of secrets, as decisions see it. The real one is `kapell_server.vault`."""

from __future__ import annotations

from typing import Protocol


class Vault(Protocol):
    """Seals values under a context, which must be the same when they are opened."""

    def seal(self, value: str, context: str) -> bytes: ...

    def open(self, sealed: bytes, context: str) -> str | None:
        """The value; None where it was damaged, or sealed by a key that is gone."""

    def read(self, kind: str, location: str) -> str | None:
        """The value that is kept elsewhere, in the "environment" or a "file"; None where there is none."""


class NoVault:
    """Holds nothing: for states in which no secret is ever set."""

    def seal(self, value: str, context: str) -> bytes:
        raise AssertionError("there is no vault")

    def open(self, sealed: bytes, context: str) -> str | None:
        return None

    def read(self, kind: str, location: str) -> str | None:
        return None
