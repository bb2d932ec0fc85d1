"""How artifacts are shown: their columns and cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.cli import times
from kapell.cli.output import View
from kapell.cli.table import Cell, Column, Line
from kapell.cli.views import labels_text

if TYPE_CHECKING:
    from kapell.v1.artifact_pb2 import Artifact

_READY = 2
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(count: int) -> str:
    """A number of bytes as people read it: "17 B", "1.5 MiB"."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if not unit else f"{value:.1f} {_UNITS[unit]}"


def _state(artifact: Artifact) -> Cell:
    if artifact.state == _READY:
        return Cell("ready", "green", "✓")
    return Cell("uploading", "cyan", "●")


def _size(artifact: Artifact) -> str:
    if artifact.state == _READY:
        return bytes_text(artifact.size)
    return f"{bytes_text(artifact.upload_offset)} of {bytes_text(artifact.size) if artifact.size else '?'}"


def _writer(artifact: Artifact) -> str:
    return f"attempt {artifact.attempt}" if artifact.attempt else "user"


def _card(artifact: Artifact) -> list[Line]:
    return [
        Line("Artifact", artifact.artifact_id),
        Line("Name", artifact.name),
        Line("Task", artifact.task_id),
        Line("By", f"{_writer(artifact)} {artifact.agent_id}".rstrip()),
        Line("State", _state(artifact)),
        Line("Size", _size(artifact)),
        Line("Media type", artifact.media_type),
        Line("SHA-256", artifact.sha256),
        Line("Labels", labels_text(artifact.labels)),
        Line("Begun", times.local(artifact.create_time)),
        Line("Ready", times.local(artifact.complete_time)),
    ]


ARTIFACTS = View(
    columns=(
        Column("ARTIFACT", lambda a: Cell(a.artifact_id)),
        Column("NAME", lambda a: a.name, flexible=True),
        Column("STATE", _state),
        Column("SIZE", _size, right=True),
        Column("BY", _writer),
        Column("MEDIA TYPE", lambda a: a.media_type, wide=True),
        Column("SHA-256", lambda a: a.sha256 or "-", wide=True),
        Column("AGE", lambda a: times.age(a.create_time), wide=True, right=True),
    ),
    id=lambda a: a.artifact_id,
    card=_card,
    brief=(
        Column("ARTIFACT", lambda a: Cell(a.artifact_id)),
        Column("STATE", _state),
        Column("SIZE", _size, right=True),
        Column("NAME", lambda a: a.name, flexible=True),
    ),
)
