"""`kapell lock guard` with a real git repository and a real server: as git's hook, and as that of coding agents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.shell import Result, Shell

GIT = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_CONFIG_NOSYSTEM": "1",
}


class Repository:
    """A git repository named web, and a user who works in it."""

    def __init__(self, directory: Path, shell: Shell) -> None:
        self.directory = directory
        self.shell = shell
        self.locks = ""

    def run(self, *argv: str, stdin: str | None = None, **environment: str) -> Result:
        """Runs a program here, under the locks at hand."""
        done = subprocess.run(
            argv,
            cwd=self.directory,
            env={**self.shell.environment, **GIT, "KAPELL_LOCKS": self.locks, **environment},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def git(self, *args: str) -> str:
        done = self.run("git", *args)
        assert done.code == 0, done.err
        return done.out

    def guard(self, *args: str, **environment: str) -> Result:
        return self.run(sys.executable, "-m", "kapell.cli.main", "lock", "guard", *args, **environment)

    def hook(self, tool: str, *args: str, cwd: str | None = None, **arguments: object) -> str:
        """What the hook of a coding agent answers: the reason of a denial, or nothing."""
        call = {
            "hook_event_name": "PreToolUse",
            "cwd": cwd or str(self.directory),
            "tool_name": tool,
            "tool_input": arguments,
        }
        return self.answer(json.dumps(call), *args)

    def answer(self, stdin: str, *args: str, **environment: str) -> str:
        argv = (sys.executable, "-m", "kapell.cli.main", "lock", "guard", *args)
        done = self.run(*argv, stdin=stdin, **environment)
        assert (done.code, done.err) == (0, "")
        if not done.out:
            return ""
        decision = json.loads(done.out)["hookSpecificOutput"]
        assert (decision["hookEventName"], decision["permissionDecision"]) == ("PreToolUse", "deny")
        reason = decision["permissionDecisionReason"]
        assert isinstance(reason, str)
        return reason

    def acquire(self, *paths: str, shared: bool = False) -> list[str]:
        """Takes locks and works under them; their ids."""
        line = ("lock", "acquire", *paths, "--ttl", "10m", *(["--shared"] if shared else []), "-o", "json")
        done = self.shell.pipe(*line)
        assert done.code == 0, done.err
        made = json.loads(done.out)
        found = made if isinstance(made, list) else [made]
        self.locks = json.dumps(
            [
                {
                    "path": lock["path"],
                    "mode": "shared" if shared else "exclusive",
                    "lock_id": lock["lockId"],
                    "fencing_token": int(lock["fencingToken"]),
                }
                for lock in found
            ]
        )
        return [lock["lockId"] for lock in found]


@pytest.fixture
def web(tmp_path: Path, shell: Shell) -> Iterator[Repository]:
    top = tmp_path / "web"
    (top / "src").mkdir(parents=True)
    repository = Repository(top, shell)
    repository.git("init", "-q", "-b", "main")
    (top / "src" / "a.py").write_text("one\n")
    (top / "README.md").write_text("read\n")
    repository.git("add", "-A")
    repository.git("commit", "-qm", "first")
    yield repository
    held = shell.pipe("lock", "list", "-o", "id").out.split()
    if held:
        assert shell.pipe("lock", "release", *held, "--force", "--reason", "the test is over", "--yes").code == 0


def test_a_commit_of_paths_under_locks_goes_through(web: Repository) -> None:
    web.acquire("web/src", "web/notes.md")
    assert "Wrote" in web.guard("--install").out
    (web.directory / "src" / "a.py").write_text("two\n")
    (web.directory / "notes.md").write_text("new\n")
    web.git("add", "-A")

    assert web.run("git", "commit", "-qm", "second").code == 0


def test_a_commit_without_the_lock_is_refused_and_says_who_has_it(web: Repository) -> None:
    web.guard("--install")
    web.acquire("web/src", shared=False)
    mine = web.locks
    web.acquire("web/README.md")
    web.locks = mine
    (web.directory / "README.md").write_text("changed\n")
    (web.directory / "src" / "a.py").write_text("two\n")
    web.git("add", "-A")

    refused = web.run("git", "commit", "-qm", "second")

    assert refused.code == 1
    assert "README.md (lock web/README.md): no lock of yours covers it" in refused.err
    assert "web/README.md by admin, exclusive" in refused.err
    assert "kapell lock run web/README.md" in refused.err
    assert web.git("log", "--oneline").count("\n") == 1


def test_renames_deletions_and_odd_names_are_checked(web: Repository) -> None:
    odd = 'src/ü "quoted" na\tme.py'
    (web.directory / odd).write_text("odd\n")
    web.git("add", "-A")
    web.git("commit", "-qm", "odd")
    web.git("mv", "src/a.py", "moved.py")
    web.git("rm", "-q", odd)
    (moved,) = web.acquire("web/moved.py")

    refused = web.guard("--git")

    assert refused.code == 5
    assert "src/a.py (lock web/src/a.py): no lock of yours covers it" in refused.err
    # A tab is in no lock path: its directory protects the file.
    assert "me.py (lock web/src): no lock of yours covers it" in refused.err
    assert "moved.py (lock" not in refused.err
    web.shell.pipe("lock", "release", moved)
    web.acquire("web")
    assert web.guard("--git").code == 0


def test_a_stale_fence_and_a_shared_lock_are_no_leave(web: Repository) -> None:
    (lock_id,) = web.acquire("web/src")
    assert web.guard("src/a.py").code == 0

    assert web.shell.pipe("lock", "release", lock_id, "--force", "--reason", "enough", "--yes").code == 0

    assert "its fencing token" in web.guard("src/a.py").err
    web.acquire("web/src", shared=True)
    assert "the lock of web/src is shared: it is for reading only" in web.guard("src/a.py").err


@pytest.mark.parametrize("locks", ["", "[]", "{}", "nonsense"])
def test_without_locks_everything_is_refused(web: Repository, locks: str) -> None:
    web.locks = locks

    refused = web.guard("src/a.py")

    assert refused.code in (2, 5)
    assert "KAPELL_LOCKS" in refused.err


def test_without_a_server_everything_is_refused(web: Repository) -> None:
    web.acquire("web")
    web.git("rm", "-q", "README.md")

    assert web.guard("--git", KAPELL_ADDRESS="127.0.0.1:1").code == 6
    call = {"tool_name": "Write", "tool_input": {"file_path": "a"}, "cwd": str(web.directory)}
    assert "no Kapell server answers" in web.answer(json.dumps(call), KAPELL_ADDRESS="127.0.0.1:1")
    assert "token" in web.answer(json.dumps(call), KAPELL_TOKEN="kapell_wrong")


def test_a_coding_agent_may_change_what_its_locks_cover(web: Repository) -> None:
    web.acquire("web/src")
    patch = "*** Begin Patch\n*** Update File: src/a.py\n@@\n-one\n+two\n*** Add File: {}\n+x\n*** End Patch\n"

    assert web.hook("Edit", file_path=str(web.directory / "src" / "a.py")) == ""
    assert web.hook("apply_patch", command=patch.format("src/b.py")) == ""
    assert web.hook("Read", file_path="/etc/hosts") == ""
    assert "docs/b.py (lock web/docs/b.py): no lock of yours" in web.hook(
        "apply_patch", command=patch.format("docs/b.py")
    )
    assert "README.md" in web.hook("Write", file_path="../README.md", cwd=str(web.directory / "src"))
    assert "is outside of" in web.hook("Write", file_path="/tmp/x")
    assert web.hook("Write", "--outside", "allow", file_path="/tmp/x") == ""
    assert "--allow-tool" in web.hook("mcp__files__write", path="src/a.py")
    assert web.hook("mcp__files__write", "--allow-tool", "mcp__files__*", path="src/a.py") == ""


def test_command_lines_go_by_the_rule_for_them(web: Repository) -> None:
    (lock_id,) = web.acquire("web/src")

    assert web.hook("Bash", command="make") == ""
    assert web.hook("Bash", "--shell", "allow", command="make") == ""
    assert "not allowed here" in web.hook("Bash", "--shell", "deny", command="make")
    assert "lock web): no lock of yours" in web.hook("Bash", "--shell", "whole", command="make")
    web.shell.pipe("lock", "release", lock_id)
    assert "the lock was lost" in web.hook("Bash", command="make")
    web.locks = "[]"
    assert "KAPELL_LOCKS names no lock" in web.hook("Bash", command="make")


@pytest.mark.parametrize("stdin", ["", "nonsense", "[]", '{"tool_name": "Edit", "tool_input": {}}'])
def test_a_call_that_cannot_be_read_is_refused(web: Repository, stdin: str) -> None:
    web.acquire("web")

    assert "cannot be checked" in web.answer(stdin)


def test_an_existing_hook_runs_after_ours(web: Repository) -> None:
    hooks = web.directory / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    before = hooks / "pre-commit"
    before.write_text("#!/bin/sh\necho ran before >&2\nexit 3\n")
    before.chmod(0o755)

    dry = web.guard("--install", "--dry-run", "--prefix", "team/web")
    assert "Dry run" in dry.err
    assert "lock guard --git --prefix team/web" in dry.out
    first, again = web.guard("--install"), web.guard("--install")

    assert (first.code, again.code) == (0, 0)
    assert "pre-commit.before-kapell" in first.err
    assert again.err == "", "ours is not kept beside itself"
    (web.directory / "README.md").write_text("changed\n")
    web.git("add", "-A")
    web.locks = "[]"
    assert "ran before" not in web.run("git", "commit", "-qm", "x").err
    web.acquire("web")
    refused = web.run("git", "commit", "-qm", "x")
    assert (refused.code, "ran before" in refused.err) == (1, True)


def test_hooks_path_is_obeyed_and_a_shared_one_is_asked_for(web: Repository, tmp_path: Path) -> None:
    web.git("config", "core.hooksPath", ".husky")
    assert web.guard("--install").code == 0
    assert os.access(web.directory / ".husky" / "pre-commit", os.X_OK)

    web.git("config", "core.hooksPath", str(tmp_path / "everybody"))
    assert web.guard("--install").code == 2, "not without a yes"
    assert web.guard("--install", "--yes").code == 0
    assert (tmp_path / "everybody" / "pre-commit").exists()


def test_worktrees_are_guarded_by_the_locks_of_their_repository(web: Repository, tmp_path: Path) -> None:
    web.guard("--install")
    web.git("worktree", "add", "-q", str(tmp_path / "task-7"), "-b", "task-7")
    side = Repository(tmp_path / "task-7", web.shell)
    (side.directory / "README.md").write_text("changed\n")
    side.git("add", "-A")

    side.acquire("web/src")
    assert side.run("git", "commit", "-qm", "x").code == 1
    side.acquire("web/README.md")
    assert side.run("git", "commit", "-qm", "x").code == 0


def test_outside_of_a_repository_the_root_must_be_said(web: Repository, tmp_path: Path) -> None:
    web.acquire("notes")

    assert "is in no git repository" in web.hook("Write", file_path="a", cwd=str(tmp_path))
    said = ("--root", str(tmp_path), "--prefix", "notes")
    assert web.hook("Write", *said, file_path="a", cwd=str(tmp_path)) == ""
    assert web.guard("--git", "--root", str(tmp_path)).code == 2
