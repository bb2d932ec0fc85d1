"""`kapell completion`: the script that teaches a shell our commands, options and live ids."""

from __future__ import annotations

import click

from kapell.cli.output import write
from kapell.cli.shape import command

_SHELLS = ("bash", "zsh", "fish")


@command(
    "completion",
    "Print the completion script for your shell.",
    examples="""
        eval "$(kapell completion bash)"        # in ~/.bashrc
        eval "$(kapell completion zsh)"         # in ~/.zshrc
        kapell completion fish | source         # in ~/.config/fish/config.fish
    """,
)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, f"click knows no {shell}"
    # `source` of bash looks at the version of the bash that happens to be on the PATH first; the
    # template is what it prints afterwards.
    script = kind(ctx.find_root().command, {}, "kapell", "_KAPELL_COMPLETE")
    write(script.source_template % script.source_vars())
