"""The entry of the `kapell` command: parses, runs, and turns every failure into lines and an exit code.

Imports click and nothing heavier: `--version`, `--help` and completion must be there at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
from click.exceptions import NoArgsIsHelpError

from kapell._version import __version__
from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.errors import Done, Exit, Refusal, refusal_of, report
from kapell.cli.fields import said_as
from kapell.cli.shape import Group
from kapell.cli.terminal import detect
from kapell.cli.tree import TREE

_COMPLETE = "_KAPELL_COMPLETE"
"""The variable by which a shell asks for completions."""


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"kapell {__version__}")
        ctx.exit()


def root() -> click.Group:
    """The command `kapell`."""
    group: click.Group = options.server(Group("kapell", TREE, callback=lambda: None))
    group.params.reverse()
    group.params.append(
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the version and exit.",
        )
    )
    return group


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with a code of `Exit`."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: Sequence[str]) -> int:
    """Runs the command line and returns the exit code. Nothing but a defect with --debug raises."""
    _open_closed_streams()
    app = App(terminal=detect())
    try:
        if instruction := os.environ.get(_COMPLETE):
            return _complete(instruction)
        _invoke(list(args), app)
        sys.stdout.flush()
    except NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return Exit.USAGE
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except KeyboardInterrupt:
        return _interrupted(app)
    except Exception as error:
        return _failed(app, error)
    return Exit.DONE


def _open_closed_streams() -> None:
    """Standard streams that the caller has closed, as `>&-` does, become empty ones: Python leaves them None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123


def _invoke(args: list[str], app: App) -> None:
    """Parses and runs. Not by click's `main`, which has its own mind about Ctrl-C and closed pipes."""
    group = root()
    with group.make_context("kapell", args, obj=app) as context:
        group.invoke(context)


def _complete(instruction: str) -> int:
    """Answers a shell that asks for completions."""
    from click.shell_completion import shell_complete

    return shell_complete(root(), {}, "kapell", _COMPLETE, instruction)


def _interrupted(app: App) -> int:
    sys.stderr.write("\n")
    if app.reattach:
        sys.stderr.write(app.terminal.err(app.reattach, "dim") + "\n")
    return Exit.INTERRUPTED


def _reader_left() -> int:
    """The reader of our stdout went away, as `| head` does: no error, and nothing more to say."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Exit.DONE


def _failed(app: App, error: Exception) -> int:
    """Says what went wrong and gives the exit code for it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    match error:
        case Done():
            return error.exit
        case BrokenPipeError():
            return _reader_left()
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "kapell"
            refusal = Refusal(error.format_message().rstrip("."), next=f"{path} --help", exit=Exit.USAGE)
        case click.ClickException():
            refusal = Refusal(error.format_message(), exit=Exit.USAGE)
        case _:
            if app.debug and not isinstance(error, Refusal):
                raise error
            refusal = refusal_of(error, said_as(app.params), app.path)
            refusal.next = "   ".join(part for part in (app.hint, refusal.next) if part)
    report(refusal, app.terminal)
    return refusal.exit


if __name__ == "__main__":
    main()
