"""Handlers with parameters: which hints are understood, and what is said of an input that does not fit."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from kapell import Worker
from kapell._worker.arguments import filled, wanted_by
from kapell._worker.outcome import TaskFailed
from kapell.errors import InvalidRequest


async def everything(
    ctx: Any,
    task: Any,
    city: str,
    days: int,
    share: float,
    is_short: bool,
    tags: list[str],
    more: dict[str, int],
    unit: Literal["C", "F"],
    note: str | None,
    rest: Any,
    plain: list,  # type: ignore[type-arg]
    limit: int = 3,
) -> object: ...


GIVEN: dict[str, object] = {
    "city": "Oslo",
    "days": 2,
    "share": 1,
    "is_short": True,
    "tags": ["a"],
    "more": {"n": 1},
    "unit": "C",
    "note": None,
    "rest": {"any": []},
    "plain": [1],
    "besides": 1,
}


def test_what_fits_becomes_the_arguments() -> None:
    arguments = filled(wanted_by(everything), GIVEN, "everything")

    assert arguments == {name: value for name, value in GIVEN.items() if name != "besides"}
    assert type(arguments["share"]) is float


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("city", 3, "city must be a text, not 3"),
        ("days", 1.5, "days must be a whole number, not 1.5"),
        ("days", True, "days must be a whole number, not True"),
        ("share", "1", "share must be a number"),
        ("is_short", 1, "is_short must be true or false"),
        ("tags", ["a", 1], "tags must be a list, each a text"),
        ("more", {"n": "1"}, "more must be an object, each entry a whole number"),
        ("unit", "K", "unit must be one of 'C', 'F'"),
        ("note", 1, "note must be a text or null"),
        ("plain", {}, "plain must be a list"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: object, says: str) -> None:
    with pytest.raises(TaskFailed) as caught:
        filled(wanted_by(everything), {**GIVEN, name: value}, "everything")

    assert (caught.value.reason, caught.value.retryable) == ("INPUT_INVALID", False)
    assert says in caught.value.message


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(TaskFailed) as caught:
        filled(wanted_by(everything), {}, "everything")

    assert "city is missing, which is a text; days is missing" in caught.value.message
    assert "limit" not in caught.value.message


def test_hints_that_json_has_nothing_for_are_refused_at_once() -> None:
    worker = Worker()

    async def odd(ctx: Any, task: Any, data: bytes) -> object: ...

    async def bare(ctx: Any, task: Any, city) -> object: ...  # type: ignore[no-untyped-def]

    async def keys(ctx: Any, task: Any, data: dict[int, str]) -> object: ...

    for function, says in ((odd, "bytes"), (bare, "needs a type hint"), (keys, "no type of JSON")):
        with pytest.raises(InvalidRequest, match=says):
            worker.task("x")(function)


def test_what_a_function_keeps_for_itself_is_not_replaced() -> None:
    async def kept(ctx: Any, task: Any, number=7, *rest: int, **more: int) -> object: ...  # type: ignore[no-untyped-def]

    assert wanted_by(kept) == []


def test_a_handler_without_a_task_is_still_refused() -> None:
    async def lonely(ctx: Any) -> object: ...

    with pytest.raises(InvalidRequest, match="with a context and a task"):
        Worker().task("x")(lonely)
