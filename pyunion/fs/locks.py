"""A lock for each node that is being copied up, made when it is needed and gone afterwards.

Nothing else needs a lock: what lies between two awaits is atomic, see docs/architecture.md.
"""

from __future__ import annotations

import trio

from pyunion.fs.waiting import task_needed


class KeyedLock:
    """Locks by number."""

    def __init__(self) -> None:
        self._taken: dict[int, trio.Semaphore] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def hold(self, key: int) -> _Hold:
        """Hold the key's lock in `async with`; those who wait get it in the order in which they came."""
        return _Hold(self._taken, key)


class _Hold:
    """What belongs to no task, unlike trio.Lock: the holder may have none yet."""

    def __init__(self, taken: dict[int, trio.Semaphore], key: int) -> None:
        self._taken = taken
        self._key = key

    async def __aenter__(self) -> None:
        if self._key in self._taken:
            await task_needed()
        lock = self._taken.get(self._key)
        if lock is None:
            self._taken[self._key] = trio.Semaphore(0)
        else:
            await lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        lock = self._taken[self._key]
        lock.release()  # to the next one who waits
        if lock.value:
            del self._taken[self._key]
