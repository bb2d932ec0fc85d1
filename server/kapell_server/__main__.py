"""`python -m kapell_server`: the server as a process.

SIGINT (Ctrl-C) ends the spawned agents and then the server; SIGTERM ends the server alone, and
its agents work on until it is back. Exit code 0 after a stop that was asked for; with one sentence
on stderr 2 when the configuration cannot be used, 1 when the server could not start or a part of
it died.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from kapell_server.config import SETTINGS, Config, ConfigError, load


def main() -> int:
    """Runs the server until it is stopped; the exit code."""
    arguments = _parser().parse_args()
    try:
        flags = {setting.key: getattr(arguments, setting.key) for setting in SETTINGS}
        given = {key: value for key, value in flags.items() if value is not None}
        config = load(flags=given, env=os.environ, config_file=arguments.config)
    except ConfigError as error:
        return _refuse(str(error), code=2)
    if arguments.show_config:
        _show(config)
        return 0
    return _run(config)


def _run(config: Config) -> int:
    # The core's own lines go to stderr past all formatting, and say nothing that our errors do not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Late, so that --help and refusals of the configuration answer at once.
    from kapell_server.data_dir import StartRefusedError
    from kapell_server.telemetry import configure_logging

    configure_logging(config.log_format)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(config))
    except StartRefusedError as error:
        return _refuse(str(error))


async def _serve(config: Config) -> int:
    from kapell_server.app import App

    loop = asyncio.get_running_loop()
    asked: asyncio.Future[signal.Signals] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _ask, asked, number)
    app = App(config)
    await app.start()
    _calm_collector()
    _say_serving(config, app)
    ends: list[asyncio.Future[Any]] = [asked, app.failed]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if asked.done():
        ending = asked.result() is signal.SIGINT
        _say(config, "stopping", "Stopping, with the agents." if ending else "Stopping; the agents work on.")
        await app.stop(terminate_agents=ending)
    else:
        await app.stop(terminate_agents=False)
    if app.failed.done():
        return _refuse(f"The server has stopped because {app.failed.result()}. Agents work on; start it again.")
    return 0


def _ask(asked: asyncio.Future[signal.Signals], number: signal.Signals) -> None:
    """The first signal counts: a second Ctrl-C must not leave agents behind."""
    if not asked.done():
        asked.set_result(number)


def _loop_factory() -> Any:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _calm_collector() -> None:
    """What lives by now lives for ever: it is not looked at again. Young garbage is collected in larger
    lots, and everything only where long-lived objects have piled up; this takes the spikes out of the p99.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def _say_serving(config: Config, app: Any) -> None:
    if config.log_format == "json":
        note = {"event": "serving", "grpc_address": app.address, "http_address": app.http_address}
        note |= {"data_dir": str(config.data_dir), "pid": os.getpid(), "log_id": app.engine.log_id}
        _print(json.dumps(note))
        return
    from kapell.cli.banner import banner
    from kapell.cli.terminal import detect

    lines = banner(
        detect(),
        address=app.address,
        http_address=app.http_address,
        data_dir=config.data_dir,
        no_auth=config.no_auth,
    )
    for line in lines:
        _print(line)


def _say(config: Config, event: str, text: str) -> None:
    _print(json.dumps({"event": event}) if config.log_format == "json" else text)


def _print(line: str) -> None:
    """To stdout, if anybody still reads it."""
    from kapell_server.telemetry import Lasting

    print(line, file=Lasting(sys.stdout), flush=True)


def _refuse(sentence: str, *, code: int = 1) -> int:
    print(f"kapell: {sentence}", file=sys.stderr, flush=True)
    return code


def _show(config: Config) -> None:
    for setting in SETTINGS:
        print(f"{setting.key} = {getattr(config, setting.key)}\t({config.origins[setting.key]})")
    print(f"profiles = {', '.join(sorted(config.profiles))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kapell_server", description="Runs the Kapell server.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="kapell.toml to read")
    parser.add_argument("--show-config", action="store_true", help="print every value with its origin, and exit")
    for setting in SETTINGS:
        if setting.switch:
            parser.add_argument(setting.flag, action="store_true", default=None, help=setting.help)
        else:
            kind = int if isinstance(setting.default, int) else str
            parser.add_argument(setting.flag, type=kind, default=None, metavar="VALUE", help=setting.help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
