"""What may have been meant by a name that the server does not know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kapell import Client
    from kapell.errors import KapellError

_MOST = 2_000


async def near_name(client: Client, error: KapellError) -> str:
    """As in "did you mean code-review?"; empty where nothing is near, or the server cannot tell."""
    from kapell.errors import KapellError

    try:
        match error.reason:
            case "TEMPLATE_NOT_FOUND" if "version" not in error.metadata:
                wanted = error.metadata.get("template_id", "").partition("@")[0]
                known = [template.template_id async for template in client.templates.iterate()]
            case "SCHEDULE_NOT_FOUND":
                wanted = error.metadata.get("schedule_id", "")
                known = [schedule.schedule_id async for schedule in client.schedules.iterate()]
            case "PROFILE_NOT_FOUND":
                wanted = error.metadata.get("profile", "")
                known = [profile.profile for profile in (await client.agents.profiles()).profiles]
            case _:
                return ""
    except KapellError:
        return ""
    return did_you_mean(wanted, known)


async def near_type(client: Client, agent_type: str) -> str:
    """The agent type that may have been meant, of those that live agents and profiles serve."""
    page = await client.agents.list(states=["pending", "starting", "active", "draining"], page_size=1000)
    served = {known for agent in page.agents for known in agent.agent_types}
    served |= {known for profile in (await client.agents.profiles()).profiles for known in profile.spec.agent_types}
    return did_you_mean(agent_type, served)


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a question; empty where none is near."""
    close = difflib.get_close_matches(wanted, list(known)[:_MOST], n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close and close[0] != wanted else ""
