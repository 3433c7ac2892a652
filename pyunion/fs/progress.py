"""Which copies were made, and how far those are that are being made.

Owns the counts; a copy tells when it begins and ends, and is asked for its progress by nobody but those who look.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Running:
    """A copy of data that a thread is making. Sizes in bytes, `begun` by the monotonic clock."""

    path: Callable[[], bytes]  # in the union
    total: int
    measure: Callable[[], int]
    begun: float = field(default_factory=time.monotonic)

    def copied(self) -> int:
        """Holes that were passed over are copied as well; 0 before the first byte."""
        with suppress(OSError):  # not begun yet, or just put in place
            return min(self.measure(), self.total)
        return 0


class Progress:
    """The copies of one mount. `done` counts them by kind: file, metadata (without its data), data (which come to a
    metadata-only copy later), directory, and other (symlinks, devices)."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.bytes = 0
        self.running: list[Running] = []

    @contextmanager
    def copying(self, path: Callable[[], bytes], total: int, measure: Callable[[], int]) -> Iterator[None]:
        """While `total` bytes are copied; `path` and `measure`, how many of them are there, are for who looks."""
        copy = Running(path, total, measure)
        self.running.append(copy)
        try:
            yield
            self.bytes += total
        finally:
            self.running.remove(copy)


def reached(directory_fd: int, name: bytes) -> int:
    """How far a copy has come that is written from its beginning to its end."""
    return os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_size


def filled(fd: int) -> int:
    """How much of a file that was all holes is filled."""
    return os.fstat(fd).st_blocks * 512
