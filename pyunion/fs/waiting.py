"""How a request waits: for a thread, or for a lock. Nothing else in this package may suspend a request.

A request's coroutine can be run without a task as long as it does not wait, which most never do. Owns the point where
one that has to wait gets a task of its own: `quickly` runs a coroutine up to there, `rest_of` is what remains of it, to
be awaited in a task. Run by a task from the start, a coroutine waits as any other.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NamedTuple, TypeVar

import trio

_T = TypeVar("_T")


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
