"""A database that fails where it is told to, around a real one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from kapell.v1.error_pb2 import ERROR_REASON_STORAGE_BUSY
from kapell_server.domain.errors import KapellError
from kapell_server.engine.batch import Outcome
from kapell_server.store.database import Database
from sqlalchemy.engine import Connection

T = TypeVar("T")


class PoisonError(Exception):
    """A write that the database refuses by a defect of whoever wrote it."""


def busy() -> KapellError:
    """What a database says that could not, for no fault of the writer."""
    return KapellError(ERROR_REASON_STORAGE_BUSY, "Nothing was changed: the database did not answer.")


@dataclass(slots=True)
class Fault:
    """One write fails with `error`: before it begins, before its commit, or after it, the answer being lost."""

    error: Exception
    when: Literal["before", "uncommitted", "committed"] = "uncommitted"


class FaultyDatabase(Database):
    """Passes everything on, but `faults` strike the next writes, and `refusal` what `poison` is true of."""

    def __init__(self, inner: Database) -> None:
        self.kind = inner.kind
        self.faults: deque[Fault] = deque()
        self.poison: Callable[[Outcome], bool] = lambda outcome: False
        self.refusal: Exception = PoisonError("a row that no table takes")
        self.writes = 0
        self._inner = inner

    async def write(self, work: Callable[[Connection], T]) -> T:
        self.writes += 1
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and fault.when == "before":
            raise fault.error

        def checked(connection: Connection) -> T:
            result: Any = work(connection)
            if fault is not None and fault.when == "uncommitted":
                raise fault.error
            if isinstance(result, Outcome) and self.poison(result):
                raise self.refusal
            return result  # type: ignore[no-any-return]

        result = await self._inner.write(checked)
        if fault is not None:
            raise fault.error
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._inner.read(work)

    async def close(self) -> None:
        await self._inner.close()

    async def maintain(self) -> None:
        await self._inner.maintain()
