"""Open directories: a listing is a snapshot, so that positions in it stay good while entries come and go.

Owns the handles of opendir and what telldir/seekdir see. rewinddir makes a new snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EBADF

from pyunion.fs.lookup import Lookup, attributes
from pyunion.fs.nodes import Directory, Node

Entry = tuple[bytes, Node, os.stat_result, int]  # name, node, attributes, position after the entry
DOTS = 2


class _Snapshot:
    __slots__ = ("directory", "names", "positions")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.names: list[bytes] | None = None  # none taken yet
        self.positions: list[int] = []


class Listings:
    """The open directories of the mount."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._open: dict[int, _Snapshot] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._open)

    def open(self, directory: Directory) -> int:
        handle = self._next
        self._next += 1
        self._open[handle] = _Snapshot(directory)
        return handle

    def release(self, handle: int) -> None:
        del self._open[handle]

    def directory_of(self, handle: int) -> Directory:
        return self._open[handle].directory

    def entries(self, handle: int, offset: int) -> Iterator[Entry]:
        """The entries from a position on, `.` and `..` first. What has gone since the snapshot is left out."""
        snapshot = self._open.get(handle)
        if snapshot is None:
            raise OSError(EBADF, os.strerror(EBADF))
        directory = snapshot.directory
        if offset == 0 or snapshot.names is None:
            winners = self._lookup.listing(directory)
            snapshot.names = list(winners)
            snapshot.positions = list(winners.values())
        if offset == 0:
            yield b".", directory, attributes(directory), 1
        if offset <= 1:
            parent = directory.parent or directory
            yield b"..", parent, attributes(parent), 2
        child = self._lookup.child
        names, positions = snapshot.names, snapshot.positions
        for number in range(max(0, offset - DOTS), len(names)):
            name = names[number]
            entry = child(directory, name, positions[number])
            if entry is not None:
                yield name, entry[0], entry[1], number + DOTS + 1
