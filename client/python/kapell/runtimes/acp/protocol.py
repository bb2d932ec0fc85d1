"""Version 1 of the Agent Client Protocol, as far as Kapell speaks it (https://agentclientprotocol.com/protocol/v1).

Names of methods and the shapes of what we send and expect stand here and nowhere else; what agents send
is checked by the models of the library. The draft of version 2 is not offered. Where it differs, and what
that would change here:

    initialize        `capabilities` for agentCapabilities, `info` for agentInfo     welcome_of, hello
    authenticate      is auth/login, with methodId                                   SIGN_IN
    session/prompt    answers at once; the turn ends with an update, state_update    PROMPT, stop_reason_of
    fs/*, terminal/*  are gone: agents have files and processes of their own         CLIENT_CAPABILITIES
    modes             are config options only                                        mode_and_model
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from acp.meta import AGENT_METHODS, PROTOCOL_VERSION
from acp.schema import InitializeResponse, NewSessionResponse, PromptResponse

from kapell._version import __version__

VERSION = PROTOCOL_VERSION
INITIALIZE = AGENT_METHODS["initialize"]
SIGN_IN = AGENT_METHODS["authenticate"]
NEW, LOAD, RESUME = (AGENT_METHODS[f"session_{name}"] for name in ("new", "load", "resume"))
PROMPT = AGENT_METHODS["session_prompt"]
CANCEL = AGENT_METHODS["session_cancel"]
SET_MODE = AGENT_METHODS["session_set_mode"]
SET_OPTION = AGENT_METHODS["session_set_config_option"]
SET_MODEL = "session/set_model"
"""Of agents from before config options."""

AUTH_REQUIRED = -32000
NOT_FOUND = -32002
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}")
TOO_MANY_CALLS = 429
"""Not of the protocol: what some agents answer for their provider."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """What an agent says about itself."""

    version: int
    name: str
    can_load: bool
    can_resume: bool
    sign_in: tuple[str, ...]
    """Ways to sign in, as people read them: `name (id)`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What was used of a model. `input` has what was read from and written to caches, `output` the thoughts."""

    model: str = ""
    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    thought: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A session, and what can be chosen in it."""

    session_id: str
    model: str = ""
    """The model it has begun with; empty where the agent does not tell."""
    modes: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, tuple[str, ...]]] | None = None
    """For "mode" and "model": the id of the option, and its values."""
    models: tuple[str, ...] = ()
    """Of agents from before config options."""


def hello(*, writes: bool) -> dict[str, Any]:
    """The parameters of initialize. Without `writes` the agent gets neither files to write nor terminals.

    Reading is not offered, though it is served: agents see the same disk, and one that reads through us takes a file
    that is not there for a failure, and so cannot make new ones (Gemini CLI, its issue 9280).
    """
    files = {"readTextFile": False, "writeTextFile": writes}
    return {
        "protocolVersion": VERSION,
        "clientCapabilities": {"fs": files, "terminal": writes},
        "clientInfo": {"name": "kapell", "title": "Kapell", "version": __version__},
    }


def welcome_of(answer: object) -> Welcome:
    """Reads the answer to initialize. Raises ValueError."""
    found = InitializeResponse.model_validate(answer)
    capabilities = found.agent_capabilities
    sessions = capabilities.session_capabilities if capabilities else None
    info = found.agent_info
    return Welcome(
        version=found.protocol_version,
        name=" ".join(filter(None, (info.name, info.version)))[:200] if info else "",
        can_load=bool(capabilities and capabilities.load_session),
        can_resume=bool(sessions and sessions.resume is not None),
        sign_in=tuple(f"{method.name} ({method.id})" for method in found.auth_methods or ()),
    )


def session_of(session_id: str, directory: str) -> dict[str, Any]:
    """The parameters of session/new, and with an id those of session/load and session/resume."""
    parameters: dict[str, Any] = {"cwd": directory, "mcpServers": []}
    return parameters | ({"sessionId": session_id} if session_id else {})


