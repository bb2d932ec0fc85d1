"""A change copies, edits and puts: messages in State are never altered."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

_M = TypeVar("_M", bound=Message)


def copied(message: _M) -> _M:
    """A copy that is the caller's to alter."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
