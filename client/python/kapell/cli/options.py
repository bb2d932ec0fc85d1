"""Options and arguments that many commands share, each declared once."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kapell.cli.errors import Exit, Refusal
from kapell.cli.output import FORMATS
from kapell.cli.shape import CommonOption

if TYPE_CHECKING:
    from kapell.cli.app import App

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


_SCHEDULE = "schedule_"


def _set(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that stores an option's value in the App, unless it was left out."""

    def store(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value is not None and value is not False and ctx.obj is not None:
            setattr(ctx.obj, attribute, value)

    return store


_ADDRESS = click.option(
    "--address",
    cls=CommonOption,
    metavar="HOST:PORT",
    expose_value=False,
    callback=_set("address"),
    help="The server. [env KAPELL_ADDRESS; default: the one that runs here]",
)
_DATA_DIR = click.option(
    "--data-dir",
    cls=CommonOption,
    metavar="DIRECTORY",
    expose_value=False,
    callback=_set("data_dir"),
    help="Where the local server keeps its token. [env KAPELL_DATA_DIR]",
)
_TLS = [
    click.option(
        f"--{name}", cls=CommonOption, metavar=metavar, expose_value=False, callback=_set(attribute), help=help
    )
    for name, metavar, attribute, help in (
        ("tls-ca", "FILE|system", "tls_ca", "Encrypt; who has signed the server's certificate. [env KAPELL_TLS_CA]"),
        ("tls-cert", "FILE", "tls_cert", "A certificate to show the server. [env KAPELL_TLS_CLIENT_CERT]"),
        ("tls-key", "FILE", "tls_key", "Its key. [env KAPELL_TLS_CLIENT_KEY]"),
    )
]
_DEBUG = click.option(
    "--debug", cls=CommonOption, is_flag=True, expose_value=False, callback=_set("debug"), help="Show tracebacks."
)


def server(function: _F) -> _F:
    """--address, --data-dir, --tls-…, --debug."""
    function = _DEBUG(function)
    for option in reversed(_TLS):
        function = option(function)
    return _ADDRESS(_DATA_DIR(function))


def output(function: _F) -> _F:
    """-o, and what `server` adds."""
    option = click.option(
        "-o",
        "--output",
        cls=CommonOption,
        type=click.Choice(FORMATS),
        expose_value=False,
        callback=_set("output"),
        metavar="FORMAT",
        help="table, wide, json, jsonl, yaml or id.",
    )
    return option(server(function))


def dry_run(function: _F) -> _F:
    """--dry-run."""
    return click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")(function)


def yes(function: _F) -> _F:
    """--yes."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(function)


def labels(help: str) -> Callable[[_F], _F]:
    """--label KEY=VALUE, as often as wanted; the command gets a dict."""
    return click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", callback=_pairs, help=help)


def _pairs(_ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    return pairs(values, param.opts[-1])


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """The values of a repeated KEY=VALUE option as a dict; BadParameter for one without a value."""
    found = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{value!r} has no value; write KEY=VALUE", param_hint=option)
        found[key] = text
    return found


def limit(function: _F) -> _F:
    """--limit."""
    return click.option(
        "-n", "--limit", type=click.IntRange(1), default=50, metavar="N", help="How many at most. [default: 50]"
    )(function)


async def take(items: AsyncIterator[_T], count: int) -> list[_T]:
    """The first `count` items."""
    taken: list[_T] = []
    async for item in items:
        taken.append(item)
        if len(taken) >= count:
            break
    return taken


def say_more(app: App, what: str, *, shown: int, found: int) -> None:
    """Says on a terminal that a list was cut."""
    if found > shown and app.terminal.is_tty and app.is_table:
        hint = f"The first {shown} {what}; there are more: --limit {shown * 4}"
        click.echo(app.terminal.err(hint, "dim"), err=True)


def watch_start(function: _F) -> _F:
    """--initial and --after."""
    initial = click.option("--initial", is_flag=True, help="First everything that matches, as it is now.")
    after = click.option("--after", type=click.IntRange(0), metavar="REVISION", help="Everything after this revision.")
    return initial(after(function))


def say_link(app: App) -> Callable[[bool], None]:
    """Says on stderr when the server of a watch is away, and when it is back."""

    def said(is_there: bool) -> None:
        text = "The server is back; nothing was missed." if is_there else "The server is away; waiting for it."
        click.echo(app.terminal.err(text, "dim" if is_there else "yellow"), err=True)

    return said


def reattach(command: str, revision: int | None) -> str:
    """What to say when a watch was stopped: the command that goes on where it was."""
    return f"Go on from here with: {command} --after {revision}" if revision else ""


def task_ids(*, required: bool = True) -> Callable[[_F], _F]:
    """One or more task ids; `-` reads them from stdin."""
    return _ids("task_ids", "TASK_ID", complete_tasks, required)


def agent_ids(*, required: bool = True) -> Callable[[_F], _F]:
    """One or more agent ids; `-` reads them from stdin."""
    return _ids("agent_ids", "AGENT_ID", _complete_agents, required)


def task_id(function: _F) -> _F:
    """One task id."""
    return click.argument("task_id", metavar="TASK_ID", shell_complete=complete_tasks)(function)


def template(function: _F) -> _F:
    """A template, and which version of it."""
    return click.argument("template", metavar="TEMPLATE", shell_complete=_complete_templates)(function)


def template_id(function: _F) -> _F:
    """One template id."""
    return click.argument("template_id", metavar="TEMPLATE_ID", shell_complete=_complete_templates)(function)


def template_ids(function: _F) -> _F:
    """One or more template ids; `-` reads them from stdin."""
    return _ids("template_ids", "TEMPLATE_ID", _complete_templates, True)(function)


def full_schedule_id(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """The id of "nightly" is schedule_nightly; an id stays as it is."""
    return value if value is None or value.startswith(_SCHEDULE) else _SCHEDULE + value


def full_schedule_ids(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Each of them as `full_schedule_id`."""
    return tuple(full_schedule_id(ctx, param, value) or "" for value in values)


def schedule_id(function: _F) -> _F:
    """One schedule, with or without the "schedule_" of its id."""
    argument = click.argument(
        "schedule_id", metavar="SCHEDULE", callback=full_schedule_id, shell_complete=_complete_schedules
    )
    return argument(function)


def schedule_ids(function: _F) -> _F:
    """One or more schedules; `-` reads them from stdin."""

    def full(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
        return full_schedule_ids(ctx, param, with_stdin(ctx, param, values))

    argument = click.argument(
        "schedule_ids",
        nargs=-1,
        required=True,
        metavar="SCHEDULE...",
        callback=full,
        shell_complete=_complete_schedules,
    )
    return argument(function)


def template_files(function: _F) -> _F:
    """-f, as often as wanted."""
    option = click.option(
        "-f", "--file", "files", multiple=True, required=True, metavar="FILE", help="A YAML file; - is stdin."
    )
    return option(function)


def texts(files: Sequence[str]) -> list[tuple[str, str]]:
    """Name and text of each file; `-` is stdin."""
    return [("stdin" if name == "-" else name, text_of(name, "--file")) for name in files]


def text_of(file: str, option: str) -> str:
    """The text of a local file, or of stdin for `-`. Raises BadParameter of the option where it cannot be read."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        text = f"{file}: {(error.strerror or str(error)).lower()}"
        raise click.BadParameter(text, param_hint=option) from None
    except UnicodeDecodeError:
        raise click.BadParameter(f"{file} is not text in UTF-8", param_hint=option) from None


def queue(*, required: bool) -> Callable[[_F], _F]:
    """The agent type of a queue; None where it may be left out and was."""
    shown = "TYPE" if required else "[TYPE]"
    return click.argument("agent_type", required=required, metavar=shown, shell_complete=_complete_queues)


def queues(function: _F) -> _F:
    """Any number of agent types."""
    return click.argument("agent_types", nargs=-1, metavar="[TYPE]...", shell_complete=_complete_queues)(function)


def limit_key(function: _F) -> _F:
    """One concurrency key."""
    return click.argument("key", metavar="KEY", shell_complete=_complete_limits)(function)


def limit_keys(function: _F) -> _F:
    """One or more concurrency keys; `-` reads them from stdin."""
    return _ids("keys", "KEY", _complete_limits, True)(function)


def lock_paths(function: _F) -> _F:
    """One or more paths to lock."""
    return click.argument("paths", nargs=-1, required=True, metavar="PATH...")(function)


def lock_ids(function: _F) -> _F:
    """One or more lock ids; `-` reads them from stdin."""
    return _ids("lock_ids", "LOCK_ID", complete_locks, True)(function)


def secret_names(function: _F) -> _F:
    """One or more names of secrets; `-` reads them from stdin."""
    return _ids("names", "NAME", None, True)(function)


def secrets(function: _F) -> _F:
    """--secret NAME or VARIABLE=NAME, as a mapping; None where there is none."""

    def collected(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str] | None:
        found = {}
        for value in values:
            under, equals, name = value.partition("=")
            found[under if equals else _VARIABLE.sub("_", value).upper()] = name if equals else value
        return found or None

    return click.option(
        "--secret",
        "secrets",
        multiple=True,
        metavar="[VARIABLE=]NAME",
        callback=collected,
        help="A secret that its agent is given, see `kapell secret`; may be repeated.",
    )(function)


_VARIABLE = re.compile(r"[^A-Za-z0-9_]")


def token_ids(function: _F) -> _F:
    """One or more token ids; `-` reads them from stdin."""
    return _ids("token_ids", "TOKEN_ID", None, True)(function)


def artifact_id(function: _F) -> _F:
    """One artifact id."""
    return click.argument("artifact_id", metavar="ARTIFACT_ID")(function)


def artifact_ids(function: _F) -> _F:
    """One or more artifact ids; `-` reads them from stdin."""
    return _ids("artifact_ids", "ARTIFACT_ID", None, True)(function)


def approval_id(function: _F) -> _F:
    """One approval id."""
    return click.argument("approval_id", metavar="APPROVAL_ID", shell_complete=_complete_approvals)(function)


def approval_ids(function: _F) -> _F:
    """One or more approval ids; `-` reads them from stdin."""
    return _ids("approval_ids", "APPROVAL_ID", _complete_approvals, True)(function)


def agent_id(function: _F) -> _F:
    """One agent id."""
    return click.argument("agent_id", metavar="AGENT_ID", shell_complete=_complete_agents)(function)


def _ids(name: str, metavar: str, complete: Any, required: bool) -> Callable[[_F], _F]:
    shown = f"{metavar}..." if required else f"[{metavar}]..."
    return click.argument(
        name, nargs=-1, required=required, metavar=shown, callback=with_stdin, shell_complete=complete
    )


def with_stdin(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Replaces "-" by the first word of each line of stdin, and drops repeated ids."""
    ids: list[str] = []
    for value in values:
        ids += [line.split()[0] for line in sys.stdin if line.strip()] if value == "-" else [value]
    return tuple(dict.fromkeys(ids))


def complete_tasks(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Ids of tasks that begin so."""
    from kapell.cli.completing import task_items

    return task_items(ctx, incomplete)


def _complete_agents(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    from kapell.cli.completing import agent_items

    return agent_items(ctx, incomplete)


def _complete_templates(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    from kapell.cli.completing import template_items

    return template_items(ctx, incomplete)


def _complete_queues(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    from kapell.cli.completing import queue_items

    return queue_items(ctx, incomplete)


def _complete_limits(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    from kapell.cli.completing import limit_items

    return limit_items(ctx, incomplete)


def complete_locks(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    from kapell.cli.completing import lock_items

    return lock_items(ctx, incomplete)


def _complete_approvals(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    from kapell.cli.completing import approval_items

    return approval_items(ctx, incomplete)


def _complete_schedules(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    from kapell.cli.completing import schedule_items

    return schedule_items(ctx, incomplete)


def input_data(entries: Sequence[str], document: str | None) -> dict[str, Any] | None:
    """The task's input from `--input KEY=VALUE` (a value that is JSON counts as such) and `--input-json`."""
    if not entries and document is None:
        return None
    data: dict[str, Any] = {}
    if document is not None:
        data = _json_object(sys.stdin.read() if document == "-" else document)
    return data | {key: _json_or_text(text) for key, text in pairs(entries, "--input").items()}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--input-json") from None
    if not isinstance(value, dict):
        raise click.BadParameter("must be a JSON object, as in '{\"files\": 3}'", param_hint="--input-json")
    return value


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def confirm(app: App, question: str, preview: Sequence[str], *, yes: bool, typed: str = "") -> None:
    """Asks before something is lost, on stderr, unless `--yes` was given.

    With `typed` (a count or a name) that text must be typed, not just y. Never asks on a pipe:
    raises Refusal with exit code 2 there, and with 1 when the answer is no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Refusal(
            f"{question} needs a yes, and there is no terminal to ask on",
            next="say it beforehand with --yes, or look first with --dry-run",
            exit=Exit.USAGE,
        )
    for line in preview[:10]:
        click.echo(f"  {line}", err=True)
    if len(preview) > 10:
        click.echo(f"  … and {len(preview) - 10} more", err=True)
    wanted = typed or "y"
    prompt = f"{question}? Type {typed} to go on: " if typed else f"{question}? [y/N] "
    click.echo(app.terminal.err(prompt, "bold"), err=True, nl=False)
    answer = sys.stdin.readline().strip()
    if answer.lower() not in ({wanted.lower(), "yes"} if not typed else {wanted.lower()}):
        raise Refusal("nothing was changed", why=f"the answer was not {wanted!r}")
