"""Help starts with examples, the examples are real, and the tree says what the commands say."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Iterator

import click
import pytest
from kapell.cli.main import root
from kapell.cli.shape import Command, Group

from tests.cli.shell import Shell, compare


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every group and command with its path."""
    context = click.Context(group, info_name="kapell")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = {" ".join(path): command for path, command in commands(root())}
LEAVES = {path: command for path, command in ALL.items() if isinstance(command, Command)}


def examples() -> Iterator[tuple[str, list[str]]]:
    """Each `kapell …` in the examples, as arguments."""
    for path, command in {"": root(), **ALL}.items():
        assert isinstance(command, (Command, Group))
        for line in command.examples.splitlines():
            inner = re.findall(r"\$\((kapell [^)]*)\)", line)
            for part in inner or re.split(r" [|>] ", line):
                words = shlex.split(part, comments=True)
                if words and words[0] == "kapell":
                    yield f"{path}: {line}", words[1:]


@pytest.mark.parametrize("path", ALL)
def test_help_has_examples_before_everything_else(path: str) -> None:
    command = ALL[path]

    text = command.get_help(click.Context(command, info_name=f"kapell {path}", **command.context_settings))

    titles = re.findall(r"(?m)^(\w[\w ]*):$", text)
    assert titles[0] == "Examples"
    assert f"kapell {path}" in text.split("Usage:")[0] or path in ("auth", "auth token", "completion")


@pytest.mark.parametrize("path", LEAVES)
def test_every_option_says_what_it_does(path: str) -> None:
    silent = [p.opts for p in LEAVES[path].params if isinstance(p, click.Option) and not p.help]

    assert silent == []


@pytest.mark.parametrize("path", LEAVES)
def test_the_tree_says_what_the_command_says(path: str) -> None:
    group: Group = root()  # type: ignore[assignment]
    node = group.node
    for name in path.split():
        node = node.children[name]

    first = (LEAVES[path].help or "").split(";")[0].split(":")[0].rstrip(".")
    assert first.startswith(node.help.rstrip(".")) or node.help.rstrip(".").startswith(first)


@pytest.mark.parametrize(
    ("origin", "args"), list(examples()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_example_parses(origin: str, args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("task_01kabc\n"))

    command: click.Command = root()
    rest = args
    parent = None
    while isinstance(command, click.Group):
        context = command.make_context("kapell", list(rest), parent=parent, obj=None)
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, f"{origin}: {name}"
        command, parent = found, context
    command.make_context(command.name, list(rest), parent=parent)


def test_help_of_kapell(no_server: Shell) -> None:
    compare("help", no_server.pipe("--help").out)


@pytest.mark.parametrize("path", ["task run", "agent spawn", "lock guard", "up"])
def test_help_of_a_command(no_server: Shell, path: str) -> None:
    compare(f"help-{path.replace(' ', '-')}", no_server.pipe(*path.split(), "--help").out)


def test_a_misspelt_command_names_the_close_one(no_server: Shell) -> None:
    result = no_server.pipe("statsu")

    assert result.code == 2
    assert "Did you mean 'kapell status'?" in result.err
