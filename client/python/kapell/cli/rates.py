"""Limits on the command line: a number or none, a rate such as 10/1m or none."""

from __future__ import annotations

import re
from dataclasses import dataclass

import click

from kapell.cli.times import parse_duration


@dataclass(frozen=True)
class Given:
    """What an option was given: a value, or None for the word "none"."""

    value: int | tuple[int, float] | None


class _CountType(click.ParamType[Given]):
    name = "count"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Given:
        if isinstance(value, Given):
            return value
        text = str(value)
        if text == "none":
            return Given(None)
        if not text.isdecimal():
            self.fail(f"{text!r} is not a number; write for example 4, or none for no limit", param, ctx)
        return Given(int(text))


class _RateType(click.ParamType[Given]):
    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Given:
        if isinstance(value, Given):
            return value
        text = str(value)
        if text == "none":
            return Given(None)
        count, slash, period = text.partition("/")
        try:
            if not slash or not count.isdecimal():
                raise ValueError(text)
            # "10/m" is what people say for "10/1m".
            return Given((int(count), parse_duration(f"1{period}" if re.match(r"[a-z]", period) else period)))
        except ValueError:
            self.fail(f"{text!r} is not a rate; write for example 10/1m, 30/1h or none", param, ctx)


COUNT = _CountType()
RATE = _RateType()
