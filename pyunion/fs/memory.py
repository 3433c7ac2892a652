"""Memory that is given back to the system: the C library keeps what was freed until somebody asks for it.

Owns when to ask: once most of what the kernel knew is forgotten, as by `echo 2 > /proc/sys/vm/drop_caches`. It takes
some milliseconds, so not for a few nodes.
"""

from __future__ import annotations

from pyunion.branch import syscalls

_MANY = 4096  # nodes, of about 400 bytes
_LEFT = 4  # one of so many


class Memory:
    """Of one table of nodes."""

    def __init__(self) -> None:
        self._most = 0

    def forgotten(self, before: int, left: int) -> None:
        """There were so many nodes, and now there are so many."""
        self._most = max(self._most, before)
        if self._most >= _MANY and left < self._most // _LEFT:
            self._most = left
            syscalls.trim_memory()
