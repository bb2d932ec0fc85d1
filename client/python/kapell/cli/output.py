"""The formats of `-o`: table, wide, json, jsonl, yaml, id.

JSON is the proto JSON form, the same on a terminal and on a pipe. Tables are for eyes on a
terminal and tab-separated, with full values and without a header, on a pipe; line ends, tabs and
backslashes in values are escaped there (`terminal.escaped`). Nothing else writes resources to stdout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kapell.cli import table
from kapell.cli.terminal import Terminal

FORMATS = ("table", "wide", "json", "jsonl", "yaml", "id")


@dataclass(frozen=True)
class View:
    """How resources of one kind are shown: columns of their table, lines of their card, their id.

    `brief` are the columns said on a terminal when a command changed the resource.
    """

    columns: tuple[table.Column, ...]
    id: Callable[[Any], str]
    card: Callable[[Any], list[table.Line]] | None = None
    brief: tuple[table.Column, ...] = ()


def write(text: str) -> None:
    """Writes one line to stdout at once, so that a reader on a pipe sees it live."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Writes one line for people to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def as_data(message: Any) -> Any:
    """A message in proto JSON form; other values as they are."""
    from google.protobuf import json_format
    from google.protobuf.message import Message

    if not isinstance(message, Message):
        return message
    return _with_integers(_in_order(json_format.MessageToDict(message), message.DESCRIPTOR))


def _in_order(data: Any, descriptor: Any) -> Any:
    """Maps by their keys; the library has them in another order in each process."""
    if not isinstance(data, dict) or descriptor.full_name.startswith("google.protobuf."):
        return data
    if descriptor.GetOptions().map_entry:
        value = descriptor.fields_by_name["value"].message_type
        return {key: _in_order(item, value) if value else item for key, item in sorted(data.items())}
    types = {field.json_name: field.message_type for field in descriptor.fields if field.message_type}
    for name in data.keys() & types.keys():
        items = data[name]
        told = [_in_order(item, types[name]) for item in (items if isinstance(items, list) else [items])]
        data[name] = told if isinstance(items, list) else told[0]
    return data


def _with_integers(value: Any) -> Any:
    """17.0 becomes 17, as other languages write the numbers of free JSON."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    return [_with_integers(item) for item in value] if isinstance(value, list) else value


def write_list(items: Sequence[Any], view: View, terminal: Terminal, format: str | None, *, empty: str = "") -> None:
    """Writes many resources. `empty` is said on a terminal when there is none: why, and the next command."""
    match format or "table":
        case "json":
            write(_json([as_data(item) for item in items]))
        case "yaml":
            _write_yaml([as_data(item) for item in items])
        case "table" | "wide" if not items:
            if empty and terminal.is_tty:
                note(empty)
        case other:
            _write_lines(items, view, terminal, other)


def write_one(item: Any, view: View, terminal: Terminal, format: str | None) -> None:
    """Writes one resource: as a card where the format is a table."""
    match format or "table":
        case "json":
            write(_json(as_data(item)))
        case "yaml":
            _write_yaml(as_data(item))
        case "table" | "wide" if view.card is not None:
            for line in table.card(view.card(item), terminal):
                write(line)
        case other:
            _write_lines([item], view, terminal, other)


def write_changed(items: Sequence[Any], view: View, terminal: Terminal, format: str | None) -> None:
    """Writes what a command changed: a short line each on a terminal, otherwise as a list."""
    if format is None and terminal.is_tty and view.brief:
        for line in table.rows_for_terminal(view.brief, items, terminal, header=False):
            write(line)
    elif format == "json" and len(items) == 1:
        write(_json(as_data(items[0])))
    else:
        write_list(items, view, terminal, format)


class Stream:
    """Writes resources or events one by one as they come, each on its own line. YAML becomes documents."""

    def __init__(self, view: View, terminal: Terminal, format: str | None) -> None:
        self._view = view
        self._terminal = terminal
        self._format = format or "table"

    def write(self, item: Any) -> None:
        match self._format:
            case "json" | "jsonl" | "yaml" as structured:
                write_line(as_data(item), structured)
            case other:
                _write_lines([item], self._view, self._terminal, other, header=False)


def write_line(data: Any, format: str) -> None:
    """Writes one piece of data of a stream: a line of JSON, or a YAML document."""
    if format == "yaml":
        write("---")
        _write_yaml(data)
    else:
        write(_line(data))


def csv_safe(value: object) -> object:
    """Text that a spreadsheet would take for a formula is quoted, as OWASP advises."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _write_lines(items: Sequence[Any], view: View, terminal: Terminal, format: str, *, header: bool = True) -> None:
    columns = [column for column in view.columns if format == "wide" or not column.wide]
    if format == "jsonl":
        lines = [_line(as_data(item)) for item in items]
    elif format == "id":
        lines = [view.id(item) for item in items]
    elif terminal.is_tty:
        lines = table.rows_for_terminal(columns, items, terminal, header=header, fit=format != "wide")
    else:
        lines = table.rows_for_pipe(columns, items)
    for line in lines:
        write(line)


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def _line(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _write_yaml(data: Any) -> None:
    from kapell.cli import yaml_text

    write(yaml_text.dump(data).rstrip("\n"))
