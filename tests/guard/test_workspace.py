"""Which lock paths files have: symbolic links, worktrees, odd names, files outside; and KAPELL_LOCKS."""

from __future__ import annotations

from pathlib import Path

import pytest
from kapell._guard.workspace import NoWorkspace, Outside, Workspace, find, name_of
from kapell._locks import paths
from kapell._locks.environment import KnownLock, dump, parse


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    top = tmp_path / "web"
    (top / ".git").mkdir(parents=True)
    (top / "src").mkdir()
    return top


def of(top: Path) -> Workspace:
    return find(root=None, prefix=None, cwd=str(top))


def test_a_file_has_the_path_of_its_repository_and_its_place_in_it(repository: Path) -> None:
    space = of(repository / "src")

    assert space == Workspace(directory=str(repository), prefix="web")
    assert space.lock_paths("a.py", str(repository / "src")) == {"web/src/a.py"}
    assert space.lock_paths(str(repository / "new" / "b.py"), "/") == {"web/new/b.py"}
    assert space.lock_paths("../src/./a.py", str(repository / "src")) == {"web/src/a.py"}
    assert space.lock_paths(".", str(repository)) == {"web"}


def test_a_link_needs_the_lock_of_its_place_and_of_what_it_leads_to(repository: Path) -> None:
    (repository / "docs").symlink_to("src")
    (repository / "link.py").symlink_to("src/a.py")
    (repository / "out").symlink_to("/etc/hosts")
    space = of(repository)

    assert space.lock_paths("docs/a.py", str(repository)) == {"web/src/a.py"}
    assert space.lock_paths("link.py", str(repository)) == {"web/link.py", "web/src/a.py"}
    with pytest.raises(Outside):
        space.lock_paths("out", str(repository))


@pytest.mark.parametrize("file", ["../other/a.py", "/tmp", "../web2/a.py", "src/../../x"])
def test_a_file_outside_has_no_lock_path(repository: Path, file: str) -> None:
    with pytest.raises(Outside):
        of(repository).lock_paths(file, str(repository))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("src/a*b.py", "web/src"),
        ("src/back\\slash/deep.py", "web/src"),
        ("line\nbreak", "web"),
        ("src/no\udcfftext", "web/src"),
        ("trailing /a", "web"),
        ("cafe\u0301.py", "web/café.py"),
        ("/".join(["d"] * 40), "/".join(["web", *["d"] * 31])),
        ("x" * 256, "web"),
    ],
)
def test_a_name_that_no_path_can_have_is_protected_by_its_directory(repository: Path, name: str, path: str) -> None:
    assert of(repository).lock_path_of(name) == path
    assert paths.canonical(path) == path


def test_worktrees_share_the_name_of_their_repository(tmp_path: Path, repository: Path) -> None:
    for name in ("one", "two"):
        own = repository / ".git" / "worktrees" / name
        own.mkdir(parents=True)
        (own / "commondir").write_text("../..\n")
        (tmp_path / name).mkdir()
        (tmp_path / name / ".git").write_text(f"gitdir: {own}\n")

    assert name_of(tmp_path / "one") == name_of(tmp_path / "two") == "web"
    assert of(tmp_path / "two").lock_paths("a.py", str(tmp_path / "two")) == {"web/a.py"}


def test_a_submodule_is_a_directory_of_its_repository_from_wherever_it_is_asked(repository: Path) -> None:
    kept, inner = repository / ".git" / "modules" / "lib", repository / "vendor" / "lib"
    kept.mkdir(parents=True)
    inner.mkdir(parents=True)
    (inner / ".git").write_text("gitdir: ../../.git/modules/lib\n")
    file = str(inner / "a.py")

    assert of(inner).lock_paths(file, str(inner)) == {"web/vendor/lib/a.py"}
    assert of(repository).lock_paths(file, str(repository)) == {"web/vendor/lib/a.py"}


def test_a_bare_repository_gives_its_worktrees_its_name(tmp_path: Path) -> None:
    own = tmp_path / "shop.git" / "worktrees" / "one"
    own.mkdir(parents=True)
    (own / "commondir").write_text("../..\n")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".git").write_text(f"gitdir: {own}\n")

    assert name_of(tmp_path / "one") == "shop"


def test_the_root_and_prefix_may_be_said(tmp_path: Path) -> None:
    space = find(root=str(tmp_path), prefix="team/web/", cwd="/")

    assert space.lock_paths("a.py", str(tmp_path)) == {"team/web/a.py"}


@pytest.mark.parametrize("prefix", ["", "a//b", "../a", "a*", " a"])
def test_without_a_repository_or_with_a_bad_prefix_there_is_no_workspace(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(NoWorkspace):
        find(root=str(tmp_path) if prefix else None, prefix=prefix, cwd=str(tmp_path))


def test_a_lock_covers_its_path_and_what_is_below_it() -> None:
    assert paths.covers("web/src", "web/src")
    assert paths.covers("web/src", "web/src/a/b")
    assert not paths.covers("web/src", "web/src2")
    assert not paths.covers("web/src", "web")


def test_locks_come_through_the_environment_as_they_were() -> None:
    locks = [KnownLock(path="web/ü", mode="shared", lock_id="lock_1", fencing_token=2**40)]

    assert parse(dump(locks)) == locks


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"path": "a", "mode": "exclusive", "lock_id": "l"}]',
        '[{"path": "a", "mode": "both", "lock_id": "l", "fencing_token": 1}]',
        '[{"path": "a", "mode": "shared", "lock_id": "l", "fencing_token": "1"}]',
        '[{"path": "a", "mode": "shared", "lock_id": "l", "fencing_token": true}]',
        '[{"path": "", "mode": "shared", "lock_id": "l", "fencing_token": 1}]',
    ],
)
def test_what_is_no_list_of_locks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="KAPELL_LOCKS"):
        parse(text)
