"""What `kapell up` says when the server serves: where it is, what proves who you are, what to try."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path

from kapell._version import __version__
from kapell.cli.terminal import Terminal
from kapell.discovery import data_dir as default_data_dir

_DEMO = (
    ("approval list", "who asks; show ID, approve ID"),
    ("budget list", "how a flood of drafts was stopped"),
    ("usage show", "what the agents' models would cost"),
    ("lock list", "who works on what, and who waits"),
)


def banner(
    terminal: Terminal,
    *,
    address: str,
    data_dir: Path,
    http_address: str = "",
    is_demo: bool = False,
    no_auth: bool = False,
) -> list[str]:
    """At most 24 lines."""
    token_file = data_dir / "admin.token"
    token = "anyone on this machine is let in (--no-auth)" if no_auth else str(token_file)
    title = f"Kapell {__version__} is up" + (
        " with a demo: scripted agents, real commands, no model." if is_demo else "."
    )
    program = _program()
    first = (
        (f"{program} status", "what waits for you")
        if is_demo
        else (f'{program} agent spawn shell --cwd "$PWD"', "start an agent that works here")
    )
    tries = [
        first,
        *((f"{program} {command}", does) for command, does in (_DEMO if is_demo else ())),
        (f'{program} task run --type shell "wc -l *.md"', "run a command in an agent"),
        *(() if is_demo else ((f"{program} event watch", "see everything happen"),)),
    ]
    width = max(len(command) for command, _ in tries)
    return [
        "",
        f"  {terminal.out(title, 'bold')}",
        "",
        f"  {terminal.out('gRPC  ', 'dim')}  {address}",
        *([f"  {terminal.out('HTTP  ', 'dim')}  {http_address}"] if http_address else []),
        f"  {terminal.out('token ', 'dim')}  {token}",
        f"  {terminal.out('data  ', 'dim')}  {data_dir}",
        "",
        terminal.out("  In another terminal:", "dim"),
        *([] if _is_found(data_dir) else [f"    export KAPELL_DATA_DIR={shlex.quote(str(data_dir))}"]),
        *(f"    {terminal.out(command.ljust(width), 'cyan')}  {terminal.out(does, 'dim')}" for command, does in tries),
        "",
        terminal.out("  From any shell, with buf or grpcurl:", "dim"),
        *(f"    {line}" for line in curl_lines(address, token_file)),
        "",
        terminal.out("  Ctrl-C ends the server and all its agents.", "dim"),
    ]


def _program() -> str:
    """How another terminal can call us: by name, or by path where the name would not be found."""
    script = Path(sys.executable).with_name("kapell")
    if shutil.which("kapell") or not script.exists():
        return "kapell"
    with contextlib.suppress(ValueError):
        script = script.relative_to(Path.cwd())
    return shlex.quote(str(script))


def _is_found(data_dir: Path) -> bool:
    """Whether a fresh terminal looks for its server in this directory."""
    fresh = {name: value for name, value in os.environ.items() if name != "KAPELL_DATA_DIR"}
    return data_dir.absolute() == default_data_dir(fresh).absolute()


def curl_lines(address: str, token_file: Path) -> list[str]:
    """A command for any shell that creates a task, without Kapell's own client."""
    return [
        "buf curl --protocol grpc --http2-prior-knowledge \\",
        f'  -H "authorization: Bearer $(cat {shlex.quote(str(token_file))})" \\',
        """  -d '{"task":{"agent_type":"shell","prompt":"date"}}' \\""",
        f"  http://{address}/kapell.v1.TaskService/CreateTask",
    ]
