"""The calls of one program: greet it, sign in where it asks for that, open a session, prompt, cancel.

Each failure is said in words that tell what to do. A program that has closed its output raises `Gone`;
how it ended is for its runner to look at.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn

from acp.connection import Connection, MethodHandler
from acp.exceptions import RequestError

from kapell._worker.outcome import RateLimited, TaskFailed
from kapell.runtimes.acp import protocol
from kapell.runtimes.acp.protocol import Opened, Tokens, Welcome
from kapell.runtimes.acp.wire import Wire
from kapell.runtimes.contract import Attempt
from kapell.v1.agent_pb2 import AcpRuntime
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM

START_TIMEOUT = 60.0
_PROVIDER_PAUSE = 60.0
"""Seconds until an agent whose provider takes no more calls is tried again; it does not tell."""


class Gone(Exception):
    """The program has closed its output before it had answered."""


class Conversation:
    """Asks one program, in the order in which `runtime` has it."""

    def __init__(self, spec: AcpRuntime, wire: Wire, serve: MethodHandler, attempt: Attempt) -> None:
        self._spec = spec
        self._program = spec.argv[0].rsplit("/", 1)[-1]
        self._attempt = attempt
        self._patience = spec.start_timeout.ToMilliseconds() / 1000 if spec.HasField("start_timeout") else START_TIMEOUT
        self._connection = Connection(serve, wire)
        self.session_id = ""
        """The session, from its opening on."""

    async def greet(self, *, writes: bool) -> Welcome:
        """Agrees on the version of the protocol. Raises TaskFailed."""
        answer = await self._ask(protocol.INITIALIZE, protocol.hello(writes=writes))
        try:
            self._welcome = protocol.welcome_of(answer)
        except ValueError as error:
            self._misunderstood(protocol.INITIALIZE, error)
        if self._welcome.version != protocol.VERSION:
            raise TaskFailed(
                "PROTOCOL_ERROR",
                f"{self._program} speaks version {self._welcome.version} of the Agent Client Protocol, Kapell speaks "
                f"{protocol.VERSION} - install a version of {self._program} that does, too",
                retryable=False,
            )
        if self._welcome.name:
            self._attempt.log(f"the agent is {self._welcome.name}", LOG_STREAM_SYSTEM)
        return self._welcome

    async def open(self, directory: str) -> Opened:
        """Opens a new session, signing in where the agent wants that. Raises TaskFailed."""
        parameters = protocol.session_of("", directory)
        try:
            answer = await self._ask(protocol.NEW, parameters, passing=(protocol.AUTH_REQUIRED,))
        except RequestError as error:
            await self._sign_in(error)
            answer = await self._ask(protocol.NEW, parameters)
        return self._opened(protocol.NEW, answer)

    async def reopen(self, session_id: str, directory: str) -> Opened | None:
        """Goes on with an earlier session; None where the agent cannot. Raises TaskFailed."""
        method = protocol.RESUME if self._welcome.can_resume else protocol.LOAD
        if not (self._welcome.can_load or self._welcome.can_resume):
            return None
        self.session_id = session_id
        try:
            answer = await self._ask(method, protocol.session_of(session_id, directory), passing=None)
        except RequestError as error:
            self._attempt.log(f"session {session_id} cannot go on: {_words(error)}", LOG_STREAM_SYSTEM)
            self.session_id = ""
            return None
        return self._opened(method, answer, session_id)

    async def choose(self, opened: Opened) -> None:
        """Sets mode and model as the profile says. Raises TaskFailed."""
        for kind, value in (("mode", self._spec.mode), ("model", self._spec.model)):
            if not value:
                continue
            try:
                method, parameters = protocol.choice(opened, kind, value)
            except ValueError as error:
                raise TaskFailed("SETUP_FAILED", f"{error} - correct the profile", retryable=False) from None
            await self._ask(method, parameters)

    async def prompt(self, text: str) -> tuple[str, list[Tokens]]:
        """Sends the prompt and waits for the end of the turn, however long; why it ended, and what it has used.

        Raises TaskFailed.
        """
        answer = await self._ask(protocol.PROMPT, protocol.prompt(self.session_id, text), is_patient=True)
        try:
            return protocol.stop_reason_of(answer), protocol.turn_tokens(answer)
        except ValueError as error:
            self._misunderstood(protocol.PROMPT, error)

    async def cancel(self) -> None:
        """Tells the agent to end its turn; the turn still has to end."""
        if self.session_id:
            await self._connection.send_notification(protocol.CANCEL, {"sessionId": self.session_id})

    async def close(self) -> None:
        """Ends what still waits for an answer, on both sides."""
        await self._connection.close()

    async def _sign_in(self, refusal: RequestError) -> None:
        if not self._spec.auth_method:
            self._signed_out(refusal)
        self._attempt.log(f"the agent asks to sign in: {self._spec.auth_method}", LOG_STREAM_SYSTEM)
        try:
            await self._ask(protocol.SIGN_IN, {"methodId": self._spec.auth_method}, passing=None)
        except RequestError as error:
            self._signed_out(error)

    def _signed_out(self, refusal: RequestError) -> NoReturn:
        ways = ", ".join(self._welcome.sign_in[:20]) or "nothing it tells of"
        raise TaskFailed(
            "AUTH_REQUIRED",
            f"{self._program} is not signed in ({_words(refusal)}) - run it once by hand, as this user and with the "
            f"same HOME, and sign in; or give it its key by env_from_secret, and name the way by auth_method. "
            f"It offers: {ways}",
            retryable=False,
        )

    async def _ask(
        self,
        method: str,
        parameters: dict[str, Any],
        *,
        is_patient: bool = False,
        passing: tuple[int, ...] | None = (),
    ) -> object:
        """One call. Refusals with a code of `passing` (None: with any) are raised as they are, others as TaskFailed."""
        seconds = None if is_patient else self._patience
        try:
            async with asyncio.timeout(seconds):
                return await self._connection.send_request(method, parameters)
        except TimeoutError:
            raise TaskFailed(
                "NO_ANSWER",
                f"{self._program} did not answer {method} within {seconds:g} s - try it by hand; a slow start gets "
                "more time by start_timeout of the profile",
            ) from None
        except RequestError as error:
            if passing is None or error.code in passing:
                raise
            self._refused(method, error)
        except (ConnectionError, OSError) as error:
            raise Gone(str(error)) from error

    def _refused(self, method: str, error: RequestError) -> NoReturn:
        if error.code == protocol.AUTH_REQUIRED:
            self._signed_out(error)
        if error.code == protocol.TOO_MANY_CALLS:
            provider = re.sub(r"[^a-zA-Z0-9]+", "-", self._program).strip("-")[:63] or "acp"
            raise RateLimited(provider, _PROVIDER_PAUSE, f"{self._program}: {_words(error)}")
        raise TaskFailed(
            "AGENT_ERROR", f"{self._program} refused {method}: {_words(error)}", details={"code": error.code}
        )

    def _opened(self, method: str, answer: object, session_id: str = "") -> Opened:
        try:
            opened = protocol.opened_of(answer, session_id)
        except ValueError as error:
            self._misunderstood(method, error)
        self.session_id = opened.session_id
        return opened

    def _misunderstood(self, method: str, error: ValueError) -> NoReturn:
        first_line = str(error).partition("\n")[0]
        raise TaskFailed(
            "PROTOCOL_ERROR",
            f"{self._program} answered {method} with something else than the protocol says: {first_line}",
        ) from None


def _words(error: RequestError) -> str:
    """The refusal as people read it, with the details that agents put beside the message."""
    details = error.data
    if isinstance(details, dict):
        details = details.get("details") or details.get("message") or json.dumps(details, ensure_ascii=False)
    shown = f"{error}: {details}" if details and str(details) not in str(error) else str(error)
    return shown[:1000]
