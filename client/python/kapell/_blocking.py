"""How a call that is awaited becomes one that blocks: a loop in a thread, and faces made verb by verb.

Knows no verb of its own; `kapell.sync` says which there are.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F")


class LoopThread:
    """An event loop that runs in a thread until it is closed. The thread does not keep the process alive."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kapell-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs the coroutine there and waits for it here. An exception here, as Ctrl-C, cancels it."""
        assert threading.current_thread() is not self._thread, "this would wait for itself"
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], T]) -> T:
        """Calls a plain function there and waits for it here."""

        async def call() -> T:
            return function()

        return self.run(call())

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Runs `last`, stops the loop and ends the thread. Must be called once."""
        self.run(last)
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncIterator(Generic[T]):
    """A stream as a plain iterator. Close it when done, or use `with`; closing ends a waiting `next`."""

    def __init__(self, loop: LoopThread, source: AsyncIterator[T]) -> None:
        self._loop = loop
        self.source = source

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        async def step() -> T:
            return await anext(self.source)

        try:
            return self._loop.run(step())
        except StopAsyncIteration:
            raise StopIteration from None
        except CancelledError:
            raise StopIteration from None

    def close(self) -> None:
        """Ends the stream."""
        aclose = getattr(self.source, "aclose", None)
        if aclose is not None:
            self._loop.run(aclose())

    def __enter__(self) -> Self:
        """Returns when a watch has begun, so that no later change is missed."""
        ready = getattr(self.source, "ready", None)
        if ready is not None:
            self._loop.run(ready())
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Face(Generic[F]):
    """A face whose verbs block: each runs the asynchronous verb in the loop's thread."""

    def __init__(self, loop: LoopThread, face: F) -> None:
        self._loop = loop
        self._face = face


def blocking(
    verb: Callable[Concatenate[F, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Face[F], P], T]:
    """The blocking form of a verb."""

    @functools.wraps(verb)
    def call(self: Face[F], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(verb(self._face, *args, **kwargs))

    return call


def streaming(
    verb: Callable[Concatenate[F, P], AsyncIterator[T]],
) -> Callable[Concatenate[Face[F], P], SyncIterator[T]]:
    """The blocking form of a verb that answers with a stream."""

    @functools.wraps(verb)
    def call(self: Face[F], /, *args: P.args, **kwargs: P.kwargs) -> SyncIterator[T]:
        return SyncIterator(self._loop, verb(self._face, *args, **kwargs))

    return call
