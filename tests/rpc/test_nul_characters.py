"""A NUL character, which no text column of PostgreSQL can hold, is refused or kept; it is never a defect.

Walks every string of every request, on PostgreSQL: what breaks a statement there would fail the
commands of other callers in the same batch with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.rpc.rpc_table import CASES
from tests.rpc.scene import METHODS, Ask, Scene, unpack
from tests.support.postgres import Postgres
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.timeout(120)

NUL = "task_\x00aaaa"
DEEPEST = 5
WITH_STRINGS = [name for name, method in METHODS.items() if method.request.DESCRIPTOR.fields]

Path = tuple[FieldDescriptor, ...]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Scene]:
    """One server on PostgreSQL for all tests of this file."""
    url = postgres.create_database()
    with ServerProcess(tmp_path_factory.mktemp("nul") / "data", arguments=("--database-url", url)) as server:
        scene = Scene(server)
        yield scene
        scene.close()
    postgres.drop_database(url)


def strings_of(kind: Descriptor, before: Path = ()) -> Iterator[Path]:
    """The paths of all strings of a message, through lists and maps, a few messages deep."""
    for field in kind.fields:
        path = (*before, field)
        if field.type == FieldDescriptor.TYPE_STRING:
            yield path
        elif field.message_type is not None and len(path) < DEEPEST:
            yield from strings_of(field.message_type, path)


def put_nul(message: Any, path: Path) -> None:
    """Sets the string at the path, making the messages on the way where they are not there."""
    field, *rest = path
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _put_into_map(value, field.message_type.fields_by_name["value"], rest)
    elif field.message_type is None and field.is_repeated:
        value.append(NUL)
    elif field.message_type is None:
        setattr(message, field.name, NUL)
    elif field.is_repeated:
        put_nul(value[0] if value else value.add(), tuple(rest))
    else:
        value.SetInParent()
        put_nul(value, tuple(rest))


def _put_into_map(entries: Any, value: FieldDescriptor, path: list[FieldDescriptor]) -> None:
    """A key or, below one, a value with a NUL."""
    place, *rest = path
    if rest:
        put_nul(entries["a"], tuple(rest))
    elif place.name == "value":
        entries["a"] = NUL
    elif value.message_type is not None:
        entries[NUL].SetInParent()
    else:
        entries[NUL] = "x" if value.type == FieldDescriptor.TYPE_STRING else 1


@pytest.mark.parametrize("name", WITH_STRINGS)
def test_no_string_of_a_request_breaks_the_database(scene: Scene, name: str) -> None:
    base = CASES[name].works(scene)
    broken = []
    for path in strings_of(METHODS[name].request.DESCRIPTOR):
        request: Message = type(base.request)()
        request.CopyFrom(base.request)
        put_nul(request, path)
        if "INTERNAL" in _reasons(scene, name, Ask(request, base.token)):
            broken.append(".".join(field.name for field in path))

    assert broken == []


def _reasons(scene: Scene, name: str, ask: Ask) -> tuple[str, ...]:
    try:
        scene.call(name, ask, seconds=3.0)
    except grpc.RpcError as error:
        return unpack(error).reasons
    return ()


def test_the_walk_finds_strings_wherever_they_are() -> None:
    found = {".".join(field.name for field in path) for path in strings_of(METHODS["CreateTask"].request.DESCRIPTOR)}

    assert {"task.prompt", "task.labels.key", "task.labels.value", "request_id"} <= found
