"""`kapell lock guard`: refuses changes of files whose locks are not held. Whatever goes wrong is a refusal, too."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.errors import Exit, Refusal, refusal_of
from kapell.cli.output import note, write
from kapell.cli.shape import command
from kapell.cli.terminal import visible
from kapell.cli.times import DURATION

if TYPE_CHECKING:
    from kapell import Client
    from kapell._guard.calls import ToolCall
    from kapell._guard.fences import Missing
    from kapell._guard.workspace import Workspace
    from kapell._locks.environment import KnownLock

_T = TypeVar("_T")
_LISTED = 10
_SHELL_RULES = ("locked", "whole", "allow", "deny")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the options say."""

    root: str | None
    prefix: str | None
    outside: str
    shell: str
    harmless: tuple[str, ...]
    timeout: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why something is refused: a line for each path, who is in the way, and the command that may help."""

    lines: list[str]
    why: str
    next: str


@command(
    "guard",
    "Refuse changes of files whose locks are not held, as a hook of git, Claude Code or Codex.",
    examples="""
        kapell lock guard --install                    # a pre-commit hook for this repository
        kapell lock guard --git                        # what the hook runs: checks what is staged
        kapell lock guard src/a.py docs                # may these be changed?
        kapell lock guard --prefix web --shell deny    # the tool call comes by standard input
    """,
    epilog="Without paths, --git and --install it reads the tool call of a pre-tool hook from standard input and "
    "answers in JSON. The locks are those of KAPELL_LOCKS, which agents of Kapell and `kapell lock run` set; each is "
    "checked at the server. No locks, no server or input that cannot be read: refused.",
)
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())
@click.option("--git", "is_git", is_flag=True, help="Check the paths that are staged for a commit.")
@click.option("--install", is_flag=True, help="Write the pre-commit hook; one that is there runs after it.")
@click.option("--root", metavar="DIRECTORY", help="The workspace. [default: the git repository of the directory]")
@click.option("--prefix", metavar="PATH", help="Its lock path. [env KAPELL_LOCK_PREFIX; default: its name]")
@click.option(
    "--outside",
    type=click.Choice(("deny", "allow")),
    default="deny",
    help="Files that are not in the workspace. [default: deny]",
)
@click.option(
    "--shell",
    type=click.Choice(_SHELL_RULES),
    default="locked",
    metavar="RULE",
    help="Command lines, which may change anything: allow, deny, locked (while all of our locks are in force), "
    "whole (only under a lock of the whole workspace). [default: locked]",
)
@click.option(
    "--allow-tool",
    "harmless",
    multiple=True,
    metavar="PATTERN",
    help="A tool that changes no files, as in mcp__search__*; may be repeated.",
)
@click.option("--timeout", type=DURATION, default=5.0, help="How long the server may take. [default: 5s]")
@options.yes
@options.dry_run
@options.server
@click.pass_obj
def guard(
    app: App,
    /,
    paths: tuple[str, ...],
    is_git: bool,
    install: bool,
    root: str | None,
    prefix: str | None,
    outside: str,
    shell: str,
    harmless: tuple[str, ...],
    timeout: float,
    yes: bool,
    dry_run: bool,
) -> None:
    prefix = prefix or os.environ.get("KAPELL_LOCK_PREFIX")
    rules = Rules(root=root, prefix=prefix, outside=outside, shell=shell, harmless=harmless, timeout=timeout)
    if (bool(paths), is_git, install).count(True) > 1:
        raise click.UsageError("Paths, --git and --install: one of them.")
    if install:
        _install(app, rules, yes=yes, dry_run=dry_run)
    elif is_git or paths:
        _check_files(app, rules, paths)
    elif sys.stdin.isatty():
        raise click.UsageError("Nothing to check: name paths, or say --git; a tool call comes by standard input.")
    else:
        _answer_hook(app, rules)


def _answer_hook(app: App, rules: Rules) -> None:
    """Says in JSON why a tool call is refused; says nothing where it may go on."""
    from kapell._guard.calls import Malformed, denial, parse

    try:
        reason = _judge(app, rules, parse(_standard_input()))
    except Malformed as error:
        reason = f"the tool call cannot be checked: {error}"
    except Refusal as error:
        reason = _in_words(error)
    except Exception as error:
        reason = f"the locks cannot be checked: {_in_words(error)}"
    if reason:
        write(denial(f"kapell refuses this change: {reason}"))


def _judge(app: App, rules: Rules, call: ToolCall) -> str:
    """Why the call is refused; empty where it may go on. Raises Refusal, too."""
    from kapell._guard.calls import effect

    found = effect(call, harmless=rules.harmless)
    if found.is_unknown:
        return f"the tool {call.tool} may change any file. If it changes none, the guard can be told by --allow-tool"
    if found.is_shell and rules.shell == "deny":
        return "command lines are not allowed here; change files by the tools for that"
    if not found.files and not (found.is_shell and rules.shell != "allow"):
        return ""
    space = _workspace(rules, call.cwd)
    needed = _needed(space, rules, found.files, call.cwd)
    if found.is_shell and rules.shell == "whole":
        needed[space.prefix] = "a command line"
    verdict = _verdict(app, rules, needed, all_ours=found.is_shell and rules.shell == "locked")
    return "" if verdict is None else f"{'; '.join(verdict.lines)}. {verdict.why} To get it: {verdict.next}"


def _check_files(app: App, rules: Rules, files: tuple[str, ...]) -> None:
    """Raises Refusal where one of the files, or of what is staged, may not be changed."""
    from kapell._guard import staged

    cwd = rules.root or "."
    if files:
        space = _workspace(rules, os.getcwd())  # noqa: PTH109
        needed = _needed(space, rules, files, os.getcwd())  # noqa: PTH109
    else:
        top = _asking_git(staged.top, cwd)
        space = _workspace(rules, top, root=top)
        needed = {space.lock_path_of(path): path for path in _asking_git(staged.staged, top)}
    verdict = _verdict(app, rules, needed)
    if verdict is not None:
        for line in verdict.lines:
            note(visible(line))
        what = "this change is refused" if files else "this commit is refused"
        raise Refusal(what, why=verdict.why, next=verdict.next, exit=Exit.CONFLICT)


def _install(app: App, rules: Rules, *, yes: bool, dry_run: bool) -> None:
    from kapell._guard import staged

    hook = _asking_git(staged.plan, rules.root or ".")
    said = [*(["--prefix", rules.prefix] if rules.prefix else [])]
    if rules.timeout != 5.0:
        said += ["--timeout", f"{rules.timeout:g}s"]
    if dry_run:
        note(f"Dry run: would write {hook.file}. Nothing was changed.")
        write(staged.script(said).rstrip("\n"))
        return
    if hook.is_shared:
        lines = [f"{hook.file} is outside of this repository: others use it, too"]
        options.confirm(app, "Write it nevertheless", lines, yes=yes)
    staged.install(hook, said)
    write(f"Wrote {hook.file}.")
    if hook.keeps:
        note(f"The hook that was there is now {staged.KEPT} and runs after it.")


def _workspace(rules: Rules, cwd: str, *, root: str | None = None) -> Workspace:
    from kapell._guard.workspace import NoWorkspace, find

    try:
        return find(root=root or rules.root, prefix=rules.prefix, cwd=cwd)
    except NoWorkspace as error:
        raise Refusal(str(error), exit=Exit.USAGE) from None


def _needed(space: Workspace, rules: Rules, files: tuple[str, ...], cwd: str) -> dict[str, str]:
    """The lock paths that changes of the files need, and the file for each. Raises Refusal."""
    from kapell._guard.workspace import Outside

    needed: dict[str, str] = {}
    for file in files:
        try:
            needed |= dict.fromkeys(space.lock_paths(file, cwd), file)
        except Outside as error:
            if rules.outside == "deny":
                raise Refusal(f"{error}, and no lock protects it", exit=Exit.CONFLICT) from None
    return needed


def _verdict(app: App, rules: Rules, needed: dict[str, str], *, all_ours: bool = False) -> Verdict | None:
    """Why the paths may not be touched; None where they may. Raises Refusal where nobody knows.

    With `all_ours` every lock that we believe to have must be in force, and there must be one.
    """
    if not needed and not all_ours:
        return None
    ours = _our_locks()
    if not ours:
        wanted = next(iter(needed), rules.prefix or "PATH")
        return Verdict(
            lines=["KAPELL_LOCKS names no lock, so nothing may be changed"],
            why="A task gets the locks that it declares.",
            next=f"kapell lock run {shlex.quote(wanted)} -- COMMAND",
        )

    async def work(client: Client) -> Verdict | None:
        import asyncio

        from kapell._guard import fences

        async with asyncio.timeout(rules.timeout):
            found = await fences.missing(client.locks, needed, ours)
            if all_ours and not found:
                found = await fences.stale(client.locks, ours)
            return await _told(client, found, needed, ours) if found else None

    try:
        return app.run(work)
    except TimeoutError:
        raise Refusal(
            f"the server did not say within {rules.timeout:g} s whether the locks are in force",
            exit=Exit.UNREACHABLE,
        ) from None


async def _told(client: Client, found: list[Missing], needed: dict[str, str], ours: list[KnownLock]) -> Verdict:
    """The refusal in words: each path, who holds what touches the first of them, and what to do."""
    from kapell._guard.fences import in_the_way
    from kapell.cli.lock_views import lock_words

    lines = [f"{needed.get(one.path, 'a command line')} (lock {one.path}): {one.why}" for one in found[:_LISTED]]
    if len(found) > _LISTED:
        lines.append(f"and {len(found) - _LISTED} more paths")
    held = "; ".join(lock_words(lock) for lock in await in_the_way(client.locks, found[0].path, ours))
    return Verdict(
        lines=lines,
        why=f"It is held: {held}." if held else "Nobody else holds it.",
        next=f"kapell lock run {shlex.quote(found[0].path)} -- COMMAND",
    )


def _our_locks() -> list[KnownLock]:
    from kapell._locks.environment import VARIABLE, parse

    try:
        return parse(os.environ.get(VARIABLE) or "[]")
    except ValueError as error:
        raise Refusal(str(error), exit=Exit.USAGE) from None


def _standard_input() -> str:
    from kapell._guard.calls import Malformed

    try:
        return sys.stdin.read()
    except ValueError as error:
        raise Malformed(f"standard input is no text: {error}") from None


def _in_words(error: Exception) -> str:
    refusal = refusal_of(error)
    return " - ".join(part for part in (refusal.what, refusal.why, refusal.next) if part)


def _asking_git(ask: Callable[[str], _T], directory: str) -> _T:
    from kapell._guard.staged import GitFailed

    try:
        return ask(directory)
    except GitFailed as error:
        raise Refusal(str(error), exit=Exit.USAGE) from None
