"""Callers that die while their requests wait for what may never come.

Such a wait ends with EINTR, as if the branch had said so. The thread that makes the call cannot be ended: it finds out
later, for nobody, and gives back what it got. Owns both, and knows nothing of what is called.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from errno import EINTR
from typing import Any

import trio


class Interruption:
    """That the caller of one request is dying. It counts where the request waits for what may never come."""

    def __init__(self) -> None:
        self._told = False
        self._scope: trio.CancelScope | None = None

    def tell(self) -> None:
        self._told = True
        if self._scope is not None:
            self._scope.cancel()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        with trio.CancelScope() as self._scope:
            if self._told:
                self._scope.cancel()
            yield
        if self._scope.cancelled_caught:
            raise InterruptedError(EINTR, os.strerror(EINTR))


# Of the request that the task is for; None where nobody can interrupt it.
interruption: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


@contextmanager
def interruptible() -> Iterator[None]:
    """One wait, in a task: raises InterruptedError when the caller dies meanwhile, or is dying."""
    mine = interruption.get()
    if mine is None:
        yield
        return
    with mine.waiting():
        yield


class Call:
    """A function that is called by a thread, which may go on with it when nobody waits for that any more."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        self._function = function
        self._arguments = arguments
        self._changing = threading.Lock()
        self._begun = self._ended = self._left = False
        self._result: Any = None
        self._afterwards: list[Callable[[Any], object]] = []

    def make(self) -> Any:
        with self._changing:
            if self._left:
                return None
            self._begun = True
        try:
            self._result = self._function(*self._arguments)
            return self._result
        finally:
            with self._changing:
                self._ended = True
            for step in self._afterwards:
                step(self._result)

    def leave(self) -> bool:
        """Nobody waits from now on; whether it was begun, and else it never is."""
        with self._changing:
            self._left = True
            return self._begun

    def afterwards(self, step: Callable[[Any], object]) -> None:
        with self._changing:
            if self._begun and not self._ended:
                self._afterwards.append(step)
                return
        step(self._result)


class Left(InterruptedError):
    """A call that was left to its thread, as the caller of the request is dying."""

    def __init__(self, call: Call) -> None:
        super().__init__(EINTR, os.strerror(EINTR))
        self._call = call
        call.leave()

    def afterwards(self, step: Callable[[Any], object]) -> None:
        """Have something done when the call has ended, with its result: None if it failed, or is never made. By any
        thread."""
        self._call.afterwards(step)
