"""The table of a profile that says where its agents work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kapell.v1.workspace_pb2 import (
    GitWorktree,
    WorkspaceMergePolicy,
    WorkspaceRepository,
    WorkspaceSetup,
    WorkspaceSpec,
)

from kapell_server.profiles.values import ConfigError, duration, expect, path_of, refuse_unknown, strings

_WORKSPACE_KEYS = ("directory", "git_worktree")
_WORKTREE_KEYS = ("repositories", "branch", "directory", "setup", "restart_on_retry", "keep_uncommitted", "merge")
_REPOSITORY_KEYS = ("name", "path", "base_ref")
_MERGE_KEYS = ("check", "check_timeout", "rebase", "on_success")
_SETUP_KEYS = ("argv", "timeout", "inputs")


def workspace(value: Any, where: str) -> WorkspaceSpec | None:
    if value == "none":
        return None
    expect(value, dict, where, '"none" or a table such as { directory = "/srv/shop" }')
    refuse_unknown(value, _WORKSPACE_KEYS, where)
    if len(value) != 1:
        raise ConfigError(f"{where} must have one of {', '.join(_WORKSPACE_KEYS)}.")
    if "directory" in value:
        return WorkspaceSpec(directory=path_of(value["directory"], f"{where}.directory"))
    return WorkspaceSpec(git_worktree=_git_worktree(value["git_worktree"], f"{where}.git_worktree"))


def _git_worktree(table: Any, where: str) -> GitWorktree:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _WORKTREE_KEYS, where)
    repositories = expect(table.get("repositories", []), list, f"{where}.repositories", "a list of tables")
    worktree = GitWorktree(
        repositories=[_repository(one, f"{where}.repositories[{at}]") for at, one in enumerate(repositories)],
        branch=expect(table.get("branch", ""), str, f"{where}.branch", "text"),
        directory=path_of(table.get("directory", ""), f"{where}.directory"),
        restart_on_retry=expect(
            table.get("restart_on_retry", False), bool, f"{where}.restart_on_retry", "true or false"
        ),
        keep_uncommitted=expect(
            table.get("keep_uncommitted", False), bool, f"{where}.keep_uncommitted", "true or false"
        ),
    )
    if "setup" in table:
        worktree.setup.CopyFrom(_setup(table["setup"], f"{where}.setup"))
    if "merge" in table:
        worktree.merge.CopyFrom(_merge(table["merge"], f"{where}.merge"))
    return worktree


def _repository(table: Any, where: str) -> WorkspaceRepository:
    expect(table, dict, where, 'a table such as { path = "/srv/shop", base_ref = "main" }')
    refuse_unknown(table, _REPOSITORY_KEYS, where)
    path = path_of(table.get("path", ""), f"{where}.path")
    return WorkspaceRepository(
        name=expect(table.get("name", Path(path).name.removesuffix(".git")), str, f"{where}.name", "text"),
        path=path,
        base_ref=expect(table.get("base_ref", ""), str, f"{where}.base_ref", "text"),
    )


def _setup(table: Any, where: str) -> WorkspaceSetup:
    expect(table, dict, where, 'a table such as { argv = ["npm", "ci"], inputs = ["package-lock.json"] }')
    refuse_unknown(table, _SETUP_KEYS, where)
    setup = WorkspaceSetup(
        argv=strings(table.get("argv", []), f"{where}.argv"),
        inputs=strings(table.get("inputs", []), f"{where}.inputs"),
    )
    if "timeout" in table:
        setup.timeout.CopyFrom(duration(table["timeout"], f"{where}.timeout"))
    return setup


def _merge(table: Any, where: str) -> WorkspaceMergePolicy:
    expect(table, dict, where, 'a table such as { check = ["make", "test"] }')
    refuse_unknown(table, _MERGE_KEYS, where)
    merge = WorkspaceMergePolicy(
        check=strings(table.get("check", []), f"{where}.check"),
        rebase=expect(table.get("rebase", False), bool, f"{where}.rebase", "true or false"),
        on_success=expect(table.get("on_success", False), bool, f"{where}.on_success", "true or false"),
    )
    if "check_timeout" in table:
        merge.check_timeout.CopyFrom(duration(table["check_timeout"], f"{where}.check_timeout"))
    return merge
