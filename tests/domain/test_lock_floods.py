"""Many locks, many who wait: what one batch does stays bounded, and what is looked at does not grow with the rest."""

from __future__ import annotations

import pytest
from kapell.v1.lock_pb2 import LockFilter, LockSession
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks import table, views
from kapell_server.domain.locks.tree import PathTree
from kapell_server.domain.locks.views import LocksQuestion

from tests.domain.lock_tasks import TaskWorld
from tests.domain.lock_world import Call, LockWorld


def test_a_batch_offers_locks_to_so_many_tasks_and_the_next_ones_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_MOST_OFFERS", 3)
    world = TaskWorld()
    session = world.session()
    held = world.acquire(session, "repo").locks
    tasks = [world.declare(f"repo/{number}") for number in range(10)]
    assert world.parked() == sorted(tasks)

    world.give_back(*held)

    assert len(world.parked()) == 7
    for left in (4, 1, 0):
        world.advance(0.002)
        assert len(world.parked()) == left


def test_who_is_put_off_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_MOST_OFFERS", 1)
    world = TaskWorld()
    session = world.session()
    held = world.acquire(session, "repo").locks
    world.declare("repo/a", priority=900)
    second = world.declare("repo/b", priority=900)
    world.give_back(*held)
    assert world.parked() == [second]

    refused = world.do_quietly(Call(world.request("", "repo/b")))

    assert isinstance(refused, KapellError)
    assert world.parked() == []


def test_putting_off_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_MOST_OFFERS", 1)
    world = TaskWorld()
    session = world.session()
    held = world.acquire(session, "repo").locks
    for number in range(4):
        world.declare(f"repo/{number}")
    world.give_back(*held)
    before = dict(world.state.locks._late)
    assert before

    world.fail_to_commit()

    assert world.state.locks._late == before


@pytest.mark.parametrize("path", ["", "a", "a/b", "a/b/c", "b", "z", "a/z"])
def test_pages_by_path_are_those_that_touch_it_in_order(path: str) -> None:
    tree: PathTree[str] = PathTree()
    things = [(name, key) for name in ("a", "a!", "a/b", "a/b/c", "a/b/d", "a/c", "b", "b/a") for key in ("1", "2")]
    for name, key in things:
        tree.add(name, key, f"{name} {key}")
    order = sorted(things, key=lambda one: (one[0].split("/"), one[1]))
    touching = [
        one for one in order if not path or f"{one[0]}/".startswith(f"{path}/") or f"{path}/".startswith(f"{one[0]}/")
    ]

    for after in [None, *things]:
        beyond = [
            one for one in touching if after is None or (one[0].split("/"), one[1]) > (after[0].split("/"), after[1])
        ]
        assert list(tree.walk(after, path)) == [f"{name} {key}" for name, key in beyond]


def test_pages_of_an_owner_by_path() -> None:
    world = LockWorld()
    mine, other = world.session(), world.session()
    for number in range(5):
        world.acquire(mine, f"repo/m{number}")
        world.acquire(other, f"repo/o{number}")
    world.acquire(mine, "docs")

    found: list[str] = []
    after: tuple[str, str] | None = None
    while True:
        wanted = LockFilter(session_id=mine, path="repo")
        page = views.list_locks(world.state, LocksQuestion(wanted, 2, after)).locks
        found += [one.path for one in page[:2]]
        if len(page) <= 2:
            break
        after = page[1].path, page[1].lock_id

    assert found == [f"repo/m{number}" for number in range(5)]
    assert world.state.standing.count(LockSession) == 2


def test_as_many_locks_may_be_held_as_the_setting_says() -> None:
    world = LockWorld(max_locks=2)
    session = world.session()
    world.acquire(session, "a")

    world.acquire(session, "b")

    with world.refuses("LOCK_LIMIT"):
        world.acquire(session, "c")
