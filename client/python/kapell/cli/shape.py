"""How commands are declared: groups that import a command when it is called, and help that starts with examples."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

_COMMON = "Common options"
_SETTINGS = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Node:
    """One line of the command tree: a command (`target` is "module:attribute"), a group (`children`), or both.

    What is both is the command unless the word behind it is one of the group's.
    """

    help: str
    target: str = ""
    examples: str = ""
    children: Mapping[str, Node] = field(default_factory=dict)
    hidden: bool = False


class CommonOption(click.Option):
    """An option that many commands share; help lists these last."""


class Command(click.Command):
    """A command with examples: lines as a user types them, comments behind a #."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": _SETTINGS, **kwargs})
        self.examples = inspect.cleandoc(examples)

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.obj is not None:
            ctx.obj.params = self.params
            ctx.obj.path = ctx.command_path
        return super().invoke(ctx)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_text(self.help or "")
        _write_lines(formatter, "Examples", self.examples)
        _write_lines(formatter, "Usage", " ".join([ctx.command_path, *self.collect_usage_pieces(ctx)]))
        own = [p for p in self.get_params(ctx) if not isinstance(p, CommonOption)]
        common = [p for p in self.get_params(ctx) if isinstance(p, CommonOption)]
        for title, params in (("Options", own), (_COMMON, common)):
            records = [record for p in params if (record := p.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if self.epilog:
            formatter.write_paragraph()
            formatter.write_text(self.epilog)


def _write_lines(formatter: click.HelpFormatter, title: str, text: str) -> None:
    """A section of lines that are not wrapped."""
    if text:
        with formatter.section(title):
            for line in text.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Group(click.Group):
    """A group whose commands are named by a tree and imported one at a time."""

    def __init__(self, name: str, node: Node, *, examples: str = "", **kwargs: Any) -> None:
        super().__init__(name, help=node.help, no_args_is_help=True, context_settings=_SETTINGS, **kwargs)
        self.node = node
        self.examples = inspect.cleandoc(examples or node.examples)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, node in self.node.children.items() if not node.hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        node = self.node.children.get(cmd_name)
        if node is None:
            return None
        return Group(cmd_name, node) if node.children else _imported(node)

    def _command_of_both(self, args: list[str]) -> click.Command | None:
        """The command that is meant by the first word where it names a group as well; else None."""
        node = self.node.children.get(args[0])
        if node is None or not (node.target and node.children) or (len(args) > 1 and args[1] in node.children):
            return None
        return _imported(node)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if (both := self._command_of_both(args)) is not None:
            return name, both, args[1:]
        if name not in self.node.children and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.node.children, n=1, cutoff=0.5)
            hint = f" Did you mean '{ctx.command_path} {close[0]}'?" if close else ""
            raise click.UsageError(f"'{ctx.command_path}' has no command '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_text(self.help or "")
        _write_lines(formatter, "Examples", self.examples)
        _write_lines(formatter, "Usage", f"{ctx.command_path} COMMAND")
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.node.children[name].help) for name in self.list_commands(ctx)])
        common = [record for p in self.get_params(ctx) if (record := p.get_help_record(ctx)) is not None]
        with formatter.section("Options"):
            formatter.write_dl(common)


def _imported(node: Node) -> click.Command:
    module, _, attribute = node.target.partition(":")
    found = getattr(importlib.import_module(f"kapell.cli.commands.{module}"), attribute)
    assert isinstance(found, click.Command)
    return found


class ProgramCommand(Command):
    """A command with a program behind "--", which it gets as `argv`, a list; empty where there is none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # click takes the "--" away and joins what stands before and behind it.
        at = args.index("--") if "--" in args else len(args)
        ctx.params["argv"] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


def command(
    name: str, help: str, *, examples: str, cls: type[Command] = Command, **kwargs: Any
) -> Callable[[_F], Command]:
    """Declares a command. `examples` are run by the tests; the first line should be worth copying."""

    def declare(function: _F) -> Command:
        return click.command(name, cls=cls, help=help, examples=examples, **kwargs)(function)

    return declare
