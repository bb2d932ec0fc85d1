"""What every command is given: the terminal, the options all commands share, and a way to the server.

`App.run` is the only door to the SDK: it finds the server, runs a coroutine with a `Client`, and
leaves errors to `kapell.cli.main`. Imports nothing heavy; how a server is reached is in `reach`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kapell.cli.terminal import Terminal

if TYPE_CHECKING:
    import click

    from kapell import Client
    from kapell.discovery import Endpoint, Tls

_T = TypeVar("_T")


@dataclass
class App:
    """The state of one run of the command line."""

    terminal: Terminal
    address: str | None = None
    data_dir: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    output: str | None = None
    debug: bool = False
    reattach: str = ""
    """Said after Ctrl-C: what goes on, and the command that shows it again."""
    hint: str = ""
    """What may have been meant by a name that is not known."""
    params: Sequence[click.Parameter] = ()
    """What the command that runs takes: refusals are told in these words."""
    path: str = ""
    """What the command that runs is called by, as "kapell task create"."""

    @property
    def is_table(self) -> bool:
        """Whether the output is meant for eyes, not for a program."""
        return self.output in (None, "table", "wide")

    @property
    def workspaces(self) -> Path:
        """Where the hosts of the local server keep the worktrees of tasks."""
        from kapell.discovery import data_dir

        return (Path(self.data_dir).expanduser() if self.data_dir else data_dir()).absolute() / "workspaces"

    def endpoint(self) -> Endpoint:
        """The server to talk to. Raises the SDK's KapellError when none is known."""
        from kapell.discovery import discover

        return discover(self.address, tls=self._tls(), directory=self.data_dir)

    def _tls(self) -> Tls | None:
        """What was said on the command line; what was not is the environment's to say."""
        from kapell.discovery import SYSTEM_CA, Tls, tls_of

        if not (self.tls_ca or self.tls_cert or self.tls_key):
            return None
        known = tls_of(os.environ) or Tls(ca=SYSTEM_CA)
        return Tls(ca=self.tls_ca or known.ca, cert=self.tls_cert or known.cert, key=self.tls_key or known.key)

    def run(self, work: Callable[[Client], Awaitable[_T]]) -> _T:
        """Runs `work` with a connected client, in an event loop of its own."""
        from kapell.cli.near import near_name
        from kapell.cli.reach import connected
        from kapell.errors import NotFound

        async def hinted(client: Client) -> _T:
            try:
                return await work(client)
            except NotFound as error:
                self.hint = await near_name(client, error)
                raise

        return connected(self.endpoint(), hinted)
