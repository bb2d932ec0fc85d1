"""What the agent asks of us: looks at each request, hands it to its room, and answers in the protocol's words."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from acp.exceptions import RequestError
from acp.meta import CLIENT_METHODS
from acp.schema import (
    CreateTerminalRequest,
    KillTerminalRequest,
    ReadTextFileRequest,
    ReleaseTerminalRequest,
    RequestPermissionRequest,
    SessionNotification,
    TerminalOutputRequest,
    WaitForTerminalExitRequest,
    WriteTextFileRequest,
)
from pydantic import BaseModel, ValidationError

from kapell.runtimes.acp.files import Files
from kapell.runtimes.acp.permissions import Permissions
from kapell.runtimes.acp.terminals import Terminals
from kapell.runtimes.acp.updates import Updates

_log = logging.getLogger("kapell.host")

_Model = TypeVar("_Model", bound=BaseModel)
_Answer = Callable[[Any], Awaitable[dict[str, Any]]]


class Service:
    """Serves one session of one program. Called by the connection, a task for each message."""

    def __init__(self, updates: Updates, permissions: Permissions, files: Files, terminals: Terminals | None) -> None:
        self._updates = updates
        self._rooms: dict[str, tuple[type[BaseModel], _Answer]] = {
            CLIENT_METHODS["session_request_permission"]: (RequestPermissionRequest, permissions.answer),
            CLIENT_METHODS["fs_read_text_file"]: (ReadTextFileRequest, files.read),
            CLIENT_METHODS["fs_write_text_file"]: (WriteTextFileRequest, files.write),
        }
        if terminals is not None:
            self._rooms |= {
                CLIENT_METHODS["terminal_create"]: (CreateTerminalRequest, terminals.create),
                CLIENT_METHODS["terminal_output"]: (TerminalOutputRequest, terminals.output),
                CLIENT_METHODS["terminal_wait_for_exit"]: (WaitForTerminalExitRequest, terminals.wait),
                CLIENT_METHODS["terminal_kill"]: (KillTerminalRequest, terminals.kill),
                CLIENT_METHODS["terminal_release"]: (ReleaseTerminalRequest, terminals.release),
            }

    async def __call__(self, method: str, params: Any, is_notification: bool) -> Any:
        """Answers a request. Raises RequestError, which is the answer then."""
        if is_notification:
            self._hear(method, params)
            return None
        if method not in self._rooms:
            raise RequestError.method_not_found(method)
        model, answer = self._rooms[method]
        request = _read(model, params)
        try:
            return await answer(request)
        except RequestError:
            raise
        except Exception as error:
            # Its text may hold what the agent works on, so only its kind goes to the host's log.
            _log.error("%s failed: %s", method, type(error).__name__)
            raise RequestError.internal_error({"details": f"{type(error).__name__}: {error}"[:500]}) from error

    def _hear(self, method: str, params: Any) -> None:
        """Takes what is told. What this version does not know is nobody's news."""
        if method != CLIENT_METHODS["session_update"] or not isinstance(params, dict):
            return
        try:
            notification = SessionNotification.model_validate(params)
        except ValidationError:
            return
        self._updates.take(notification, params)


def _read(model: type[_Model], params: Any) -> _Model:
    try:
        return model.model_validate(params)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        raise RequestError.invalid_params({"details": wrong[:500]}) from None
