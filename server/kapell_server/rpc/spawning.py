"""What an agent is made of: the spec that a caller gives, or that of a profile, perhaps in another directory.

Who moves a program chooses the files it works on, and for many programs what it runs: the configuration, hooks and
scripts of that directory. So the scope that a command of one's own needs is needed for this too, unless
the profile names the directory. Links are followed before that is looked at, and the agent gets the path they lead to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kapell.rules.programs import program_of
from kapell.v1.agent_pb2 import AgentProfile, AgentSpec, SpawnAgentRequest
from kapell.v1.common_pb2 import SCOPE_SPAWN_INLINE
from kapell.v1.error_pb2 import ERROR_REASON_PROFILE_NOT_FOUND, ERROR_REASON_SCOPE_MISSING

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.rpc.auth import check_inline
from kapell_server.rpc.validation import refusal_of


def spec_for(request: SpawnAgentRequest, caller: Caller, profiles: Mapping[str, AgentProfile]) -> AgentSpec:
    """What the agent is to be made of.

    Raises KapellError: PROFILE_NOT_FOUND, SCOPE_MISSING, and REQUEST_INVALID for a profile that cannot be moved.
    """
    if not request.profile:
        check_inline(caller)
        return request.spec
    profile = profiles.get(request.profile)
    if profile is None:
        known = ", ".join(sorted(profiles))
        raise KapellError(
            ERROR_REASON_PROFILE_NOT_FOUND,
            f"There is no profile {request.profile!r}; the configuration has {known}."
            " Use one of them, add it to kapell.toml, or send a spec.",
            metadata={"profile": request.profile, "known": known},
        )
    return _moved(profile, request.working_directory, caller) if request.working_directory else profile.spec


def _moved(profile: AgentProfile, asked: str, caller: Caller) -> AgentSpec:
    """The profile's spec, at work in another directory."""
    spec = AgentSpec()
    spec.CopyFrom(profile.spec)
    program = program_of(spec)
    if program is None or spec.HasField("workspace"):
        runs = f"{profile.profile} runs {spec.WhichOneof('runtime')}"
        why = runs if program is None else f"{profile.profile} has a workspace of its own"
        raise refusal_of((("working_directory", f"it is for profiles that run a program in no workspace; {why}"),))
    program.working_directory = os.path.realpath(asked)
    if SCOPE_SPAWN_INLINE not in caller.scopes:
        _check_place(profile, Path(program.working_directory), caller)
    return spec


def _check_place(profile: AgentProfile, place: Path, caller: Caller) -> None:
    if any(place.is_relative_to(os.path.realpath(allowed)) for allowed in profile.directories):
        return
    named = ", ".join(profile.directories) or "none"
    raise KapellError(
        ERROR_REASON_SCOPE_MISSING,
        f"Profile {profile.profile!r} may not be moved to {place} without the scope `spawn_inline`, which the token of"
        f" {caller.name} does not hold; its `directories` are {named}. Choose a directory below them, have an"
        " administrator add this one to the profile, or use a token that has the scope.",
        metadata={"scope": "spawn_inline", "profile": profile.profile},
    )
