"""Ids that people type without their prefix: "nightly" for budget_nightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from kapell.cli.options import with_stdin

_F = TypeVar("_F", bound=Callable[..., Any])


def one(name: str, prefix: str, metavar: str) -> Callable[[_F], _F]:
    """One id, with or without its prefix."""
    return click.argument(name, metavar=metavar, callback=lambda _ctx, _param, value: _full(prefix, value))


def some(name: str, prefix: str, metavar: str) -> Callable[[_F], _F]:
    """One or more ids; `-` reads them from stdin."""

    def full(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_full(prefix, value) for value in with_stdin(ctx, param, values))

    return click.argument(name, nargs=-1, required=True, metavar=f"{metavar}...", callback=full)


def _full(prefix: str, value: str) -> str:
    return value if value.startswith(prefix) else prefix + value
