"""`kapell up`: the server here. It becomes the server, or, with --demo, keeps one as a child and fills it."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import click

from kapell.cli.app import App
from kapell.cli.errors import Done, Exit, Refusal
from kapell.cli.shape import command

_EPILOG = (
    "Every option but --demo has an environment variable KAPELL_*, and a key in kapell.toml:"
    " in the table [retention] where it begins with --keep, else in [server]."
)


@command(
    "up",
    "Start the server here.",
    examples="""
        kapell up
        kapell up --demo                  # with agents at work; real commands, no model
        kapell up --grpc-address 127.0.0.1:0 --data-dir /tmp/kapell
    """,
    epilog=_EPILOG,
)
@click.option("--demo", is_flag=True, help="Spawn four agents and give them tasks over this directory's files.")
@click.option("--data-dir", metavar="DIRECTORY", help="Where everything is kept. [default: ~/.local/share/kapell]")
@click.option("--grpc-address", metavar="HOST:PORT", help="Where to listen; port 0 is any. [default: 127.0.0.1:50051]")
@click.option(
    "--http-address", metavar="HOST:PORT", help='Where HTTP listens; "" for nowhere. [default: 127.0.0.1:4110]'
)
@click.option(
    "--otlp-usage",
    type=click.Choice(["events", "metrics"]),
    help="What counts of the telemetry that agents export to HTTP. [default: events]",
)
@click.option("--database-url", metavar="URL", help="A PostgreSQL server instead of the embedded database.")
@click.option(
    "--config",
    metavar="FILE",
    help="The configuration file. [default: ./kapell.toml, then kapell.toml in the data directory]",
)
@click.option("--tls-cert", metavar="FILE", help="Encrypt: the certificate with its chain, PEM.")
@click.option("--tls-key", metavar="FILE", help="The key of the certificate, PEM.")
@click.option("--tls-client-ca", metavar="FILE", help="Ask clients for a certificate that this one has signed.")
@click.option("--no-auth", is_flag=True, help="Ask nobody for a token; for loopback addresses only.")
@click.option(
    "--insecure-bind", is_flag=True, help="Allow an address that other machines reach, though nothing is encrypted."
)
@click.option("--keep-tasks-for", metavar="DURATION", help="Keep finished tasks so long; 0 for ever. [default: 30d]")
@click.option("--keep-tasks", metavar="N", help="Keep so many finished tasks; 0 for all. [default: 1000000]")
@click.option("--keep-events-for", metavar="DURATION", help="Keep events so long; 0 for ever. [default: 7d]")
@click.option("--keep-events", metavar="N", help="Keep so many events; 0 for all. [default: 2000000]")
@click.option("--log-format", type=click.Choice(["console", "json"]), help="How the server logs.")
@click.pass_obj
def up(app: App, /, demo: bool, no_auth: bool, insecure_bind: bool, **values: str | None) -> None:
    if find_spec("kapell_server") is None:
        raise Refusal(
            "the server is not installed here",
            why="this Python has the client package only",
            next="pip install kapell",
        )
    arguments = [part for name, value in values.items() if value is not None for part in (_flag(name), value)]
    if no_auth:
        arguments.append("--no-auth")
    if insecure_bind:
        arguments.append("--insecure-bind")
    if demo:
        raise Done(_demo(app, arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "kapell_server", *arguments])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _demo(app: App, /, arguments: list[str]) -> Exit:
    import asyncio

    from kapell.cli.demo_show import show

    return asyncio.run(show(app.terminal, arguments))