def opened_of(answer: object, session_id: str = "") -> Opened:
    """Reads the answer to the opening of a session. Raises ValueError."""
    payload = dict(answer) if isinstance(answer, Mapping) else {}
    if session_id:
        payload["sessionId"] = session_id
    found = NewSessionResponse.model_validate(payload)
    options = {}
    for option in found.config_options or ():
        if option.type == "select" and (option.category in ("mode", "model") or option.id in ("mode", "model")):
            kind = option.category if option.category in ("mode", "model") else option.id
            options[str(kind)] = (option.id, tuple(_values(option.options)))
    return Opened(
        session_id=found.session_id,
        model=_model_of(payload),
        modes=tuple(mode.id for mode in found.modes.available_modes) if found.modes else (),
        options=options,
        models=tuple(_old_models(payload)),
    )


def choice(opened: Opened, kind: str, value: str) -> tuple[str, dict[str, Any]]:
    """The call that sets "mode" or "model". Raises ValueError, naming what there is to choose from."""
    option_id, values = (opened.options or {}).get(kind, ("", ()))
    if value in values:
        return SET_OPTION, {"sessionId": opened.session_id, "configId": option_id, "value": value}
    older = opened.modes if kind == "mode" else opened.models
    if value in older:
        method, name = (SET_MODE, "modeId") if kind == "mode" else (SET_MODEL, "modelId")
        return method, {"sessionId": opened.session_id, name: value}
    known = ", ".join((*values, *older)[:20]) or "nothing to choose from"
    raise ValueError(f"the agent has no {kind} {value!r}; it has: {known}")


def prompt(session_id: str, text: str) -> dict[str, Any]:
    """The parameters of session/prompt."""
    return {"sessionId": session_id, "prompt": [{"type": "text", "text": text}]}


def stop_reason_of(answer: object) -> str:
    """Why a turn has ended. Raises ValueError."""
    return PromptResponse.model_validate(answer).stop_reason


def turn_tokens(answer: object) -> list[Tokens]:
    """What a turn has used, for each model where that is told; empty where nothing is."""
    match answer:
        case {"_meta": {"quota": {"model_usage": [_, *_] as models}}}:
            # Gemini CLI.
            return [_of_model(one) for one in models if isinstance(one, dict)]
        case {"usage": {} as usage}:
            return [_tokens(usage)]
    return []


def call_tokens(update: object) -> Tokens | None:
    """What one call of a model has used, as Qwen Code tells it beside a message; None where nothing is told."""
    match update:
        case {"_meta": {"usage": {} as usage}}:
            return _tokens(usage)
    return None


def _of_model(told: Mapping[str, Any]) -> Tokens:
    counts = told.get("token_count")
    counts = counts if isinstance(counts, dict) else {}
    given, made = (_count(counts, name) for name in ("input_tokens", "output_tokens"))
    return Tokens(model=str(told.get("model") or "")[:200], input=given, output=made)


def _tokens(usage: Mapping[str, Any]) -> Tokens:
    """Of the protocol's Usage; whether its parts are in the whole, agents see in two ways, and the total tells."""
    fields = ("inputTokens", "outputTokens", "cachedReadTokens", "cachedWriteTokens", "thoughtTokens")
    given, made, read, written, thought = (_count(usage, name) for name in fields)
    beside = _count(usage, "totalTokens") - given - made
    if read + written and beside in (read + written, read + written + thought):
        given += read + written
        beside -= read + written
    if thought and beside == thought:
        made += thought
    return Tokens(input=given, cache_read=read, cache_write=written, output=made, thought=thought)


def _count(counts: Mapping[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _model_of(payload: Mapping[str, Any]) -> str:
    """The model that is in use: its id, or where that is no name, what people call it."""
    match payload.get("models"):
        case {"currentModelId": str(model_id), "availableModels": [*models]}:
            names = {one.get("modelId"): one.get("name") for one in models if isinstance(one, dict)}
            return model_id if _PLAIN.fullmatch(model_id) else str(names.get(model_id) or "")[:200]
    for option in payload.get("configOptions") or ():
        match option:
            case {"category": "model", "currentValue": str(model_id)} if _PLAIN.fullmatch(model_id):
                return model_id
    return ""


def _values(options: Any) -> list[str]:
    found: list[str] = []
    for option in options:
        found += _values(option.options) if hasattr(option, "options") else [option.value]
    return found


def _old_models(payload: Mapping[str, Any]) -> list[str]:
    match payload.get("models"):
        case {"availableModels": list(models)}:
            return [str(model["modelId"]) for model in models if isinstance(model, dict) and "modelId" in model]
    return []
