"""One verb on many resources: a few at a time, answers in order, a failure of one stops no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kapell.cli.errors import Done, Refusal, refusal_of, report
from kapell.cli.terminal import Terminal

_T = TypeVar("_T")

AT_A_TIME = 16


@dataclass(frozen=True)
class Outcome(Generic[_T]):
    """What became of all of them: the answers in the order of the ids, and the failures."""

    answers: list[_T]
    failures: list[Exception]

    def finish(self, terminal: Terminal) -> None:
        """Reports the failures; raises Done with the exit code of the first. Does nothing without any."""
        for failure in self.failures:
            report(refusal_of(failure), terminal)
        if self.failures:
            raise Done(refusal_of(self.failures[0]).exit)


async def each(ids: Sequence[str], act: Callable[[str], Awaitable[_T]]) -> Outcome[_T]:
    """Calls `act` with every id."""
    import asyncio

    from kapell.errors import KapellError

    gate = asyncio.Semaphore(AT_A_TIME)

    async def guarded(id: str) -> _T | KapellError | Refusal:
        async with gate:
            try:
                return await act(id)
            except (KapellError, Refusal) as error:
                return error

    results = await asyncio.gather(*(guarded(id) for id in ids))
    return Outcome(
        answers=[result for result in results if not isinstance(result, (KapellError, Refusal))],
        failures=[result for result in results if isinstance(result, (KapellError, Refusal))],
    )
