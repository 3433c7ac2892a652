"""A lock for each node that is being copied up, made when it is needed and gone afterwards.

Nothing else needs a lock: what lies between two awaits is atomic, see docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from pyunion.fs.interruption import interruptible
from pyunion.fs.waiting import task_needed


class KeyedLock:
    """Locks by number."""

    def __init__(self) -> None:
        self._taken: dict[int, trio.Semaphore] = {}
        self._opens: trio.Event | None = None  # none is given before
        self._all_free = trio.Event()

    def __len__(self) -> int:
        return len(self._taken)

    def hold(self, key: int) -> _Hold:
        """Hold the key's lock in `async with`; those who wait get it in the order in which they came."""
        return _Hold(self, self._taken, key)

    @asynccontextmanager
    async def none(self) -> AsyncIterator[None]:
        """Nobody holds a lock meanwhile: those who have one are waited for, and those who want one wait."""
        self._opens = opens = trio.Event()
        try:
            while self._taken:
                self._all_free = trio.Event()
                await self._all_free.wait()
            yield
        finally:
            self._opens = None
            opens.set()

    def must_wait(self, key: int) -> bool:
        """Whether the key's lock is not to be had at once."""
        return self._opens is not None or key in self._taken

    async def opened(self) -> None:
        """Wait for the end of none(), if that is under way."""
        while self._opens is not None:
            await self._opens.wait()

    def freed(self) -> None:
        """A lock is not held any more."""
        if not self._taken:
            self._all_free.set()


class _Hold:
    """What belongs to no task, unlike trio.Lock: the holder may have none yet."""

    def __init__(self, locks: KeyedLock, taken: dict[int, trio.Semaphore], key: int) -> None:
        self._locks = locks
        self._taken = taken
        self._key = key

    async def __aenter__(self) -> None:
        if self._locks.must_wait(self._key):
            await task_needed()
            with interruptible():
                await self._locks.opened()
        lock = self._taken.get(self._key)
        if lock is None:
            self._taken[self._key] = trio.Semaphore(0)
        else:
            with interruptible():
                await lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        lock = self._taken[self._key]
        lock.release()  # to the next one who waits
        if lock.value:
            del self._taken[self._key]
            self._locks.freed()
