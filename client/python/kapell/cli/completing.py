"""Live ids for the shell's completion: what the server knows within a moment, or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from kapell.cli.app import App
from kapell.cli.terminal import detect, visible

if TYPE_CHECKING:
    from kapell import Client

_PATIENCE = 1.0
_MOST = 100


def task_items(_ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The newest tasks whose ids begin with what was typed; their state and name as help."""
    from kapell.cli.states import task_look

    async def tasks(client: Client) -> list[CompletionItem]:
        page = await client.tasks.list(page_size=_MOST)
        return [
            CompletionItem(task.task_id, help=visible(f"{task_look(task.state).word} {task.display_name}"[:60]))
            for task in page.tasks
            if task.task_id.startswith(incomplete)
        ]

    return _quietly(tasks)


def agent_items(_ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The newest agents whose ids begin with what was typed; their state and name as help."""
    from kapell.cli.states import agent_look

    async def agents(client: Client) -> list[CompletionItem]:
        page = await client.agents.list(page_size=_MOST)
        return [
            CompletionItem(agent.agent_id, help=visible(f"{agent_look(agent.state).word} {agent.display_name}"[:60]))
            for agent in page.agents
            if agent.agent_id.startswith(incomplete)
        ]

    return _quietly(agents)


def template_items(_ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The templates whose ids begin with what was typed; their names as help."""

    async def templates(client: Client) -> list[CompletionItem]:
        return [
            CompletionItem(template.template_id, help=visible(template.spec.display_name[:60]))
            for template in (await client.templates.list(page_size=_MOST)).templates
            if template.template_id.startswith(incomplete)
        ]

    return _quietly(templates)


def queue_items(_ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The agent types that have a queue and begin with what was typed; state and depth as help."""
    from kapell.cli.states import queue_look

    async def queues(client: Client) -> list[CompletionItem]:
        return [
            CompletionItem(entry.queue.agent_type, help=f"{queue_look(entry.queue.state).word} {entry.depth} waiting")
            for entry in (await client.queues.stats()).queues
            if entry.queue.agent_type.startswith(incomplete)
        ]

    return _quietly(queues)


def limit_items(_ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The concurrency keys with a limit that begin with what was typed; what they are for as help."""

    async def limits(client: Client) -> list[CompletionItem]:
        return [
            CompletionItem(limit.key, help=visible(limit.description[:60]))
            for limit in (await client.limits.list(page_size=_MOST)).limits
            if limit.key.startswith(incomplete)
        ]

    return _quietly(limits)


def approval_items(_ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The approvals that wait and whose ids begin with what was typed."""

    async def approvals(client: Client) -> list[CompletionItem]:
        return [
            CompletionItem(approval.approval_id, help=visible(approval.title))
            for approval in (await client.approvals.list(page_size=_MOST)).approvals
            if approval.approval_id.startswith(incomplete)
        ]

    return _quietly(approvals)


def schedule_items(_ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The schedules whose names begin with what was typed."""
    from kapell.cli.schedule_views import short_id, when_text

    async def schedules(client: Client) -> list[CompletionItem]:
        return [
            CompletionItem(name, help=visible(when_text(schedule.spec)))
            for schedule in (await client.schedules.list(page_size=_MOST)).schedules
            if (name := short_id(schedule.schedule_id)).startswith(incomplete)
        ]

    return _quietly(schedules)


def lock_items(_ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The locks whose ids begin with what was typed; their paths as help."""

    async def locks(client: Client) -> list[CompletionItem]:
        return [
            CompletionItem(lock.lock_id, help=visible(lock.path[:60]))
            for lock in (await client.locks.list(page_size=_MOST)).locks
            if lock.lock_id.startswith(incomplete)
        ]

    return _quietly(locks)


def profile_items(_ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The profiles whose names begin with what was typed."""

    async def profiles(client: Client) -> list[CompletionItem]:
        return [
            CompletionItem(profile.profile, help=visible(profile.description[:60]))
            for profile in (await client.agents.profiles()).profiles
            if profile.profile.startswith(incomplete)
        ]

    return _quietly(profiles)


def _quietly(ask: Callable[[Client], Awaitable[list[Any]]]) -> list[Any]:
    """What `ask` finds; nothing when the server is slow, away, or refuses: a Tab must never fail loudly."""

    async def soon(client: Client) -> list[Any]:
        return await asyncio.wait_for(ask(client), _PATIENCE)

    try:
        return App(terminal=detect()).run(soon)
    except Exception:
        return []
