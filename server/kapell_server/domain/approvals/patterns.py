"""Patterns of rules: globs over tools, agent types, commands and paths, made into RE2.

The grammar is that of ApprovalRuleSpec. RE2 takes time linear in the text, so no pattern can hold the
writer up. Commands and paths are normalised before they are matched: a pattern speaks of what would
run and where, not of how it is spelt.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import re2

from kapell_server.domain.approvals.shell import take_apart


@lru_cache(maxsize=1024)
def _compiled(pattern: str, is_path: bool) -> Any:
    pieces: list[str] = []
    at = 0
    while at < len(pattern):
        if is_path and pattern.startswith("**/", at):
            pieces.append("(?:[^/]+/)*")
            at += 3
        elif is_path and pattern.startswith("**", at):
            pieces.append(".*")
            at += 2
        elif pattern[at] == "*":
            pieces.append("[^/]*" if is_path else ".*")
            at += 1
        elif pattern[at] == "?":
            pieces.append("[^/]" if is_path else ".")
            at += 1
        else:
            pieces.append(re2.escape(pattern[at]))
            at += 1
    return re2.compile("(?s)" + "".join(pieces))


def matches_word(pattern: str, text: str) -> bool:
    """Whether a glob matches all of a text; an empty pattern matches any."""
    return not pattern or _compiled(pattern, False).fullmatch(text) is not None


def matches_command(patterns: Sequence[str], command: str) -> bool:
    """Whether each part of a command matches one of the patterns; without a command, whether none is asked for."""
    if not command:
        return not patterns
    if command in patterns:
        return True
    shape = take_apart(command)
    if not shape.is_plain or not shape.parts:
        return False
    return all(_matches_one(patterns, " ".join(part.words), False) for part in shape.parts)


def matches_paths(patterns: Sequence[str], paths: Iterable[str], directory: str, workspace: str) -> bool:
    """Whether each path matches one of the patterns; without patterns, whether none is outside of the workspace."""
    room = posixpath.normpath(workspace or directory) if workspace or directory else ""
    absolute = [_absolute(path, directory or room) for path in paths]
    if not patterns:
        return not any(is_outside(path, room) for path in absolute)
    wanted = [pattern if pattern.startswith("/") or not room else posixpath.join(room, pattern) for pattern in patterns]
    return all(_matches_one(wanted, path, True) for path in absolute)


def touches_command(patterns: Sequence[str], command: str) -> bool:
    """Whether any part of a command matches one of the patterns, as far as it can be taken apart."""
    if not command:
        return False
    parts = take_apart(command).parts
    return command in patterns or any(_matches_one(patterns, " ".join(part.words), False) for part in parts)


def touches_paths(patterns: Sequence[str], paths: Iterable[str], directory: str, workspace: str) -> bool:
    """Whether any path matches one of the patterns."""
    room = posixpath.normpath(workspace or directory) if workspace or directory else ""
    return any(matches_paths(patterns, [path], directory or room, room) for path in paths)


def _matches_one(patterns: Sequence[str], text: str, is_path: bool) -> bool:
    return any(_compiled(pattern, is_path).fullmatch(text) is not None for pattern in patterns)


def _absolute(path: str, directory: str) -> str:
    """The path as it would be opened; what cannot be known stays relative, or keeps its tilde."""
    return posixpath.normpath(path if path.startswith(("/", "~")) else posixpath.join(directory, path))


def is_outside(path: str, workspace: str) -> bool:
    """Whether a normalised path lies outside of the workspace; without one, whether it leaves where it begins."""
    if path.startswith("~"):
        return True
    if not workspace:
        return path.startswith(("/", "../")) or path == ".."
    return path != workspace and not path.startswith(workspace.rstrip("/") + "/")


def leaves(path: str, directory: str, workspace: str) -> bool:
    """Whether a path, as a program in `directory` would take it, lies outside of the workspace."""
    room = posixpath.normpath(workspace or directory) if workspace or directory else ""
    return is_outside(_absolute(path, directory or room), room)
