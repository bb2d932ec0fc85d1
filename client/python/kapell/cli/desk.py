"""Approvals as they come, decided where one stands: the card, and keys below it. On a pipe a line that says what to do.

One card stands at a time, and what else is printed waits for as long as it does (`free`), so that a key never
decides about something that has scrolled away. What is decided elsewhere meanwhile is told, and the next one comes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from kapell.cli.app import App
from kapell.cli.approval_views import state_cell
from kapell.cli.card_dialogue import Dialogue, commands
from kapell.cli.keys import Keys
from kapell.cli.live import LiveLine
from kapell.cli.output import note
from kapell.cli.terminal import can_ask, visible
from kapell.client import Client
from kapell.v1.approval_pb2 import Approval
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING

_EVENT = 2.0
"""Seconds to wait for the event of a decision that was made here."""
_ANSWER = 30.0
"""Seconds to wait for the answer to a decision whose event has come before it."""


class Desk:
    """What waits for a decision, of what `query` names. `free` is set while no card stands."""

    def __init__(self, app: App, client: Client, live: LiveLine, **query: Any) -> None:
        self._app = app
        self._client = client
        self._live = live
        self._query = query
        self._waiting: dict[str, Approval] = {}
        self._later: set[str] = set()
        self._changed = asyncio.Event()
        self._current = ""
        self._over = asyncio.Event()
        self._unsaid: list[tuple[str, str]] = []
        self._is_left = False
        self.free = asyncio.Event()
        self.free.set()

    async def work(self) -> None:
        """Shows what waits and what comes, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="watch approvals")
            if self._app.terminal.live and can_ask():
                group.create_task(self._ask_each(), name="ask for decisions")

    async def _watch(self) -> None:
        watch = self._client.approvals.watch_events(initial_state=True, **self._query)
        async with watch as events:
            async for event in events:
                self._take(event.approval)

    def _take(self, approval: Approval) -> None:
        known = approval.approval_id in self._waiting
        if approval.state == APPROVAL_STATE_PENDING:
            if not known and (self._is_left or not (self._app.terminal.live and can_ask())):
                self._say(f"It waits for approval {approval.approval_id}: {approval.title}\n{commands(approval)}")
            self._waiting[approval.approval_id] = approval
            self._changed.set()
        elif known:
            del self._waiting[approval.approval_id]
            if approval.approval_id == self._current:
                self._over.set()
            cell = state_cell(approval)
            self._say(f"{cell.text}  {approval.title}  ({approval.state_reason})", cell.colour)

    def _say(self, text: str, colour: str = "yellow") -> None:
        if self._current:
            self._unsaid.append((text, colour))
            return
        with self._live.above():
            for line in text.split("\n"):
                note(self._app.terminal.err(visible(line), colour))

    # -- one card at a time ------------------------------------------------------------------

    async def _ask_each(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while (id := next((id for id in self._waiting if id not in self._later), "")) != "":
                self._current = id
                self._over.clear()
                self.free.clear()
                try:
                    await self._ask(id)
                finally:
                    self._current = ""
                    self._live.clear()
                    self._say_what_was_kept()
                    self.free.set()
                if self._is_left:
                    return

    def _say_what_was_kept(self) -> None:
        for text, colour in self._unsaid:
            self._say(text, colour)
        self._unsaid.clear()

    async def _ask(self, id: str) -> None:
        """Asks until it is decided, here or elsewhere, or put off."""
        async with Keys() as keys:
            dialogue = Dialogue(self._app, self._client, self._live, keys)
            asked = asyncio.ensure_future(dialogue.decide(id))
            over = asyncio.ensure_future(self._over.wait())
            try:
                await asyncio.wait((asked, over), return_when=asyncio.FIRST_COMPLETED)
                if not asked.done() and dialogue.is_sending:  # It is over by what was sent, of which the answer comes.
                    await asyncio.wait((asked,), timeout=_ANSWER)
                if asked.done():
                    asked.result()
                if dialogue.is_decided:  # What became of it is told before the next card comes.
                    await asyncio.wait((over,), timeout=_EVENT)
                self._is_left = dialogue.is_left
            finally:
                for one in (asked, over):
                    one.cancel()
                await asyncio.wait((asked, over))  # Not `await asked`: whoever cancels this meanwhile is heard.
        self._later.add(id)  # Asked about once; the event of its end is still told.
