"""What a program leaves in KAPELL_ARTIFACTS_DIR: found, and uploaded file by file.

No failure here is the task's: what could not be kept is said in the attempt's log.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kapell.errors import KapellError, LeaseLost
from kapell.runtimes.contract import Attempt
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM

MOST_FILES = 1000


def find(directory: Path) -> list[str]:
    """The regular files below `directory` as relative paths, sorted. Links are not followed and not found."""
    found = []
    for place, directories, names in os.walk(directory):
        directories.sort()
        for name in names:
            path = Path(place, name)
            if stat.S_ISREG(path.lstat().st_mode):
                found.append(path.relative_to(directory).as_posix())
    return sorted(found)


async def send(attempt: Attempt, directory: Path, names: list[str]) -> None:
    """Uploads the files `names` below `directory`; ends early only when the attempt is no longer ours."""
    for name in names[:MOST_FILES]:
        try:
            artifact = await attempt.upload_artifact(directory / name, name=name)
        except LeaseLost:
            return
        except (KapellError, OSError, ValueError) as error:
            # A name that is not UTF-8 is a ValueError; it cannot be shown as it is.
            shown = name.encode(errors="replace").decode()
            attempt.log(f"{shown} was not kept as an artifact: {error}", LOG_STREAM_SYSTEM)
        else:
            attempt.log(f"kept {name} as {artifact.artifact_id}", LOG_STREAM_SYSTEM)
    if len(names) > MOST_FILES:
        rest = len(names) - MOST_FILES
        attempt.log(f"{rest} more files were not kept as artifacts: pack them into one", LOG_STREAM_SYSTEM)
