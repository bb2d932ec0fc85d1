"""What the agent tells of its use: into the ledger, once, in the best words that it has for it.

The protocol has the cost of a session so far (usage_update), and the tokens of a turn at its end. Qwen Code tells
the tokens of each call besides. What is told first is counted for the whole attempt, so that nothing counts twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from kapell.errors import InvalidRequest
from kapell.records import UsageFields
from kapell.runtimes.acp.protocol import Tokens
from kapell.runtimes.contract import Attempt
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM

_PAUSE = 1.0
"""Seconds between two costs of a session that are told in a row."""


class Spending:
    """The use of one attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self.model = ""
        """The model of the session, where the agent tells it."""
        self._attempt = attempt
        self._counted = ""
        """What counts in this attempt: cost, calls or turns; empty until something was told."""
        self._payload: Mapping[str, Any] | None = None
        self._sent = 0.0
        self._cost_sent: object = None

    def cost(self, payload: Mapping[str, Any]) -> None:
        """A usage_update, as it came: running totals, so that the last one counts."""
        self._payload = payload
        if asyncio.get_running_loop().time() - self._sent >= _PAUSE:
            self.finish()

    def call(self, tokens: Tokens) -> None:
        """The tokens of one call of a model."""
        if self._counts("calls"):
            self._tell(tokens)

    def turn(self, turn: list[Tokens]) -> None:
        """The tokens of a whole turn."""
        self.finish()
        if turn and self._counts("turns"):
            for tokens in turn:
                self._tell(tokens)

    def finish(self) -> None:
        """Tells the ledger what the session has cost so far, which takes off what it has been told before."""
        payload, self._payload = self._payload, None
        cost = payload["update"].get("cost") if payload else None
        if payload is None or not cost or cost == self._cost_sent:
            return
        self._cost_sent, self._sent = cost, asyncio.get_running_loop().time()
        # Nothing is what agents tell of models whose price they do not know; the ledger may know it.
        if not cost.get("amount") or not self._counts("cost"):
            return
        try:
            self._attempt.usage_from(payload)
        except (InvalidRequest, TypeError, ValueError) as error:
            self._left_out(error)

    def _counts(self, what: str) -> bool:
        """Whether this is what counts; it is from now on where nothing else was."""
        self._counted = self._counted or what
        return self._counted == what

    def _tell(self, tokens: Tokens) -> None:
        fields: UsageFields = {
            "model": tokens.model or self.model,
            "input_tokens": tokens.input,
            "cache_read_tokens": tokens.cache_read,
            "cache_write_5m_tokens": tokens.cache_write,
            "output_tokens": tokens.output,
            "reasoning_tokens": tokens.thought,
        }
        try:
            self._attempt.usage(**fields)
        except (InvalidRequest, TypeError, ValueError, OverflowError) as error:
            self._left_out(error)

    def _left_out(self, error: Exception) -> None:
        self._attempt.log(f"usage was left out: {error}", LOG_STREAM_SYSTEM)
