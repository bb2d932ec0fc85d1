"""`kapell agent spawn`, `drain` and `resume`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.errors import Done, Exit, Refusal
from kapell.cli.output import note, write_changed
from kapell.cli.shape import command
from kapell.cli.times import DURATION
from kapell.cli.views import AGENTS, PROFILES

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.agent_pb2 import Agent, AgentProfile, AgentSpec


def _complete_profile(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    from kapell.cli.completing import profile_items

    return profile_items(ctx, incomplete)


@command(
    "spawn",
    "Start an agent from a profile or a command; the command is run once for each task.",
    examples="""
        kapell agent spawn shell --cwd "$PWD"
        kapell agent spawn shell --name builder --label team=web
        kapell agent spawn --type greet --command 'echo "Hello, {prompt}!"'
        kapell agent spawn --type review --slots 2 --command 'codex exec {prompt}' --cwd /srv/shop
    """,
)
@click.argument("profile", required=False, metavar="[PROFILE]", shell_complete=_complete_profile)
@click.option(
    "--command",
    "program",
    metavar="COMMAND",
    help="Program and arguments, no shell; {prompt}, {input.name} … are filled in.",
)
@click.option(
    "-t",
    "--type",
    "agent_types",
    multiple=True,
    metavar="TYPE",
    help="Which tasks it takes, with --command; may be repeated.",
)
@click.option("--slots", type=click.IntRange(1, 256), metavar="N", help="Tasks at a time, with --command. [default: 1]")
@click.option("--cwd", metavar="DIRECTORY", help="Where the command runs. [default: a fresh directory each time]")
@click.option("--env", multiple=True, metavar="KEY=VALUE", help="More environment for the command; may be repeated.")
@click.option("--stdin", metavar="TEXT", help="What the command reads on standard input; {prompt} … are filled in.")
@click.option("--result", type=click.Choice(["text", "json", "file"]), help="What becomes the result. [default: text]")
@click.option("--name", default="", metavar="TEXT", help="A name for people.")
@click.option("--id", "agent_id", default="", metavar="AGENT_ID", help="An id of your choice, agent_….")
@options.labels("A label; may be repeated.")
@click.option(
    "--wait",
    type=DURATION,
    default=10.0,
    metavar="DURATION",
    help="Until it is active, at most this long; 0 does not wait. [default: 10s]",
)
@options.dry_run
@options.output
@click.pass_obj
def spawn(
    app: App,
    /,
    profile: str | None,
    name: str,
    agent_id: str,
    labels: dict[str, str],
    wait: float,
    dry_run: bool,
    **command_options: Any,
) -> None:
    spec = _spec(profile, **command_options)
    if profile and command_options["cwd"]:
        spec = app.run(lambda client: _moved(client, profile, command_options["cwd"]))
    if dry_run:
        return _show_only(app, profile, spec)
    agent = app.run(
        lambda client: client.agents.spawn(
            "" if spec else profile or "",
            spec=spec,
            agent_id=agent_id,
            display_name=name,
            labels=labels,
            wait=wait or None,
        )
    )
    write_changed([agent], AGENTS, app.terminal, app.output)
    if _has_failed(agent):
        note(app.terminal.err(f"Its log: kapell agent logs {agent.agent_id}", "dim"))
        raise Done(Exit.FAILURE)
    return None


def _has_failed(agent: Agent) -> bool:
    from kapell.v1.agent_pb2 import AGENT_STATE_FAILED

    return agent.state == AGENT_STATE_FAILED


def _spec(
    profile: str | None,
    *,
    program: str | None,
    agent_types: tuple[str, ...],
    slots: int | None,
    cwd: str | None,
    env: tuple[str, ...],
    stdin: str | None,
    result: str | None,
) -> AgentSpec | None:
    """The inline spec that was asked for; None for a profile."""
    if (profile is None) == (program is None):
        raise click.UsageError("Name a profile, or give --command (and --type); one of the two.")
    if program is None:
        if agent_types or slots or env or stdin or result:
            raise click.UsageError("--type, --slots, --env, --stdin and --result go with --command only.")
        return None
    if not agent_types:
        raise click.UsageError("--command needs --type: which tasks the agent takes.")
    from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime, ResultFormat

    command = CommandRuntime(
        argv=_argv(program),
        stdin=stdin or "",
        env=options.pairs(env, "--env"),
        working_directory=_directory(cwd) if cwd else "",
        result_format=ResultFormat.Value(f"RESULT_FORMAT_{result.upper()}" if result else "RESULT_FORMAT_UNSPECIFIED"),
    )
    return AgentSpec(agent_types=agent_types, slots=slots or 0, command=command)


async def _moved(client: Client, profile: str, cwd: str) -> AgentSpec:
    """What the profile makes, at work in another directory."""
    from kapell.rules.programs import program_of

    spec = (await _profile(client, profile)).spec
    program = program_of(spec)
    if program is None:
        raise click.UsageError(
            f"--cwd is for profiles that run a program; {profile} runs {spec.WhichOneof('runtime')}."
        )
    program.working_directory = _directory(cwd)
    return spec


def _directory(cwd: str) -> str:
    from pathlib import Path

    return str(Path(cwd).expanduser().absolute())


def _argv(program: str) -> list[str]:
    try:
        argv = shlex.split(program)
    except ValueError as error:
        raise click.BadParameter(f"{program!r}: {str(error).lower()}", param_hint="--command") from None
    if not argv:
        raise click.BadParameter("names no program", param_hint="--command")
    return argv


def _show_only(app: App, /, profile: str | None, spec: AgentSpec | None) -> None:
    """The dry run: what an agent would be made of."""
    from kapell.v1.agent_pb2 import AgentProfile

    found = AgentProfile(profile=profile or "-", spec=spec) if spec else app.run(lambda c: _profile(c, profile or ""))
    note("Dry run: would spawn an agent made of this. Nothing was changed.")
    write_changed([found], PROFILES, app.terminal, app.output)


async def _profile(client: Client, name: str) -> AgentProfile:
    profiles = (await client.agents.profiles()).profiles
    for profile in profiles:
        if profile.profile == name:
            return profile
    known = ", ".join(profile.profile for profile in profiles)
    raise Refusal(
        f"there is no profile {name!r}",
        why=f"the server knows: {known}",
        next="kapell profile list",
        exit=Exit.NOT_FOUND,
    )


def _one_verb(app: App, /, verb: str, agent_ids: tuple[str, ...], dry_run: bool) -> None:
    """Drains or resumes all of them, or shows which they are."""
    if dry_run:
        outcome = app.run(lambda client: bulk.each(agent_ids, client.agents.get))
        note(f"Dry run: would {verb} {len(outcome.answers)} agents. Nothing was changed.")
    else:
        outcome = app.run(lambda client: bulk.each(agent_ids, getattr(client.agents, verb)))
    write_changed(outcome.answers, AGENTS, app.terminal, app.output)
    outcome.finish(app.terminal)


@command(
    "drain",
    "Let agents finish what they have and take nothing new.",
    examples="""
        kapell agent drain agent_01kabc
        kapell agent list --label team=web -o id | kapell agent drain -
    """,
)
@options.agent_ids()
@options.dry_run
@options.output
@click.pass_obj
def drain(app: App, /, agent_ids: tuple[str, ...], dry_run: bool) -> None:
    _one_verb(app, "drain", agent_ids, dry_run)


@command(
    "resume",
    "Let draining agents take tasks again.",
    examples="kapell agent resume agent_01kabc",
)
@options.agent_ids()
@options.dry_run
@options.output
@click.pass_obj
def resume(app: App, /, agent_ids: tuple[str, ...], dry_run: bool) -> None:
    _one_verb(app, "resume", agent_ids, dry_run)
