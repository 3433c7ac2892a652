"""How a request waits: for a thread, or for a lock. Nothing else in this package may suspend a request.

A request's coroutine can be run without a task as long as it does not wait, which most never do. Owns the point where
one that has to wait gets a task of its own: `quickly` runs a coroutine up to there, `rest_of` is what remains of it, to
be awaited in a task. Run by a task from the start, a coroutine waits as any other.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NamedTuple, TypeVar

import trio

_T = TypeVar("_T")
_MOMENT_S = 0.002  # no longer than requests wait for each other anyway
_LITTLE = 128 << 10  # bytes


class _Driver:
    """Whether a coroutine is being run without a task just now. Everything that it does meanwhile is synchronous."""

    at_work = False


class Done(NamedTuple):
    """The result of a coroutine that did not have to wait."""

    result: Any


def quickly(coroutine: Coroutine[Any, Any, Any]) -> Done | None:
    """Run a coroutine; None if it has to wait. Raises what it raises."""
    _Driver.at_work = True
    try:
        coroutine.send(None)
    except StopIteration as end:
        return Done(end.value)
    finally:
        _Driver.at_work = False
    return None


@types.coroutine
def rest_of(coroutine: Coroutine[Any, Any, _T]) -> Generator[Any, Any, _T]:
    """What quickly() has left of a coroutine."""
    return (yield from coroutine.__await__())


@types.coroutine
def task_needed() -> Generator[None, None, None]:
    """To be awaited before anything that suspends the request."""
    if _Driver.at_work:
        yield


async def in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function that may take long, while other requests go on."""
    await task_needed()
    return await trio.to_thread.run_sync(function, *arguments)


class OnDisk:
    """Calls functions that wait for a disk: little is a moment with a quick disk, and long with a slow or busy one. A
    thread takes a moment, too; so they are called at once as long as they have little to write and the last one that
    had was done in a moment."""

    def __init__(self) -> None:
        self._quick = False

    async def call(self, size: int, function: Callable[..., _T], *arguments: Any) -> _T:
        """`size` bytes are to be written, or fewer. Raises what the function raises."""
        if size > _LITTLE:
            return await in_thread(function, *arguments)
        start = time.perf_counter()
        try:
            return function(*arguments) if self._quick else await in_thread(function, *arguments)
        finally:
            self._quick = time.perf_counter() - start < _MOMENT_S
