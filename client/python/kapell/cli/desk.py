"""Approvals as they come, decided where one stands: the card, and keys below it. On a pipe a line that says what to do.

One card stands at a time, and what else is printed waits for as long as it does (`free`), so that a key never
decides about something that has scrolled away. What is decided elsewhere meanwhile is told, and the next one comes.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from kapell.cli.app import App
from kapell.cli.approval_card import card_rows
from kapell.cli.approval_facts import Facts, facts_of
from kapell.cli.approval_views import state_cell, target_of
from kapell.cli.commands.approval_read import screen_rows
from kapell.cli.errors import refusal_of, report
from kapell.cli.keys import Keys, can_ask
from kapell.cli.live import LiveLine
from kapell.cli.output import note
from kapell.cli.terminal import visible
from kapell.client import Client
from kapell.errors import KapellError
from kapell.v1.approval_pb2 import APPROVAL_KIND_QUESTION, RISK_LEVEL_CRITICAL, RISK_LEVEL_HIGH, Approval
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING

_MOST_TYPED = 2_000
_ENTER, _ESCAPE, _ERASE = "\r\n", "\x1b", "\x7f\x08"


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
            if not known and not (self._app.terminal.live and can_ask()):
                self._say(f"It waits for approval {approval.approval_id}: {approval.title}\n{_commands(approval)}")
            self._waiting[approval.approval_id] = approval
            self._changed.set()
        elif known:
            del self._waiting[approval.approval_id]
            if approval.approval_id == self._current:
                self._over.set()
            cell = state_cell(approval)
            self._say(f"{cell.text}  {approval.title}  ({approval.state_reason})", cell.colour)

    def _say(self, text: str, colour: str = "yellow") -> None:
        if self._current and not self._over.is_set():
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
                    self.free.set()
                for text, colour in self._unsaid:
                    self._say(text, colour)
                self._unsaid.clear()

    async def _ask(self, id: str) -> None:
        """Asks until it is decided, here or elsewhere, or put off."""
        facts = await self._draw(id)
        async with Keys() as keys:
            asked = asyncio.ensure_future(self._answer(facts, keys))
            over = asyncio.ensure_future(self._over.wait())
            try:
                await asyncio.wait((asked, over), return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    asked.result()
            finally:
                for one in (asked, over):
                    one.cancel()
                await asyncio.wait((asked, over))  # Not `await asked`: whoever cancels this meanwhile is heard.
        self._later.add(id)  # Asked about once; the event of its end is still told.

    async def _draw(self, id: str, *, whole: bool = False) -> Facts:
        facts = await facts_of(self._client, id)
        terminal = self._app.terminal
        with self._live.above():
            sys.stdout.flush()
            for row in card_rows(facts, terminal, screen_rows() - 2, whole=whole):
                note(row)
        return facts

    async def _answer(self, facts: Facts, keys: Keys) -> None:
        approval = facts.approval
        is_question = approval.kind == APPROVAL_KIND_QUESTION and (approval.options or approval.free_text)
        words = "[d] deny   [s] show all   [l] later"
        if is_question:
            words += f"   answer with: {_command(approval)}"
        else:
            words = f"[a] approve   {words}"
        while True:
            keys.forget()
            self._live.set("?", "yellow", words)
            match (await keys.key()).lower():
                case "a" if not is_question and await self._is_sure(approval, keys):
                    if await self._decide(approval, "approve", ""):
                        return
                case "d":
                    comment = await self._typed("Why not? (Enter; Esc goes back) ", keys)
                    if comment is not None and await self._decide(approval, "deny", comment):
                        return
                case "s":
                    await self._draw(approval.approval_id, whole=True)
                case "l":
                    self._later.add(approval.approval_id)
                    self._say(f"Later: {_commands(approval)}", "dim")
                    return

    async def _is_sure(self, approval: Approval, keys: Keys) -> bool:
        """High risk takes another key than the first; critical the target, typed."""
        if approval.risk.level == RISK_LEVEL_CRITICAL:
            target = target_of(approval)
            return await self._typed(f"CRITICAL. Type {target} to approve (Esc goes back): ", keys) == target
        if approval.risk.level == RISK_LEVEL_HIGH:
            keys.forget()
            self._live.set("!", "red", "The risk is high. Approve it? [y] yes   any other key: no")
            return (await keys.key()).lower() == "y"
        return True

    async def _typed(self, prompt: str, keys: Keys) -> str | None:
        """A line that is typed; None where it was broken off."""
        text = ""
        keys.forget()
        while True:
            self._live.set("?", "yellow", prompt + text[-40:])
            key = await keys.key()
            if key in _ENTER:
                return text.strip()
            if key == _ESCAPE:
                return None
            if key in _ERASE:
                text = text[:-1]
            elif key.isprintable() and len(text) < _MOST_TYPED:
                text += key

    async def _decide(self, approval: Approval, option: str, comment: str) -> bool:
        """Decides about what was drawn. False where it could not be, and may be tried again."""
        try:
            await self._client.approvals.decide(approval, option, comment=comment)
        except KapellError as error:
            with self._live.above():
                report(refusal_of(error), self._app.terminal)
            return error.reason in ("APPROVAL_ALREADY_DECIDED", "APPROVAL_CHANGED", "APPROVAL_NOT_FOUND")
        return True


def _command(approval: Approval) -> str:
    option = f" --option {approval.options[0].option_id}" if approval.options else ""
    text = ' -m "ANSWER"' if approval.free_text else ""
    return f"kapell approval approve {approval.approval_id}{option}{text}"


def _commands(approval: Approval) -> str:
    return f"kapell approval show {approval.approval_id} && {_command(approval)}"
