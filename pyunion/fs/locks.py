"""A lock for each node that is being copied up, made when it is needed and gone afterwards.

Nothing else needs a lock: what lies between two awaits is atomic, see docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class KeyedLock:
    """Locks by number."""

    def __init__(self) -> None:
        self._locks: dict[int, trio.Lock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def hold(self, key: int) -> AsyncIterator[None]:
        """Hold the key's lock; those who wait get it in the order in which they came."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = trio.Lock()
        await lock.acquire()
        try:
            yield
        finally:
            lock.release()
            if not lock.locked() and self._locks.get(key) is lock:
                del self._locks[key]
