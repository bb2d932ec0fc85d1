"""The locks that tasks declare: written in one way, each path once, nothing that another one covers, few enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kapell.v1.error_pb2 import ERROR_REASON_REQUEST_INVALID
from kapell.v1.lock_pb2 import LOCK_MODE_EXCLUSIVE, LOCK_MODE_SHARED, LockItem, LockMode, TaskLock

from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks.paths import PathError, canonical

MOST_LOCKS = 64
"""Most locks that a task may have."""

Modes = dict[str, bool]
"""Canonical paths, and whether each is wanted EXCLUSIVE."""


def declared(items: Sequence[LockItem | TaskLock], path: str, more: Iterable[LockItem] = ()) -> list[TaskLock]:
    """The locks of a request by path, reduced. `more` are those of its template, whose paths are canonical.

    Raises REQUEST_INVALID for what is no path, and for more trees than a task may have locks.
    """
    modes: Modes = {}
    for index, item in enumerate(items):
        try:
            _add(modes, canonical(item.path), item.mode)
        except PathError as error:
            raise _invalid(f"{path}[{index}].path", f"{item.path!r} {error}") from error
    for item in more:
        _add(modes, item.path, item.mode)
    try:
        few = drawn_together(reduced(modes))
    except PathError as error:
        raise _invalid(path, str(error)) from error
    return [TaskLock(path=name, mode=mode_of(few[name])) for name in sorted(few)]


def mode_of(exclusive: bool) -> LockMode.ValueType:
    """The mode by its name."""
    return LOCK_MODE_EXCLUSIVE if exclusive else LOCK_MODE_SHARED


def _add(modes: Modes, path: str, mode: LockMode.ValueType) -> None:
    modes[path] = modes.get(path, False) or mode != LOCK_MODE_SHARED


def reduced(modes: Mapping[str, bool]) -> Modes:
    """Without those that another one covers in the same mode or a stronger one."""
    return {path: exclusive for path, exclusive in modes.items() if not _is_covered(modes, path, exclusive)}


def _is_covered(modes: Mapping[str, bool], path: str, exclusive: bool) -> bool:
    above = path
    while "/" in above:
        above = above.rpartition("/")[0]
        if above in modes and (modes[above] or not exclusive):
            return True
    return False


def drawn_together(modes: Modes) -> Modes:
    """At most so many as a task may have: the deepest paths become the directories they are in. Raises PathError."""
    while len(modes) > MOST_LOCKS:
        depth = max(path.count("/") for path in modes)
        if not depth:
            raise PathError(f"come to {len(modes)} trees that have nothing in common; at most {MOST_LOCKS} are allowed")
        wider: Modes = {}
        for path, exclusive in modes.items():
            above = path.rpartition("/")[0] if path.count("/") == depth else path
            wider[above] = wider.get(above, False) or exclusive
        modes = reduced(wider)
    return modes


def tidied(text: str) -> str:
    """A path as people write it, nearer to how locks are written; empty where nothing is left of it.

    "./" and slashes too many are dropped, and a pattern becomes the directory that its matches are in.
    """
    kept: list[str] = []
    for segment in text.strip().split("/"):
        if "*" in segment or "?" in segment:
            break
        if segment not in ("", "."):
            kept.append(segment)
    return "/".join(kept)


def _invalid(path: str, what: str) -> KapellError:
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {path} {what}. Correct it and send it again.",
        violations=((path, what),),
    )
