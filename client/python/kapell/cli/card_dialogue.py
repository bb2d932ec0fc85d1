"""What may be done about one approval, key by key: decide, edit first, decide its like, remember it.

Each dialogue ends by a key, by Esc, or by being cancelled: `desk` does that once something is decided elsewhere.
Nothing is done that was not seen: a batch is what is listed, an edit is shown as a diff, a rule with what it
would have matched.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kapell.cli import card_edit, card_rule
from kapell.cli.app import App
from kapell.cli.approval_card import card_rows
from kapell.cli.approval_facts import Facts, facts_of
from kapell.cli.approval_views import OPEN, preview_text, risk_cell, target_of
from kapell.cli.commands.approval_read import screen_rows
from kapell.cli.errors import refusal_of, report
from kapell.cli.keys import RESIZED, Keys
from kapell.cli.live import LiveLine
from kapell.cli.output import note
from kapell.cli.revealed import revealed
from kapell.cli.terminal import cut, visible
from kapell.client import Client
from kapell.errors import KapellError
from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_QUESTION,
    RISK_LEVEL_CRITICAL,
    RISK_LEVEL_HIGH,
    RISK_LEVEL_MEDIUM,
    Approval,
    ApprovalOutcome,
    ApprovalRuleSpec,
)
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING

_MOST_TYPED = 2_000
_MOST_BATCH = 100
_MOST_EXAMPLES = 5
_ENTER, _ESCAPE, _ERASE = "\r\n", "\x1b", "\x7f\x08"
_IS_OVER = frozenset({"APPROVAL_ALREADY_DECIDED", "APPROVAL_CHANGED", "APPROVAL_NOT_FOUND"})
_HELP = """
a  approve; high risk takes another key, critical risk the target, typed
d  deny, with a reason that the agent gets to read
e  edit in $EDITOR what it would be given, see the difference, approve with it
r  approve, and have a rule approve its like: which, where and for how long
b  list all that ask for the same kind of thing, and decide those together
s  show all of it, however long       l  later: leave it waiting (or Ctrl-D)
   Ctrl-L draws it anew, Esc goes back, Ctrl-C leaves; the tasks wait on
