"""What `kapell up` says when the server serves: where it is, what proves who you are, what to try."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from kapell.cli.terminal import Terminal


def banner(
    terminal: Terminal, *, address: str, data_dir: Path, is_demo: bool = False, no_auth: bool = False
) -> list[str]:
    """At most twenty lines."""
    token_file = data_dir / "admin.token"
    token = "anyone on this machine is let in (--no-auth)" if no_auth else str(token_file)
    title = f"Kapell {version('kapell')} is up" + (
        ", with a demo: three agents run real commands here, no model." if is_demo else "."
    )
    program = _program()
    tries = [
        (f"{program} status", "what waits for you"),
        (f'{program} task run --type shell "wc -l *.md"', "run a command in an agent"),
        (f"{program} event watch", "see everything happen"),
    ]
    width = max(len(command) for command, _ in tries)
    return [
        "",
        f"  {terminal.out(title, 'bold')}",
        "",
        f"  {terminal.out('gRPC  ', 'dim')}  {address}",
        f"  {terminal.out('token ', 'dim')}  {token}",
        f"  {terminal.out('data  ', 'dim')}  {data_dir}",
        "",
        terminal.out("  In another terminal:", "dim"),
        *(f"    {terminal.out(command.ljust(width), 'cyan')}  {terminal.out(does, 'dim')}" for command, does in tries),
        "",
        terminal.out("  From any shell, with buf or grpcurl:", "dim"),
        *(f"    {line}" for line in curl_lines(address, token_file)),
        "",
        terminal.out("  Ctrl-C ends the server and all its agents.", "dim"),
        "",
    ]


def _program() -> str:
    """How another terminal can call us: by name, or by path where the name would not be found."""
    if shutil.which("kapell"):
        return "kapell"
    path = Path(sys.argv[0])
    if path.name != "kapell":
        return f"{shlex.quote(sys.executable)} -m kapell.cli.main"
    with contextlib.suppress(ValueError):
        path = path.absolute().relative_to(Path.cwd())
    return shlex.quote(str(path))


def curl_lines(address: str, token_file: Path) -> list[str]:
    """A command for any shell that creates a task, without Kapell's own client."""
    return [
        "buf curl --protocol grpc --http2-prior-knowledge \\",
        f'  -H "authorization: Bearer $(cat {shlex.quote(str(token_file))})" \\',
        """  -d '{"task":{"agent_type":"shell","prompt":"date"}}' \\""",
        f"  http://{address}/kapell.v1.TaskService/CreateTask",
    ]