""".strip()


class Dialogue:
    """Asks about one approval.

    `is_sending` while a decision is on its way, `is_decided` once it has ended the approval, `is_left` once nobody
    sits there.
    """

    def __init__(self, app: App, client: Client, live: LiveLine, keys: Keys) -> None:
        self._app = app
        self._client = client
        self._live = live
        self._keys = keys
        self.is_sending = False
        self.is_decided = False
        self.is_left = False

    async def decide(self, approval_id: str) -> None:
        """Returns once it is decided, or put off."""
        try:
            approval = (await self._draw(approval_id)).approval
            while True:
                alike = await self._alike(approval)
                self._keys.forget()
                self._live.set("?", "yellow", self._words(approval, alike))
                key = await self._keys.key()
                self._live.clear()  # It names keys, and stands there only while they are heard.
                if await self._do(key.lower(), approval, alike):
                    return
        except KapellError as error:
            self._refused(error)
        except EOFError:
            self.is_left = True

    async def _do(self, key: str, approval: Approval, alike: Sequence[Approval]) -> bool:
        """Does what a key asks for; whether the card is done with."""
        match key:
            case "a" if not _is_question(approval):
                return await self._is_sure(approval) and await self._send(approval, "approve")
            case "d":
                comment = await self._typed("Why not? (Enter; Esc goes back) ")
                return comment is not None and await self._send(approval, "deny", comment)
            case "e" if card_edit.editable(approval) is not None:
                return await self._edit(approval)
            case "r" if card_rule.may_be_remembered(approval):
                return await self._remember(approval)
            case "b" if alike:
                return await self._batch(approval, alike)
            case "s":
                await self._draw(approval.approval_id, whole=True)
            case _ if key == RESIZED:
                self._fit()
                await self._draw(approval.approval_id)
            case "l" | "\x04":  # Ctrl-D
                self._say([f"Later: {commands(approval)}"], "dim")
                return True
            case "?":
                self._say(_HELP.split("\n"), "plain")
        return False

    def _words(self, approval: Approval, alike: Sequence[Approval]) -> str:
        """The keys that there are for this one, in a line."""
        offered = [] if _is_question(approval) else ["[a] approve"]
        offered.append("[d] deny")
        if card_edit.editable(approval) is not None:
            offered.append("[e] edit")
        if card_rule.may_be_remembered(approval):
            offered.append("[r] rule")
        if alike:
            offered.append(f"[b] {len(alike)} alike")
        offered += ["[s] all", "[l] later", "[?] keys"]
        if _is_question(approval):
            offered.append(f"  answer with: {command_of(approval)}")
        return " ".join(offered)

    # -- on the screen ---------------------------------------------------------------------------

    async def _draw(self, approval_id: str, *, whole: bool = False) -> Facts:
        facts = await facts_of(self._client, approval_id)
        terminal = self._app.terminal
        with self._live.above():
            sys.stdout.flush()
            for row in card_rows(facts, terminal, screen_rows() - 2, whole=whole):
                note(row)
        return facts

    def _fit(self) -> None:
        """Takes over the size that the terminal has by now."""
        width = shutil.get_terminal_size((80, 24)).columns
        self._app.terminal = dataclasses.replace(self._app.terminal, width=width)
        self._live.fit(self._app.terminal)

    def _say(self, lines: Sequence[str], colour: str) -> None:
        with self._live.above():
            for line in lines:
                note(self._app.terminal.err(visible(line), colour))

    async def _asked(self, words: str, mark: str = "?", colour: str = "yellow") -> str:
        """A key, once these words stand there. A change of the screen's size is no answer."""
        self._keys.forget()
        while True:
            self._live.set(mark, colour, words)
            key = await self._keys.key()
            if key != RESIZED:
                self._live.clear()
                return key
            self._fit()

    async def _typed(self, prompt: str, text: str = "") -> str | None:
        """A line that is typed, perhaps from `text` on; None where it was broken off."""
        self._keys.forget()
        while True:
            room = max(10, self._app.terminal.width - len(prompt) - 6)
            self._live.set("?", "yellow", prompt + text[-room:])
            key = await self._keys.key()
            if key in _ENTER or key in (_ESCAPE, "\x04"):
                self._live.clear()
                return text.strip() if key in _ENTER else None
            if key == RESIZED:
                self._fit()
            elif key in _ERASE:
                text = text[:-1]
            elif key.isprintable() and len(text) < _MOST_TYPED:
                text += key

    # -- decisions -------------------------------------------------------------------------------

    async def _is_sure(self, approval: Approval) -> bool:
        """High risk takes another key than the first; critical the target, typed."""
        if approval.risk.level == RISK_LEVEL_CRITICAL:
            target = target_of(approval)
            return await self._typed(f"CRITICAL. Type {target} to approve (Esc goes back): ") == target
        if approval.risk.level == RISK_LEVEL_HIGH:
            words = "The risk is high. Approve it? [y] yes   any other key: no"
            return (await self._asked(words, "!", "red")).lower() == "y"
        return True

    @contextmanager
    def _sending(self) -> Iterator[None]:
        self.is_sending = True
        try:
            yield
        finally:
            self.is_sending = False

    async def _send(self, approval: Approval, option: str, comment: str = "") -> bool:
        """Decides about what was drawn. False where it could not be, and may be tried again."""
        try:
            with self._sending():
                answer = await self._client.approvals.decide(approval, option, comment=comment)
        except KapellError as error:
            return self._refused(error)
        self.is_decided = answer.state != APPROVAL_STATE_PENDING
        if not self.is_decided:
            self._say([f"Your vote is taken in: {answer.state_reason}."], "dim")
        return True

    def _refused(self, error: KapellError) -> bool:
        """Tells why something was not done; whether there is nothing left to decide."""
        with self._live.above():
            report(refusal_of(error), self._app.terminal)
        return error.reason in _IS_OVER

    # -- edit ------------------------------------------------------------------------------------

    async def _edit(self, approval: Approval) -> bool:
        what = card_edit.editable(approval)
        assert what is not None, "it is offered only for what may be edited"
        text = what.text
        while True:
            try:
                self._live.clear()
                with self._keys.lent():
                    text = await card_edit.edited(text, what.suffix)
                if not what.is_prompt:
                    what.parsed(text)
            except (OSError, ValueError) as error:
                self._say([f"Nothing was decided: {error}."], "red")
                return False
            lines = card_edit.difference(what.text, text)
            if not lines:
                self._say(["Nothing was changed, and nothing decided."], "dim")
                return False
            self._show_difference(lines)
            key = (await self._asked("Approve it with this edit? [y] yes   [e] edit again   any other key: no")).lower()
            if key == "y" and (approval.risk.level < RISK_LEVEL_CRITICAL or await self._is_sure(approval)):
                try:
                    with self._sending():
                        await card_edit.decide(self._client, approval, what, text)
                except KapellError as error:
                    return self._refused(error)
                self.is_decided = True
                return True
            if key != "e":
                return False

    def _show_difference(self, lines: Sequence[str]) -> None:
        terminal = self._app.terminal
        with self._live.above():
            for line in lines:
                colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "plain")
                note(terminal.err(revealed(line.expandtabs(4))[0], colour))

    # -- batch -----------------------------------------------------------------------------------

    async def _alike(self, approval: Approval) -> list[Approval]:
        """What else waits for the same kind of thing, this one first; none where only this one does."""
        if approval.risk.level > RISK_LEVEL_MEDIUM or _is_question(approval):
            return []
        try:
            page = await self._client.approvals.list(signature=approval.signature, page_size=_MOST_BATCH)
        except KapellError:
            return []
        others = [
            one
            for one in page.approvals
            if one.approval_id != approval.approval_id and one.risk.level <= RISK_LEVEL_MEDIUM
        ]
        most = min(max(1, screen_rows() - 6), _MOST_BATCH - 1)
        return [approval, *others[:most]] if others else []

    async def _batch(self, approval: Approval, alike: Sequence[Approval]) -> bool:
        width = self._app.terminal.width
        told = [f"{len(alike)} that ask for {approval.signature}:"]
        told += [cut(f"  {one.approval_id}  {risk_cell(one).text}  {visible(one.title)}", width) for one in alike]
        self._say(told, "plain")
        words = f"[a] approve these {len(alike)}   [d] deny these {len(alike)}   any other key: back"
        match (await self._asked(words)).lower():
            case "a":
                return await self._send_all(approval, alike, "approve", "")
            case "d":
                comment = await self._typed("Why not? (Enter; Esc goes back) ")
                return comment is not None and await self._send_all(approval, alike, "deny", comment)
        return False

    async def _send_all(self, approval: Approval, alike: Sequence[Approval], option: str, comment: str) -> bool:
        try:
            with self._sending():
                answer = await self._client.approvals.decide_all(alike, option, comment=comment)
        except KapellError as error:
            return self._refused(error)
        failed = [outcome for outcome in answer.outcomes if outcome.message]
        self._say(
            [f"{len(alike) - len(failed)} of {len(alike)} were decided: {option}.", *map(_failure, failed)], "dim"
        )
        mine = next(outcome for outcome in answer.outcomes if outcome.approval_id == approval.approval_id)
        self.is_decided = not mine.message and mine.state != APPROVAL_STATE_PENDING
        return not mine.message

    # -- rule ------------------------------------------------------------------------------------

    async def _remember(self, approval: Approval) -> bool:
        spec = await self._rule(approval)
        if spec is None:
            return False
        try:
            found = await self._client.approvals.preview_rule(spec)
        except KapellError as error:
            return self._refused(error)
        examples = [f"  {one.approval_id}  {visible(one.title)}" for one in found.examples[:_MOST_EXAMPLES]]
        told = [card_rule.words_of(spec), f"It would have approved {preview_text(found)}.", *examples]
        self._say(told, "plain")
        if found.anything:
            self._say([OPEN], "red")
            return False
        if not await self._is_sure(approval):
            return False
        if (await self._asked("Approve this, and its like by the rule? [y] yes   any other key: no")).lower() != "y":
            return False
        try:
            with self._sending():
                rule = await self._client.approvals.create_rule(spec)
                self._say([f"{rule.rule_id} is made; revoke it with: kapell approval forget {rule.rule_id}"], "dim")
        except KapellError as error:
            return self._refused(error)
        return await self._send(approval, "approve")

    async def _rule(self, approval: Approval) -> ApprovalRuleSpec | None:
        """Asks for the pattern, the scope and the end of a rule; None where that was broken off."""
        pattern = ""
        if approval.content.command:
            pattern = await self._typed("Commands like (* is anything): ", approval.content.command) or ""
            if not pattern:
                return None
        scopes = card_rule.scopes(approval)
        scope = (await self._asked(f"Where? {card_rule.keys_text(scopes)}")).lower()
        if scope not in dict(scopes):
            return None
        ends = [(key, words) for key, words, _ in card_rule.ENDS]
        end = (await self._asked(f"For how long? {card_rule.keys_text(ends)}")).lower()
        seconds = {key: seconds for key, _, seconds in card_rule.ENDS}
        return card_rule.spec_of(approval, scope, seconds[end], pattern) if end in seconds else None


def _is_question(approval: Approval) -> bool:
    """Whether it wants an answer, and not a yes."""
    return approval.kind == APPROVAL_KIND_QUESTION and bool(approval.options or approval.free_text)


def _failure(outcome: ApprovalOutcome) -> str:
    return f"  {outcome.approval_id}: {outcome.message}"


def command_of(approval: Approval) -> str:
    """The command that approves it, or answers it."""
    option = f" --option {approval.options[0].option_id}" if approval.options else ""
    text = ' -m "ANSWER"' if approval.free_text else ""
    return f"kapell approval approve {approval.approval_id}{option}{text}"


def commands(approval: Approval) -> str:
    """The commands that show it, and then approve it."""
    return f"kapell approval show {approval.approval_id} && {command_of(approval)}"
